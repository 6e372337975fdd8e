"""The command line of ``eddy dlq``. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse

from services.arguments import Commands, Parser, add_bootstrap, command


def add_dlq_parser(commands: Commands) -> None:
    """Adds ``dlq``; each action sets ``handler``: arguments -> exit code."""
    dlq = command(
        commands,
        "dlq",
        "records that could not be served: list them, or send them again",
        "  eddy dlq list --input prompts\n  eddy dlq replay --input prompts --reason too-large --dry-run",
    )
    actions = dlq.add_subparsers(metavar="ACTION", required=True)
    _add_list(actions)
    _add_replay(actions)


def _add_list(actions: Commands) -> None:
    parser = command(
        actions,
        "list",
        "dead letters with their reason, place, key, time and size; oldest first",
        "  eddy dlq list --input prompts\n  eddy dlq list --input prompts --key alice --json",
    )
    _add_choice(parser)
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="the newest so many [100]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.dlq.listing import list_letters

        return list_letters(args)

    parser.set_defaults(handler=handler)


def _add_replay(actions: Commands) -> None:
    parser = command(
        actions,
        "replay",
        "send dead letters to the input again, as they were, in their order; each once",
        "  eddy dlq replay --input prompts --dry-run\n"
        "  eddy dlq replay --input prompts --reason too-large\n"
        "  eddy dlq replay --input prompts --offset 3:1042 --again",
    )
    _add_choice(parser)
    parser.add_argument("--again", action="store_true", help="also those that were sent before")
    parser.add_argument("--dry-run", action="store_true", help="only say how many")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")

    def handler(args: argparse.Namespace) -> int:
        from services.dlq.replay import replay

        return replay(args)

    parser.set_defaults(handler=handler)


def _add_choice(parser: Parser) -> None:
    parser.add_argument("--input", required=True, metavar="TOPIC", help="whose dead letters")
    parser.add_argument("--key", metavar="KEY", help="only of this stream")
    parser.add_argument("--hex", action="store_true", help="the key is given in hexadecimal [as UTF-8 text]")
    parser.add_argument("--reason", metavar="WORD", help="only with this reason")
    parser.add_argument(
        "--offset", action="append", default=[], metavar="P:O", help="only this partition and offset; repeatable"
    )
    add_bootstrap(parser)
