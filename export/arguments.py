"""What the commands of training and export share in reading their arguments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


def add_codec_and_head(parser: argparse.ArgumentParser) -> None:
    """Adds what is said of a model folder to be written: how it is read, how it answers, how equal it must be."""
    add = parser.add_argument
    add("--codec", default="tensor", help="tensor, text, audio or video [tensor]")
    add("--tokenizer", type=Path, metavar="FILE", help="the codec text takes the tokens of this tokenizer.json")
    add("--codec-setting", action="append", default=[], metavar="KEY=VALUE", help="JSON, text or @FILE of JSON; repeat")
    add("--head", default="tensor", help="tensor, classify, generate or transcribe [tensor]")
    add("--head-setting", action="append", default=[], metavar="KEY=VALUE", help="the same for the head")
    add("--head-output", metavar="NAME", help="output that feeds the head [all, or the only one]")
    add("--labels", default="", metavar="A,B", help="classes of classify and transcribe; @FILE has one a line")
    add("--tolerance", type=float, metavar="X", help="largest relative difference [1e-4; 5e-3 with float16]")


def words_of(text: str) -> list[str]:
    """``a, b`` -> a and b."""
    return [word.strip() for word in text.split(",") if word.strip()]


def labels_of(text: str) -> Iterable[str]:
    """``a,b``, or ``@FILE`` with one a line. Raises ConfigError."""
    return _read(text[1:], "--labels").splitlines() if text.startswith("@") else words_of(text)


def settings_of(pairs: list[str], flag: str) -> dict[str, Any]:
    """``KEY=VALUE``: JSON where it can be read as such, else text; ``@FILE`` holds JSON. Raises ConfigError."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} {pair!r}: expected KEY=VALUE")
        from_file = value.startswith("@")
        text = _read(value[1:], flag) if from_file else value
        try:
            settings[key] = json.loads(text)
        except ValueError as error:
            if from_file:
                raise ConfigError(f"{flag} {pair!r}: the file is not JSON ({error})") from None
            settings[key] = text
    return settings


def _read(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} @{path}: cannot be read ({error.strerror})") from None
