"""The command `eddy export`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from export.arguments import PRECISIONS, Commands, add_codec_and_head, labels_of, settings_of, words_of
from export.extras import need
from export.tasks import TASKS
from pipeline.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from export.exporter import Exported

EXAMPLES = """examples:
  eddy export --checkpoint runs/text/checkpoint.pt --output models/my-text/1
  eddy export mypackage.mymodule:build --checkpoint weights.pt --steps float32[64] --output models/mine/1
  eddy export mymodule:Net --steps float32[40] --head classify --labels yes,no --output models/words/1

A module needs forward(steps, *states) -> (outputs, *states) and initial_state(batch). Its states, outputs, axes and
initial values are found by running it; the graph is compared with it before anything is written."""

OF_A_MODULE = (
    *("steps", "step_limit", "time_axis", "state_names", "output_names", "codec", "codec_setting", "tokenizer"),
    *("head", "head_output", "language_model", "labels", "summary", "data", "licence"),
)
"""What a checkpoint of `eddy train` knows by itself."""
LANGUAGE_MODEL = "lm.bin"
"""Its name beside ``model.onnx``."""


def add_export_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds ``export``; it sets ``handler``."""
    parser = commands.add_parser(
        "export",
        help="PyTorch module to a proven model folder",
        description="Export a PyTorch module to a model folder, and prove that it does the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "module",
        nargs="?",
        metavar="PACKAGE.MODULE:NAME",
        help="a torch.nn.Module, or what makes one [the checkpoint's]",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="models/NAME/VERSION")
    add("--checkpoint", type=Path, metavar="FILE", help="weights: torch.save(module.state_dict(), FILE)")
    add(
        "--steps",
        action="append",
        default=[],
        metavar="[NAME:]DTYPE[SHAPE]",
        help="one step, as in float32[64] or int64",
    )
    add(
        "--step-limit",
        type=int,
        metavar="N",
        help="whole-number steps lie below N [the first embedding's size, else 100]",
    )
    add(
        "--time-axis", choices=("auto", "0", "1", "none"), default="auto", help="of steps and outputs [auto: found out]"
    )
    add("--state-names", default="", metavar="A,B", help="[the module's state_names, or forward's parameters]")
    add("--output-names", default="", metavar="A,B", help="[the module's output_names, or output]")
    add_codec_and_head(parser)
    add("--language-model", type=Path, metavar="FILE", help="the head transcribe searches with it")
    add(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the weights in the file; computed with in float32 [float32]",
    )
    add("--max-megabytes", type=float, default=200.0, metavar="N", help="largest graph [200]")
    add("--summary", default="", metavar="TEXT", help="for the model card: what the model does")
    add("--data", default="", metavar="TEXT", help="for the model card: what it was trained on")
    add("--licence", default="", metavar="TEXT", help="for the model card")
    add("--rebuild", metavar="TEXT", help="for the model card: the command that makes it again [this one]")
    add("--json", action="store_true", help="the result as one JSON object")
    parser.set_defaults(handler=_export)


def _export(args: argparse.Namespace) -> int:
    need("export", "torch")
    command = args.rebuild or shlex.join(["eddy", *sys.argv[1:]])
    if args.module is not None:
        exported = _export_module(args, command)
    elif args.checkpoint is not None:
        exported = _export_run(args, command)
    else:
        raise ConfigError("nothing to export: name PACKAGE.MODULE:NAME, or a --checkpoint of `eddy train`")
    _report(exported, args.json)
    return 0


def _export_run(args: argparse.Namespace, command: str) -> Exported:
    from export.exporter import ExportOptions
    from export.training.checkpoint import read_run

    for name in OF_A_MODULE:
        if getattr(args, name) not in ("", "auto", "tensor", [], None):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for a module of your own: name PACKAGE.MODULE:NAME, or leave it out")
    settings = settings_of(args.head_setting, "--head-setting")
    options = ExportOptions(tolerance=args.tolerance, max_megabytes=args.max_megabytes, precision=args.precision)
    run = read_run(args.checkpoint)
    if run.task not in TASKS:
        raise ModelError(f"{run.file}: this Eddy has no task {run.task!r}; it has {', '.join(TASKS)}")
    return TASKS[run.task].export(run, args.output, command, settings, options)


def _export_module(args: argparse.Namespace, command: str) -> Exported:
    from export.card import CardText
    from export.exporter import ExportOptions, export_module
    from export.load import load_module, load_weights
    from export.tokens import codec_of
    from pipeline.beside import entry
    from pipeline.contract import HeadSpec

    if not args.steps:
        raise ConfigError(
            "a step's dtype and shape cannot be seen from outside: give --steps, as in --steps float32[64]"
        )
    text = codec_of(args.codec, args.tokenizer, args.head, settings_of(args.codec_setting, "--codec-setting"))
    beside = dict(text.beside)
    said = settings_of(args.head_setting, "--head-setting")
    if args.language_model is not None:
        if args.head != "transcribe":
            raise ConfigError(f"--language-model {args.language_model} is for the head transcribe: give that as --head")
        beside[LANGUAGE_MODEL] = args.language_model
        said["language_model"] = entry(LANGUAGE_MODEL, _content(args.language_model, "--language-model"))
    head = HeadSpec(args.head, output=args.head_output, labels=tuple(labels_of(args.labels)), settings=said)
    module = load_module(args.module)
    if args.checkpoint is not None:
        load_weights(module, args.checkpoint)
    return export_module(
        module,
        args.output,
        args.steps,
        codec=text.codec,
        head=head,
        options=ExportOptions(
            state_names=words_of(args.state_names),
            output_names=words_of(args.output_names),
            step_limit=args.step_limit,
            time_axis=args.time_axis,
            tolerance=args.tolerance,
            max_megabytes=args.max_megabytes,
            precision=args.precision,
            beside=beside,
            notes=text.notes,
            card=CardText(summary=args.summary, data=args.data, licence=args.licence, command=command),
        ),
    )


def _report(exported: Exported, as_json: bool) -> None:
    contract, parity = exported.contract, exported.parity
    if as_json:
        result = {
            "file": str(exported.file),
            "model": contract.label,
            "time_axis": contract.time_axis,
            "parity": [{"comparison": r.what, "where": r.where, "largest": r.largest} for r in parity.rows],
            "contract": json.loads(contract.to_json()),
        }
        print(json.dumps(result, ensure_ascii=False))
        return
    rows = [("comparison", "where", "largest difference"), *parity.table()]
    widths = [max(len(r[i]) for r in rows) for i in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for note in exported.notes:
        print(f"note: {note}")
    print(f"{contract.label}: {exported.file} ({exported.file.stat().st_size / 1e6:.2f} MB), card README.md beside it")
    print(f"next: eddy run --model {exported.file.parent} --input TOPIC --output TOPIC")


def _content(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read ({error.strerror})") from None
