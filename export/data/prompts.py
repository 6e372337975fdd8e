"""The prompts of Asterisk: one human voice on the telephone, 25 minutes at 8 kHz, with what she says.

Debian packs the recordings (CC-BY-SA 3.0, Digium; the voice is Allison Smith's) and a list of transcripts, one a line.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.data.cache import debian
from pipeline.errors import ConfigError

PACKAGES = ("asterisk-core-sounds-en", "asterisk-core-sounds-en-wav")
LICENCE = "CC-BY-SA 3.0, Digium, Inc. (the Asterisk project), voice: Allison Smith"
SOURCE = "the prompts of Asterisk (Debian asterisk-core-sounds-en-wav and asterisk-core-sounds-en)"
RATE = 8000
"""Samples a second."""
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"
"""All that a transcript is made of."""
_TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_SMALL = (*_ONES.split(), "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class Prompt:
    """One recording: its name without ``.wav``, its words in ``CHARACTERS``, 16-bit mono samples ``[n]``."""

    name: str
    text: str
    pcm: NDArray[np.int16]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / RATE


@dataclass(frozen=True)
class Prompts:
    """All prompts by split. ``silent``: how many recordings were left out because nobody speaks in them."""

    train: tuple[Prompt, ...]
    develop: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    silent: int

    @property
    def all(self) -> tuple[Prompt, ...]:
        return self.train + self.develop + self.held_out


def load_prompts(sounds: Path | None = None, transcripts: Path | None = None) -> Prompts:
    """Reads ``sounds/NAME.wav`` and the list of lines ``NAME: TEXT`` (both of Debian's packages when not given).

    Held out is sha256(name) % 10 == 0, for development sha256(name) % 20 == 1, names being relative to ``sounds`` and
    without ``.wav``. Raises ConfigError naming the file, the line and what was expected.
    """
    sounds = sounds or debian(PACKAGES[1]) / _SOUNDS
    transcripts = transcripts or debian(PACKAGES[0]) / _TRANSCRIPTS
    spoken = read_transcripts(transcripts)
    files = sorted(sounds.rglob("*.wav"))
    if not files:
        raise ConfigError(f"{sounds}: no *.wav below it; expected the recordings of {PACKAGES[1]}")
    parts: dict[str, list[Prompt]] = {"train": [], "develop": [], "held_out": []}
    silent = 0
    for file in files:
        name = file.relative_to(sounds).with_suffix("").as_posix()
        if name not in spoken:
            raise ConfigError(f"{transcripts}: no line `{name}: TEXT` for {file}")
        if not spoken[name]:
            silent += 1
            continue
        parts[split_of(name)].append(Prompt(name, spoken[name], read_wav(file)))
    if missing := [part for part, prompts in parts.items() if not prompts]:
        raise ConfigError(
            f"{sounds}: of {len(files)} recordings none falls to {', '.join(missing)}; expected all splits"
        )
    return Prompts(tuple(parts["train"]), tuple(parts["develop"]), tuple(parts["held_out"]), silent)


def split_of(name: str) -> str:
    """``held_out``, ``develop`` or ``train``."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    return "held_out" if number % 10 == 0 else "develop" if number % 20 == 1 else "train"


def read_transcripts(file: Path) -> dict[str, str]:
    """Name -> normalised words of a list of lines ``NAME: TEXT``, gzipped or not; ``;`` begins a comment.

    Raises ConfigError with file, line and what was expected.
    """
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise ConfigError(f"{file}: {error}; expected a list of transcripts, lines `NAME: TEXT`") from None
    spoken: dict[str, str] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ConfigError(f"{file}, line {number}: not UTF-8; expected `NAME: TEXT`") from None
        if not text or text.startswith(";"):
            continue
        name, colon, said = text.partition(":")
        if not colon or not name or " " in name:
            raise ConfigError(f"{file}, line {number}: {text[:60]!r}; expected `NAME: TEXT`")
        if name in spoken:
            raise ConfigError(f"{file}, line {number}: {name!r} for the second time; expected each name once")
        spoken[name] = normalise(said)
    if not spoken:
        raise ConfigError(f"{file}: no line of it has a transcript; expected `NAME: TEXT`")
    return spoken


def normalise(text: str) -> str:
    """What is said, in ``CHARACTERS``: stage directions go, numbers become words, ``*`` and ``#`` are telephone keys.

    Numbers below a hundred and whole hundreds are read as such, others digit by digit.
    """
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", text.lower().replace("’", "'"))
    text = text.replace("*", " star ").replace("#", " pound ")
    text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    text = re.sub(r"\d+", lambda m: f" {_number(m[0])} ", text)
    text = re.sub(r"[^a-z']+", " ", text)
    return " ".join(word for word in (w.strip("'") for w in text.split()) if word)


def _number(digits: str) -> str:
    value = int(digits)
    if len(digits) > 2 and not (len(digits) == 3 and value % 100 == 0 and value):
        return " ".join(_SMALL[int(d)] for d in digits)
    if len(digits) == 3:
        return f"{_SMALL[value // 100]} hundred"
    if len(digits) == 2 and digits[0] == "0":
        return " ".join(_SMALL[int(d)] for d in digits)
    if value < 20:
        return _SMALL[value]
    return _TENS[value // 10 - 2] + (f" {_SMALL[value % 10]}" if value % 10 else "")


def read_wav(file: Path) -> NDArray[np.int16]:
    """Samples ``[n]`` of a 16-bit mono WAV file at ``RATE``. Raises ConfigError saying what the file is instead."""
    expected = f"expected 16-bit mono PCM at {RATE} Hz"
    try:
        with wave.open(str(file), "rb") as sound:
            shape = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            frames = sound.getnframes()
            data = sound.readframes(frames)
    except (OSError, EOFError, wave.Error) as error:
        raise ConfigError(f"{file}: {error or 'empty'}; {expected}") from None
    if shape != (1, 2, RATE):
        raise ConfigError(f"{file}: {shape[0]} channels of {8 * shape[1]} bits at {shape[2]} Hz; {expected}")
    if len(data) != 2 * frames or not frames:
        raise ConfigError(f"{file}: {len(data) // 2} of {frames} samples are there; {expected}, whole")
    return np.frombuffer(data, "<i2").astype(np.int16)


def digest(prompts: Sequence[Prompt]) -> str:
    """Of names, words and samples."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(f"{prompt.name}\0{prompt.text}\0".encode() + prompt.pcm.tobytes())
    return found.hexdigest()[:16]
