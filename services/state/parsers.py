"""The command line of ``eddy state``. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse

from services.arguments import Commands, Parser, add_bootstrap, command


def add_state_parser(commands: Commands) -> None:
    """Adds ``state``; each action sets ``handler``: arguments -> exit code."""
    state = command(
        commands,
        "state",
        "what a group holds of its streams: look at it, end a stream, move states elsewhere",
        "  eddy state inspect --group eddy-chars --input prompts\n"
        "  eddy state inspect --input prompts --model models/chars alice\n"
        "  eddy state end --input prompts alice\n"
        "  eddy state export --group eddy-chars --input prompts --output chars.states",
    )
    actions = state.add_subparsers(metavar="ACTION", required=True)
    _add_inspect(actions)
    _add_end(actions)
    _add_export(actions)
    _add_import(actions)
    _add_repartition(actions)


def _add_inspect(actions: Commands) -> None:
    parser = command(
        actions,
        "inspect",
        "what the changelog holds of one stream, or of every partition; it only reads, workers may run",
        "  eddy state inspect --group eddy-chars --input prompts\n"
        "  eddy state inspect --input prompts --model models/chars alice --json",
    )
    parser.add_argument("key", nargs="?", metavar="KEY", help="one stream [a summary of all]")
    _add_group(parser)
    _add_model(parser, "say whether it can read the snapshots, and what they hold")
    _add_place(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.state.inspect import inspect

        return inspect(args)

    parser.set_defaults(handler=handler)


def _add_end(actions: Commands) -> None:
    parser = command(
        actions,
        "end",
        "end streams by a null record in the input, behind what they have there already",
        "  eddy state end --input prompts alice bob\n  eddy state end --input sensors --hex 00000017",
    )
    parser.add_argument("keys", nargs="+", metavar="KEY", help="streams to end")
    parser.add_argument("--input", required=True, metavar="TOPIC", help="the topic that they come from")
    _add_place(parser)
    add_bootstrap(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a stream")

    def handler(args: argparse.Namespace) -> int:
        from services.state.end import end

        return end(args)

    parser.set_defaults(handler=handler)


def _add_export(actions: Commands) -> None:
    parser = command(
        actions,
        "export",
        "write the states of all streams to a file, exactly as they are after all that is done",
        "  eddy state export --group eddy-chars --input prompts --output chars.states",
    )
    _add_group(parser)
    _add_model(parser, "the one that the states are of: it is checked, and named in the file")
    parser.add_argument("--output", required=True, metavar="FILE", help="it appears when it is whole")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.state.export import export

        return export(args)

    parser.set_defaults(handler=handler)


def _add_import(actions: Commands) -> None:
    parser = command(
        actions,
        "import",
        "give the streams of a file to a new group, of this cluster or another, before its workers start",
        "  eddy state import chars.states --group eddy-chars --input prompts --bootstrap-servers other:9092",
    )
    parser.add_argument("file", metavar="FILE", help="that `eddy state export` has written")
    _add_group(parser)
    _add_model(parser, "the one that the group will run: it is checked")
    _add_beginning(parser)
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.state.moving import import_states

        return import_states(args)

    parser.set_defaults(handler=handler)


def _add_repartition(actions: Commands) -> None:
    parser = command(
        actions,
        "repartition",
        "take all streams to a topic of another number of partitions, once the input is done",
        "  eddy topics create --input prompts-16 --output texts-16 --partitions 16\n"
        "  eddy state repartition --group eddy-chars --input prompts --to prompts-16",
    )
    _add_group(parser)
    _add_model(parser, "names the group eddy-MODEL where --group is not given")
    parser.add_argument("--to", required=True, metavar="TOPIC", help="the new input; it must exist")
    parser.add_argument("--new-group", metavar="G", help="the group that will read it [the same]")
    _add_beginning(parser)
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.state.moving import repartition

        return repartition(args)

    parser.set_defaults(handler=handler)


def _add_group(parser: Parser) -> None:
    parser.add_argument("--group", metavar="G", help="consumer group [eddy-MODEL of --model]")
    parser.add_argument("--input", required=True, metavar="TOPIC", help="the topic that streams come from")
    add_bootstrap(parser)


def _add_model(parser: Parser, text: str) -> None:
    parser.add_argument("--model", metavar="DIR", help=text)


def _add_place(parser: Parser) -> None:
    parser.add_argument("--hex", action="store_true", help="keys are given in hexadecimal [as UTF-8 text]")
    parser.add_argument(
        "--partition", type=int, metavar="P", help="of the stream, where producers do not use murmur2 [murmur2's]"
    )


def _add_beginning(parser: Parser) -> None:
    parser.add_argument(
        "--auto-offset-reset",
        default="earliest",
        choices=("earliest", "latest"),
        help="where the group begins, if it has no offset: at what the topic holds, or behind it [earliest]",
    )
    parser.add_argument(
        "--replication-factor", type=int, default=-1, metavar="N", help="of the changelog; -1: the broker's own [-1]"
    )
