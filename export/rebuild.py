"""`make models`: trains and exports every shipped model again; with NAMES="video speech" only these.

Each is nothing but commands that anyone can give, and what they leave out is the defaults. A run that was interrupted
goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from export.commands import add_export_parser, add_train_parser
from pipeline.errors import UserError

RECIPES = {
    "language": ("language --epochs 24", ""),
    "python-reference": ("text", ""),
    "python-reference-subword": (
        "text --unit tokens --vocabulary 512 --layers 1 --units 512 --embedding 128 --lanes 16 --window 32"
        " --epochs 24 --learning-rate 0.004 --dropout 0.6 --ema 0.99",
        "--precision float16",
    ),
    "sentiment": ("sentiment --vectors glove", "--precision int8"),
    "video": ("video", ""),
    "speech": ("speech --bfloat16", "--precision int8"),
    "speech-synthetic": ("speech --data synthesis --epochs 90 --dropout 0.3 --bfloat16", "--precision int8"),
}
"""Name of the model -> what is trained, what is exported."""


def lines(name: str) -> tuple[str, str]:
    """The two commands of a model, without `eddy`. One thread: two take more processor time and win little."""
    train, export = RECIPES[name]
    return (
        f"train {train} --threads 1 --output runs/{name}",
        f"export --checkpoint runs/{name}/checkpoint.pt --output models/{name}/1 {export}"
        f" --rebuild 'make models NAMES={name}'",
    )


def understood(name: str) -> list[tuple[str, argparse.Namespace]]:
    """The commands of a model with what `eddy` reads in them."""
    parser = argparse.ArgumentParser(prog="eddy")
    commands = parser.add_subparsers(required=True)
    add_train_parser(commands)
    add_export_parser(commands)
    return [(line, parser.parse_args(shlex.split(line))) for line in lines(name)]


def rebuild(names: Sequence[str]) -> None:
    """Runs the commands of the models named, all of them where none is."""
    for name in names or RECIPES:
        for line, args in understood(name):
            print(f"eddy {line}", flush=True)
            args.handler(args)


def main(argv: Sequence[str]) -> int:
    unknown = [name for name in argv if name not in RECIPES]
    if unknown:
        print(f"no recipe for {unknown[0]!r}; there are: {', '.join(RECIPES)}", file=sys.stderr)
        return 2
    try:
        rebuild(argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
