"""Text to learn from: where it comes from, how it is cut, and what its tokens are.

The held-out part is scored once, for the model card; the development part draws the loss curve and picks the weights.
"""

from __future__ import annotations

import hashlib
import lzma
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from export.data.subwords import Subwords
from pipeline.errors import ConfigError

UNKNOWN = "\ufffd"
"""Stands in an alphabet for every character that is not in it."""
BREAK = "\n"
"""What a text is taken to begin after: the first character is predicted, and scored, from it."""
CODE_POINTS = 0x110000
PYTHON_TOPICS = "python-topics"


@dataclass(frozen=True)
class Corpus:
    """One text in three parts."""

    data: str
    """What `--data` said: ``python-topics``, or a path."""
    source: str
    """One sentence for the model card: what it is, in which version, and how it was cut."""
    licence: str
    train: str
    develop: str
    held_out: str

    @property
    def digest(self) -> str:
        """Changes with any character of it."""
        return hashlib.sha256("\0".join((self.train, self.develop, self.held_out)).encode()).hexdigest()


@dataclass(frozen=True)
class Alphabet:
    """Which token a character is. ``characters`` None: tokens are the bytes of UTF-8."""

    characters: tuple[str, ...] | None

    @staticmethod
    def of(text: str, least: int = 4) -> Alphabet:
        """Characters that occur at least ``least`` times, by code point, and one for all others.

        The rare ones are left out so that the token of the unknown is met in training.
        """
        counts = Counter(text)
        known = sorted(c for c, n in counts.items() if n >= least and c != UNKNOWN)
        return Alphabet((*known, UNKNOWN))

    @staticmethod
    def read(characters: Sequence[str] | None) -> Alphabet:
        """As a contract or a checkpoint holds it."""
        return Alphabet(None if characters is None else tuple(characters))

    @property
    def saved(self) -> list[str] | None:
        """For a checkpoint."""
        return None if self.characters is None else list(self.characters)

    @property
    def size(self) -> int:
        return 256 if self.characters is None else len(self.characters)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Tokens, int64 ``[n]``."""
        if self.characters is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        table = np.full(CODE_POINTS, self.characters.index(UNKNOWN), np.int64)
        table[[ord(c) for c in self.characters]] = np.arange(len(self.characters))
        return table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]

    def settings(self) -> dict[str, Any]:
        """The text codec's settings in the contract."""
        if self.characters is None:
            return {"unit": "bytes"}
        return {
            "unit": "characters",
            "vocabulary": list(self.characters),
            "unknown": self.characters.index(UNKNOWN),
        }

    def hidden_bits(self, text: str) -> float:
        """Bits needed to say which characters the unknown tokens of ``text`` were: all code points equally likely."""
        if self.characters is None:
            return 0.0
        known = set(self.characters)
        return float(sum(c not in known for c in text) * np.log2(CODE_POINTS))


Units: TypeAlias = Alphabet | Subwords
"""What a text's tokens are."""


def read_units(saved: Any) -> Units:
    """As a checkpoint holds them (``saved``)."""
    return Subwords(saved["tokenizer"]) if isinstance(saved, dict) else Alphabet.read(saved)


def begun(units: Units, text: str) -> NDArray[np.int64]:
    """Tokens of a break, from which the first of a text is predicted, and of the text."""
    return np.concatenate([units.encode(BREAK), units.encode(text)])


def python_topics() -> Corpus:
    """Python's reference topics, sorted by name: the last tenth of them held out, every twentieth of the rest for
    development. (Topics repeat each other's paragraphs: neighbours alone would say little of the others.)"""
    from pydoc_data.topics import topics

    names = sorted(topics)
    held = round(len(names) * 0.1)
    rest = names[:-held]
    develop = rest[9::20]

    def join(part: list[str]) -> str:
        return BREAK.join(topics[n] for n in part)

    return Corpus(
        data=PYTHON_TOPICS,
        source=(
            f"the reference topics of Python {platform.python_version()} (`pydoc_data.topics`), {len(names)} of them,"
            f" sorted by name: the last {held} held out, every twentieth of the rest for development"
            f" ({', '.join(develop)})"
        ),
        licence="PSF-2.0",
        train=join([n for n in rest if n not in develop]),
        develop=join(develop),
        held_out=join(names[-held:]),
    )


def text_file(path: Path) -> Corpus:
    """A UTF-8 file: its last tenth held out, the twentieth before it for development.

    Raises ConfigError for a file that cannot be read, is not UTF-8, or is too short to be cut.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--data {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--data {path}: not UTF-8 (byte {error.start}); convert it first") from None
    if len(text) < 1000:
        raise ConfigError(f"--data {path}: {len(text)} characters are too few to train on; give at least 1000")
    a, b = len(text) * 85 // 100, len(text) * 90 // 100
    return Corpus(
        data=str(path),
        source=(
            f"`{path.name}`, {len(text)} characters: the last tenth held out, the twentieth before it for development"
        ),
        licence="that of the text",
        train=text[:a],
        develop=text[a:b],
        held_out=text[b:],
    )


def load_corpus(data: str) -> Corpus:
    """``python-topics`` or the path of a UTF-8 file."""
    return python_topics() if data == PYTHON_TOPICS else text_file(Path(data))


def xz_bits_per_character(corpus: Corpus) -> float:
    """What `xz -9e` needs for a character of the held-out text when it has seen all the rest."""
    rest = (corpus.train + BREAK + corpus.develop + BREAK).encode()

    def size(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    return 8 * (size(rest + corpus.held_out.encode()) - size(rest)) / len(corpus.held_out)
