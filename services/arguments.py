"""What all commands share in reading a command line. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

BOOTSTRAP = "127.0.0.1:9092"


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, as every other mistake is said."""

    mixed = False
    kinds: Mapping[str, Parser] = MappingProxyType({})
    """Parsers for what follows a first word of these."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"eddy: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Where ``mixed``, files may stand before and behind flags; argparse's own way takes them in one place."""
        if args and args[0] in self.kinds:
            return self.kinds[args[0]].parse_known_args(args[1:], namespace)
        if not self.mixed:
            return super().parse_known_args(args, namespace)
        self.mixed = False  # parse_known_intermixed_args comes back here
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixed = True


Commands: TypeAlias = "argparse._SubParsersAction[Any]"  # argparse has no public name for it


def command(commands: Commands, name: str, help_text: str, examples: str) -> Parser:
    """One command; ``help_text`` begins in small letters, ``examples`` are indented lines."""
    made: Parser = commands.add_parser(
        name,
        help=help_text,
        description=f"{help_text[0].upper()}{help_text[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """The flag that says which cluster."""
    parser.add_argument(
        "--bootstrap-servers",
        default=os.environ.get("EDDY_BOOTSTRAP_SERVERS", BOOTSTRAP),
        metavar="HOST:PORT",
        help="the brokers [EDDY_BOOTSTRAP_SERVERS, else 127.0.0.1:9092]",
    )
