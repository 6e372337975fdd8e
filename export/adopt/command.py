"""The command ``eddy adopt``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from export.arguments import Commands, add_codec_and_head, labels_of, settings_of
from pipeline.errors import UserError

EXAMPLES = """examples:
  eddy adopt vad.onnx --output models/vad/1
  eddy adopt vad.onnx --output models/vad/1 --constant sr=16000 --hop 512
  eddy adopt tts.onnx --output models/tts/1 --stream-constant speaker=eddy-speaker --json

What can be found by running the file is found; what cannot is asked for, with the flag that says it. Nothing is written
unless what will be served is proven to give what the file gives."""


def add_adopt_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds ``adopt``; it sets ``handler``."""
    parser = commands.add_parser(
        "adopt",
        help="a stateful ONNX file of somebody else's to a proven model folder",
        description="Adopt a stateful ONNX file that somebody else exported: find its states, prove that it is served"
        " right.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.onnx")
    add("--output", type=Path, required=True, metavar="DIR", help="models/NAME/VERSION, or models/NAME")
    add("--state", action="append", default=[], metavar="INPUT=OUTPUT", help="a state pair; repeat [found]")
    add("--step", action="append", default=[], metavar="INPUT", help="an input that is a step's; repeat [found]")
    add(
        "--constant",
        action="append",
        default=[],
        metavar="INPUT=VALUE",
        help="an input that never changes: numbers, or @FILE.npy; repeat",
    )
    add(
        "--stream-constant",
        action="append",
        default=[],
        metavar="INPUT[=HEADER]",
        help="an input that is a stream's own, from a record header [eddy-INPUT]; with --constant, that is its default",
    )
    add(
        "--initial",
        action="append",
        default=[],
        metavar="INPUT=VALUE",
        help="how a state begins: numbers, or @FILE.npy [the file's default, else zeros]",
    )
    add("--shape", action="append", default=[], metavar="INPUT=1,2", help="of one step of one stream [found]")
    add("--hop", type=int, metavar="N", help="elements of a step along its free axis [found]")
    add("--time-axis", default="auto", choices=("auto", "none", "0", "1", "2", "3"), help="of the step inputs [found]")
    add("--single", action="store_true", help="serve one stream at a time, whatever a batch could do")
    add_codec_and_head(parser)
    add("--json", action="store_true", help="the result, or the refusal, as one JSON object")
    parser.set_defaults(handler=_adopt)


def _adopt(args: argparse.Namespace) -> int:
    from export.adopt import AdoptOptions, Refused, Unclear, adopt
    from export.adopt.report import as_json, table
    from export.tokens import codec_of
    from pipeline.contract import HeadSpec

    text = codec_of(args.codec, args.tokenizer, args.head, settings_of(args.codec_setting, "--codec-setting"))
    options = AdoptOptions(
        states=args.state,
        steps=args.step,
        constants=args.constant,
        stream_constants=args.stream_constant,
        initial=args.initial,
        shapes=args.shape,
        hop=args.hop,
        time_axis=args.time_axis,
        single=args.single,
        tolerance=args.tolerance,
        codec=text.codec,
        head=HeadSpec(
            args.head,
            output=args.head_output,
            labels=tuple(labels_of(args.labels)),
            settings=settings_of(args.head_setting, "--head-setting"),
        ),
        beside=text.beside,
        notes=text.notes,
    )
    try:
        adopted = adopt(args.file, args.output, options)
    except UserError as error:
        if not args.json and isinstance(error, Refused):
            print(f"eddy: {args.file} is refused: {error}", file=sys.stderr)
            return 1
        if not args.json:
            raise
        said: dict[str, object] = {"file": str(args.file), "refused": str(error)}
        if isinstance(error, Unclear):
            said["flags"] = error.flags
        print(json.dumps(said, ensure_ascii=False))
        return 1 if isinstance(error, Refused) else 2
    if args.json:
        print(json.dumps(as_json(adopted), ensure_ascii=False))
    else:
        print("\n".join(table(adopted)))
    return 0
