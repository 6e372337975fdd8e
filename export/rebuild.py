"""`make models`: trains and exports every shipped model again; `python -m export.rebuild NAME ...` only some.

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
    "language": (
        "train language --threads 1 --output runs/language",
        "export --checkpoint runs/language/checkpoint.pt --output models/language/1 --rebuild 'make models'",
    ),
    "python-reference": (
        "train text --threads 1 --output runs/python-reference",
        "export --checkpoint runs/python-reference/checkpoint.pt --output models/python-reference/1"
        " --rebuild 'make models'",
    ),
    "python-reference-subword": (
        "train text --unit tokens --vocabulary 512 --layers 1 --units 512 --embedding 128 --lanes 16 --window 32"
        " --epochs 24 --learning-rate 0.004 --dropout 0.6 --ema 0.99 --threads 1"
        " --output runs/python-reference-subword",
        "export --checkpoint runs/python-reference-subword/checkpoint.pt --output models/python-reference-subword/1"
        " --precision float16 --rebuild 'make models'",
    ),
    "sentiment": (
        "train sentiment --vectors glove --threads 1 --output runs/sentiment",
        "export --checkpoint runs/sentiment/checkpoint.pt --output models/sentiment/1 --precision int8"
        " --rebuild 'make models'",
    ),
    "video": (
        "train video --threads 1 --output runs/video",
        "export --checkpoint runs/video/checkpoint.pt --output models/video/1 --rebuild 'make models'",
    ),
    "speech": (
        "train speech --threads 2 --bfloat16 --output runs/speech",
        "export --checkpoint runs/speech/checkpoint.pt --output models/speech/1 --precision int8"
        " --rebuild 'make models'",
    ),
    "speech-synthetic": (
        "train speech --data synthesis --epochs 90 --dropout 0.3 --threads 2 --bfloat16 --output runs/speech-synthetic",
        "export --checkpoint runs/speech-synthetic/checkpoint.pt --output models/speech-synthetic/1 --precision int8"
        " --rebuild 'make models'",
    ),
}


def rebuild(names: Sequence[str]) -> None:
    """Runs the commands of the models named, all of them where none is."""
    parser = argparse.ArgumentParser(prog="eddy")
    commands = parser.add_subparsers(required=True)
    add_train_parser(commands)
    add_export_parser(commands)
    for name in names or RECIPES:
        for line in RECIPES[name]:
            print(f"eddy {line}", flush=True)
            args = parser.parse_args(shlex.split(line))
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
