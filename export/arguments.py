"""What the commands of training and export share in reading their arguments."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from pipeline.errors import ConfigError

PRECISIONS = ("float32", "float16", "int8")
"""That the weights of a model file can be stored in."""
Commands = argparse._SubParsersAction


def number(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, flag: str, default: float, low: float, text: str
) -> None:
    """Adds a flag that takes a number of the default's type, at least ``low``; the help ends with the default."""
    kind = type(default)

    def convert(word: str) -> float:
        value = kind(word)
        if not value >= low:
            raise argparse.ArgumentTypeError(f"{word} is less than {low:g}")
        return value

    convert.__name__ = kind.__name__
    parser.add_argument(flag, type=convert, default=default, metavar="N", help=f"{text} [{default:g}]")


def need(command: str, *packages: str, extra: str = "export") -> None:
    """Raises ConfigError that names the extra, in place of an ImportError deep inside."""
    missing = [p for p in packages if find_spec(p) is None]
    if missing:
        raise ConfigError(f"eddy {command} needs {' and '.join(missing)}: pip install 'eddy-streams[{extra}]'")
