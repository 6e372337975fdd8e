"""Manual pages in twenty-one languages, as Debian ships them: what language is this?

A page is held out with all its translations, by the SHA-256 of its name. A paragraph that stands in several pages of a
language is kept with one of them, held-out pages first, so that nothing in a held-out page was ever trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from export.data.cache import debian_package
from export.data.roff import paragraphs
from pipeline.errors import ConfigError

Split = Literal["held_out", "develop", "train"]
SPLITS: tuple[Split, ...] = ("held_out", "develop", "train")

LANGUAGES = {
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "nb": "Norwegian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sr": "Serbian",
    "sv": "Swedish",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
"""ISO 639-1 code -> English name, in the order of the labels. Languages with fewer than eighty pages are left out."""

_PACKAGES = {"en": ("manpages", "manpages-dev"), "pt": ("manpages-pt-br",)}
PACKAGES = tuple(name for code in LANGUAGES for name in _PACKAGES.get(code, (f"manpages-{code}",)))

LICENCE = "the licences of the pages' authors, each named in its page (GPL, MIT, BSD, GFDL and others of Debian main)"

_SCRIPTS = {"ru": "CYRILLIC", "uk": "CYRILLIC", "sr": "CYRILLIC", "ja": "CJK HIRAGANA KATAKANA", "zh": "CJK"}
_LETTERS_AT_LEAST = 0.5
"""Of a paragraph's letters, in the language's own script where that is not Latin; the others are names of commands."""
_PROSE_AT_LEAST = 0.85
"""Of a paragraph's characters, letters and spaces; under it stand synopses, paths, numbers."""
_SHORTEST = {"ja": 20, "zh": 20}
_ENGLISH = re.compile(r"\b(?:the|and|this|that|which|with|are|from|will|not|be|been|should|when|you|your)\b", re.I)
"""Function words; where at least two of them make up a tenth of a paragraph, it was left untranslated."""
_STARTS_BEFORE_END = 100
"""A stream begins at least as many characters before the end of its page."""


@dataclass(frozen=True)
class Page:
    """One page in one language: its prose, paragraphs separated by line feeds."""

    name: str
    language: str
    text: str


def split_of(name: str) -> Split:
    """Of a page's name, section included (``ls.1``), in every language alike."""
    rest = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
    return "held_out" if rest == 0 else "develop" if rest == 1 else "train"


def load_pages(splits: Sequence[Split]) -> dict[Split, list[Page]]:
    """The pages of these splits, sorted by language and name. Fetches packages that the cache lacks.

    Raises ConfigError for a page that cannot be read, naming its file, and for a language without pages in a split.
    """
    wanted = SPLITS[: max(SPLITS.index(s) for s in splits) + 1]
    found: dict[Split, list[Page]] = {split: [] for split in wanted}
    for language in LANGUAGES:
        files = _files(language)
        seen: set[str] = set()
        for split in wanted:  # held out first: it keeps what it shares with others
            for name in sorted(n for n in files if split_of(n) == split):
                kept = [p for p in _prose(files[name], language) if p not in seen]
                seen.update(kept)
                text = "\n".join(kept)
                if len(text) >= 2 * _STARTS_BEFORE_END:
                    found[split].append(Page(name, language, text))
            if not any(page.language == language for page in found[split]):
                raise ConfigError(
                    f"{', '.join(_PACKAGES.get(language, (f'manpages-{language}',)))}: no page with prose in the split"
                    f" {split}; delete it from the cache and run `make data`"
                )
    return {split: found[split] for split in splits}


def describe(pages: Sequence[Page]) -> str:
    """How many, in how many languages, with how many characters."""
    return (
        f"{len(pages):,} pages in {len({p.language for p in pages})} languages,"
        f" {sum(len(p.text) for p in pages):,} characters"
    )


def versions() -> str:
    """The packages read and their versions, for a card."""
    return ", ".join(f"{name} {debian_package(name).version}" for name in PACKAGES)


def digest(pages: Sequence[Page]) -> str:
    """Of every name, language and text, so that a run is only resumed on the data it began with."""
    found = hashlib.sha256()
    for page in pages:
        for part in (page.name, page.language, page.text):
            found.update(part.encode() + b"\0")
    return found.hexdigest()[:16]


def streams(pages: Sequence[Page], each: int, characters: int, seed: int) -> list[tuple[str, int]]:
    """``each`` streams a language, which begin at random places of random pages -> text of ``characters``, label.

    Places are drawn evenly over all characters of a language, so a long page gives more streams than a short one.
    """
    random = np.random.default_rng(seed)
    found = []
    for label, language in enumerate(LANGUAGES):
        texts = [p.text for p in pages if p.language == language]
        room = np.array([len(t) - characters for t in texts]).clip(min=0)
        for page in random.choice(len(texts), each, p=room / room.sum()):
            start = int(random.integers(room[page]))
            found.append((texts[page][start : start + characters], label))
    return found


def _files(language: str) -> dict[str, Path]:
    """Page name -> file; of several with one name (variants of a language) the first."""
    found: dict[str, Path] = {}
    for package in _PACKAGES.get(language, (f"manpages-{language}",)):
        man = debian_package(package).root / "usr/share/man"
        for file in sorted(man.rglob("man?/*.gz")):
            if file.is_file() and not file.is_symlink():
                found.setdefault(file.name.removesuffix(".gz"), file)
    return found


def _prose(file: Path, language: str) -> Iterator[str]:
    try:
        source = gzip.decompress(file.read_bytes()).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected a manual page in UTF-8, compressed by gzip: {error}") from None
    return (p for p in paragraphs(source) if is_prose(p, language))


def is_prose(text: str, language: str) -> bool:
    """Whether a paragraph is running text, and in the language of its page."""
    letters = [c for c in text if c.isalpha()]
    if len(text) < _SHORTEST.get(language, 40) or len(letters) + text.count(" ") < _PROSE_AT_LEAST * len(text):
        return False
    if script := _SCRIPTS.get(language):
        own = sum(_script(c) in script for c in letters)
        return own >= _LETTERS_AT_LEAST * len(letters)
    return language == "en" or len(_ENGLISH.findall(text)) < max(2, len(text.split()) / 10)


def _script(letter: str) -> str:
    return unicodedata.name(letter, "NONE").split()[0]
