"""What a transcript is made of: the labels of the model, where utterances end, and the answers that say them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipeline.codecs.settings import Settings, is_integer, is_text
from pipeline.columns import I64
from pipeline.contract import Contract

HOUR_S = 3600.0
BYTES_MIN, BYTES_MAX = 16, 2000
"""Of an utterance's text; it is in the row, and so in every snapshot."""
MICRO = 1_000_000
"""Logarithms of probabilities are added up as whole numbers: the sum is the same wherever a stream is cut."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the classes of the output stand for: exactly one, the blank, is the empty text."""

    texts: tuple[str, ...]
    blank: int
    space: int
    """-1 where there is none."""

    @property
    def bytes_max(self) -> int:
        """Of the longest label, UTF-8."""
        return max(len(text.encode()) for text in self.texts)

    @staticmethod
    def of(contract: Contract, classes: int, settings: Settings) -> Labels:
        """Raises ContractError."""
        texts = contract.head.labels
        for text in texts:
            if not is_text(text):
                raise settings.error(f"label {text!r} is no text")
        if len(texts) != classes:
            raise settings.error(f"{len(texts)} labels for an output of {classes} classes: they must be as many")
        if texts.count("") != 1:
            raise settings.error(f"{texts.count('')} of the labels are empty: exactly one must be, the blank")
        doubled = sorted({t for t in texts if texts.count(t) > 1})
        if doubled:
            raise settings.error(f"label {doubled[0]!r} is given twice")
        return Labels(tuple(texts), texts.index(""), texts.index(" ") if " " in texts else -1)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where utterances end."""

    silence: int
    """Steps of silence after speech."""
    steps: int
    """Of an utterance at most."""
    bytes: int
    """Of its text at most, UTF-8."""


@dataclass(slots=True)
class Answers:
    """What a poll's records say, in any order of the records; those of one record in order."""

    step_s: float
    index: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)

    def say(self, record: int, text: str, final: bool, begun: int, heard: int, confidence: float | None) -> None:
        """``text`` from step ``begun - 1`` to before step ``heard``."""
        shown = json.dumps(text, ensure_ascii=False)
        start, end = round((begun - 1) * self.step_s, 3), round(max(begun, heard) * self.step_s, 3)
        sure = "" if confidence is None else f',"confidence":{round(confidence, 4)}'
        self.index.append(record)
        self.values.append(
            f'{{"text":{shown},"final":{"true" if final else "false"},"start_s":{start},"end_s":{end}{sure}}}'.encode()
        )

    def in_order(self) -> tuple[I64, list[bytes | None]]:
        """By record."""
        index = np.array(self.index, np.int64)
        order = np.argsort(index, kind="stable")
        return index[order], [self.values[i] for i in order.tolist()]


def seconds(settings: Settings, name: str, default: float | None, low: float, high: float) -> float:
    """A number of seconds; required where ``default`` is None. Raises ContractError."""
    return real(settings, name, default, f"a number from {low:g} to {high:g}", lambda v: low <= v <= high)


def real(settings: Settings, name: str, default: float | None, expected: str, fits: Callable[[float], bool]) -> float:
    """A number, whole or not; required where ``default`` is None. Raises ContractError."""
    return float(settings.take(name, default, expected, lambda v: (is_integer(v) or isinstance(v, float)) and fits(v)))
