"""The command ``eddy``: what can be asked, and how it ends.

Whatever is heavy is imported by the command that needs it, so that ``eddy --help`` answers at once. What cannot be done
ends as one line on stderr: exit code 2 where the asking was wrong, 1 where something failed, 130 on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from export.adopt.command import add_adopt_parser
from export.commands import add_export_parser, add_score_parser, add_train_parser
from pipeline.errors import EddyError, UserError
from services.arguments import Commands, Parser, add_bootstrap, command
from services.broker import add_broker_parser
from services.dlq.parsers import add_dlq_parser
from services.producing.parsers import AUDIO_EXAMPLES, VIDEO_EXAMPLES, add_audio_arguments, add_video_arguments
from services.settings import add_settings
from services.state.parsers import add_state_parser

ARRAY_DTYPES = (*("float16", "float32", "float64", "bool"), *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)))
DEMOS = ("text", "language", "sentiment", "speech", "video")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the process's exit code."""
    try:
        args = build_parser().parse_args(argv)
        handler: Callable[[argparse.Namespace], int] = args.handler
        code = handler(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has seen enough (`eddy tail ... | head`): the interpreter's own flush must not complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except EddyError as error:
        if os.environ.get("EDDY_DEBUG"):
            raise
        print(f"eddy: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def build_parser() -> Parser:
    """All commands; nothing heavy is imported."""
    parser = Parser(
        prog="eddy",
        description="Keeps a recurrent model's state for every stream on a Kafka topic, and answers exactly once.",
        epilog="EDDY_DEBUG=1 shows the traceback behind an error.",
    )
    commands: Commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_run(commands)
    _add_produce(commands)
    _add_tail(commands)
    _add_topics(commands)
    add_state_parser(commands)
    add_dlq_parser(commands)
    add_broker_parser(commands)
    add_train_parser(commands)
    add_export_parser(commands)
    add_adopt_parser(commands)
    add_score_parser(commands)
    _add_inspect(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: Commands) -> None:
    parser = command(
        commands,
        "demo",
        "everything at once, on an embedded broker: streams in, a model's answers out, live",
        "  eddy demo\n  eddy demo text --steps 80\n  eddy demo speech\n  eddy demo video --model models/video/1",
    )
    parser.add_argument("what", nargs="?", default="text", choices=DEMOS, help="which demo [text]")
    parser.add_argument("--steps", type=int, default=120, metavar="N", help="text: steps to generate a stream [120]")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model of the same kind [the shipped one]")

    def handler(args: argparse.Namespace) -> int:
        from services.demos import make_demo
        from services.demos.run import run_demo

        run_demo(make_demo(args.what, args.steps), args.model)
        return 0

    parser.set_defaults(handler=handler)


def _add_run(commands: Commands) -> None:
    parser = command(
        commands,
        "run",
        "serve a model: one worker, a member of its consumer group",
        "  eddy run --model models/chars --input prompts --output texts\n"
        "  eddy run --config worker.yaml --http-port 0\n"
        "  EDDY_BOOTSTRAP_SERVERS=kafka:9092 eddy run --model m --input i --output o --log-format json\n\n"
        "Every setting is also a variable EDDY_SETTING and a key of the --config file; flags win over variables,\n"
        "variables over the file. SIGTERM finishes and commits what is in flight, then ends with exit code 0.",
    )
    add_settings(parser)

    def handler(args: argparse.Namespace) -> int:
        from services.run import run

        return run(args)

    parser.set_defaults(handler=handler)


def _add_produce(commands: Commands) -> None:
    parser = command(
        commands,
        "produce",
        "write records to a topic: lines of text, the bytes of one stream, or arrays; sound and video, too",
        "  printf 'alice\\tOnce upon\\nbob\\tIt was\\n' | eddy produce prompts\n"
        "  eddy produce prompts --key alice --header eddy-max-steps=80 story.txt\n"
        "  eddy produce features sensor-1.npy sensor-2.npy --steps-per-record 16\n"
        "  eddy produce prompts --end alice\n\n"
        "Sound and video have flags of their own:\n"
        "  eddy produce audio --help\n  eddy produce video --help",
    )
    parser.mixed = True
    parser.add_argument("topic")
    parser.add_argument("files", nargs="*", metavar="FILE", help=".npy arrays [steps, ...], else text [stdin]")
    parser.add_argument(
        "--key", metavar="KEY", help="one stream: input is its bytes, cut anywhere, not lines with keys"
    )
    parser.add_argument("--key-separator", default="\t", metavar="TEXT", help="between key and value of a line [tab]")
    parser.add_argument(
        "--record-bytes", type=int, default=1024, metavar="N", help="with --key: a record's size [1024]"
    )
    parser.add_argument("--steps-per-record", type=int, default=1, metavar="N", help="of .npy arrays [1]")
    parser.add_argument("--model", metavar="DIR", help="hold .npy arrays against what a step of this model is")
    parser.add_argument(
        "--dtype", choices=ARRAY_DTYPES, metavar="DTYPE", help="turn .npy arrays into it, as in float32"
    )
    parser.add_argument(
        "--end", action="append", default=[], metavar="KEY", help="end this stream, after the input if any; repeatable"
    )
    _add_writing(parser)

    def handler(args: argparse.Namespace) -> int:
        from services.produce import produce

        return produce(args)

    parser.set_defaults(handler=handler)
    parser.kinds = {"audio": _audio_parser(), "video": _video_parser()}


def _add_writing(parser: argparse.ArgumentParser) -> None:
    """What every kind of `eddy produce` has."""
    add_bootstrap(parser)
    parser.add_argument(
        "--header", "--headers", action="append", default=[], metavar="NAME=VALUE", help="on every record; repeatable"
    )
    parser.add_argument(
        "--compression", default="none", choices=("none", "gzip", "snappy", "lz4", "zstd"), help="of batches [none]"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def _audio_parser() -> Parser:
    parser = _kind("audio", "Write sound to a topic, as 16-bit mono PCM at the model's rate.", AUDIO_EXAMPLES)
    add_audio_arguments(parser)
    _add_writing(parser)

    def handler(args: argparse.Namespace) -> int:
        from services.producing.audio import produce_audio

        return produce_audio(args)

    parser.set_defaults(handler=handler)
    return parser


def _video_parser() -> Parser:
    parser = _kind("video", "Write video to a topic, a frame a record.", VIDEO_EXAMPLES)
    add_video_arguments(parser)
    _add_writing(parser)

    def handler(args: argparse.Namespace) -> int:
        from services.producing.video import produce_video

        return produce_video(args)

    parser.set_defaults(handler=handler)
    return parser


def _kind(name: str, description: str, examples: str) -> Parser:
    parser = Parser(
        prog=f"eddy produce {name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.mixed = True
    return parser


def _add_tail(commands: Commands) -> None:
    parser = command(
        commands,
        "tail",
        "print records of a topic as they become visible (read committed)",
        "  eddy tail texts\n"
        "  eddy tail outputs --from-beginning --count 10 --model models/lstm --json\n"
        "  eddy tail texts --from-beginning --idle-timeout 2 | cut -f2",
    )
    parser.add_argument("topic")
    add_bootstrap(parser)
    parser.add_argument("--from-beginning", action="store_true", help="what is there already, too")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many records")
    parser.add_argument("--idle-timeout", type=float, metavar="SECONDS", help="end when nothing came for so long")
    parser.add_argument("--model", metavar="DIR", help="decode values as this model's head writes them")
    parser.add_argument("--json", action="store_true", help="one JSON object a record, with all there is to know")

    def handler(args: argparse.Namespace) -> int:
        from services.tail import tail

        return tail(args)

    parser.set_defaults(handler=handler)


def _add_topics(commands: Commands) -> None:
    topics = command(commands, "topics", "make the topics of a model", "  eddy topics create --help")
    actions = topics.add_subparsers(metavar="ACTION", required=True)
    parser = command(
        actions,
        "create",
        "make input, output and dead letters with as many partitions each; what exists is checked",
        "  eddy topics create --input prompts --output texts --partitions 4",
    )
    parser.add_argument("--input", required=True, metavar="TOPIC")
    parser.add_argument("--output", required=True, metavar="TOPIC")
    add_bootstrap(parser)
    parser.add_argument("--partitions", type=int, default=4, metavar="N", help="of each topic; fixed for good [4]")
    parser.add_argument("--replication-factor", type=int, default=-1, metavar="N", help="-1: the broker's own [-1]")
    parser.add_argument("--json", action="store_true", help="print the topics as one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.topics import create

        return create(args)

    parser.set_defaults(handler=handler)


def _add_inspect(commands: Commands) -> None:
    parser = command(
        commands,
        "inspect",
        "what a model promises and what a stream of it costs",
        "  eddy inspect models/chars\n  eddy inspect models/chars --slots 1000000 --json",
    )
    parser.add_argument("model", metavar="MODEL", help="NAME, NAME/VERSION or model.onnx")
    parser.add_argument(
        "--slots", type=int, default=4096, metavar="N", help="size the arena for so many streams [4096]"
    )
    parser.add_argument("--json", action="store_true", help="print it as one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.inspect import inspect

        return inspect(args)

    parser.set_defaults(handler=handler)


def _add_doctor(commands: Commands) -> None:
    parser = command(
        commands,
        "doctor",
        "what is installed, whether the broker answers and whether the model runs",
        "  eddy doctor\n  eddy doctor --bootstrap-servers kafka:9092 --model models/chars --json",
    )
    parser.add_argument("--bootstrap-servers", metavar="HOST:PORT", help="try to reach these brokers")
    parser.add_argument("--model", metavar="DIR", help="load this model and run one step")
    parser.add_argument(
        "--providers", default="CPUExecutionProvider", metavar="A,B", help="execution providers to run it on"
    )
    parser.add_argument("--json", action="store_true", help="print it as one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.doctor import doctor

        return doctor(args)

    parser.set_defaults(handler=handler)
