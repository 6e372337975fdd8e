"""What the synthetic voices say: digits, numbers, dates and letters, single words, and stretches of prose."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from export.data.cache import debian
from export.data.prompts import normalise
from export.data.topics import load_corpus
from pipeline.errors import ConfigError

PACKAGES = ("wamerican-small",)
SOURCE = "digits, numbers, dates, letters, Python's reference topics and Debian's word list wamerican-small"
_WORDS = "usr/share/dict/american-english-small"
DIGITS = "zero one two three four five six seven eight nine"
_LETTERS = list("abcdefghijklmnopqrstuvwxyz")
_NAMED = (
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty"
    " seventy eighty ninety hundred thousand million billion first second third fourth fifth sixth seventh eighth ninth"
    " tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
    " thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth hundredth thousandth millionth sunday monday"
    " tuesday wednesday thursday friday saturday january february march april may june july august september october"
    " november december minus plus equals today tomorrow yesterday noon midnight at oh dollars cents percent star pound"
    " dash dot comma colon slash space zed quote bracket brace left right open close question mark"
)
_PROSE_WORDS = 8
"""Of a stretch of prose, at most."""


def sayings(count: int, seed: int, shares: dict[str, float], phrases: Sequence[str] = ()) -> list[str]:
    """``count`` texts drawn from the seed. ``shares`` of the kinds ``digits``, ``named`` (numbers, dates, signs),
    ``letters``, ``words``, ``prose`` and ``phrases`` (stretches of the phrases given) add up to 1.

    Raises ConfigError when the word list cannot be had.
    """
    rng = np.random.default_rng([seed, 31])
    digits, named = DIGITS.split(), _NAMED.split()
    words, prose = word_list(), normalise(load_corpus("python-topics").train).split()

    def some(of: Sequence[str], least: int, most: int) -> str:
        return " ".join(of[i] for i in rng.integers(len(of), size=rng.integers(least, most + 1)))

    def stretch(of: Sequence[str], most: int) -> str:
        size = int(rng.integers(2, most + 1))
        at = int(rng.integers(max(1, len(of) - size + 1)))
        return " ".join(of[at : at + size])

    kinds = list(shares)
    drawn = rng.choice(len(kinds), size=count, p=[shares[k] for k in kinds])
    texts = []
    for kind in (kinds[i] for i in drawn):
        if kind == "digits":
            texts.append(some(digits, 1, 4))
        elif kind == "named":
            texts.append(some(named, 1, 2))
        elif kind == "letters":
            texts.append(some(_LETTERS, 1, 3))
        elif kind == "words":
            texts.append(some(words, 1, 3))
        elif kind == "prose":
            texts.append(stretch(prose, _PROSE_WORDS))
        else:
            texts.append(stretch(phrases[int(rng.integers(len(phrases)))].split(), 2 * _PROSE_WORDS))
    return texts


def prose_lines() -> list[str]:
    """Sentences of Python's reference topics, three to thirty words, as they would be said."""
    text = load_corpus("python-topics").train
    said = [normalise(part) for part in re.split(r"(?<=[.:;!?])\s+|\n\s*\n|``[^`]*``", text)]
    return [line for line in said if 3 <= len(line.split()) <= 30]


def word_list() -> list[str]:
    """The list's words of at least three letters, without names and possessives. Raises ConfigError."""
    file = debian(PACKAGES[0]) / _WORDS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: {error}; expected a list of words, one a line, of the package {PACKAGES[0]}"
        ) from None
    words = [word for word in lines if re.fullmatch("[a-z]{3,12}", word)]
    if not words:
        raise ConfigError(f"{file}: no line of it is a word; expected one a line")
    return words
