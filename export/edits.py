"""How wrong a text is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rates:
    """Errors of many texts together, edits per character and per word of what was wanted."""

    cer: float
    wer: float


def rates(found: Sequence[str], wanted: Sequence[str]) -> Rates:
    """Text by text; ``wanted`` must have a word."""
    characters = sum(edits(a, b) for a, b in zip(found, wanted, strict=True))
    words = sum(edits(a.split(), b.split()) for a, b in zip(found, wanted, strict=True))
    return Rates(characters / sum(map(len, wanted)), words / sum(len(b.split()) for b in wanted))


def edits(found: Sequence[Any], wanted: Sequence[Any]) -> int:
    """Least number of insertions, deletions and replacements that make one sequence the other (Levenshtein, 1966)."""
    row = list(range(len(wanted) + 1))
    for i, x in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
