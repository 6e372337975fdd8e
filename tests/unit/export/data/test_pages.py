"""The manual pages of all languages, real ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from export.data.pages import LANGUAGES, PACKAGES, Page, digest, is_prose, load_pages, split_of, streams
from pipeline.errors import ConfigError


@pytest.fixture(scope="module")
def held_out() -> list[Page]:
    return load_pages(["held_out"])["held_out"]


def test_held_out_pages_are_held_out_in_every_language(held_out: list[Page]) -> None:
    assert all(int(hashlib.sha256(p.name.encode()).hexdigest(), 16) % 10 == 0 for p in held_out)
    assert {p.language for p in held_out} == set(LANGUAGES)
    translated = Counter(p.name for p in held_out)
    assert max(translated.values()) > 10, "one page in many languages falls to one side"


def test_nothing_of_a_held_out_page_is_trained_on(held_out: list[Page]) -> None:
    parts = load_pages(["train", "develop", "held_out"])
    assert parts["held_out"] == held_out, "the same text, whichever splits are read"
    paragraphs = [
        {(p.language, line) for p in pages for line in p.text.split("\n")}
        for pages in (parts["held_out"], parts["develop"], parts["train"])
    ]
    assert not paragraphs[0] & paragraphs[1]
    assert not paragraphs[0] & paragraphs[2]
    assert not paragraphs[1] & paragraphs[2]


def test_text_is_prose_without_markup(held_out: list[Page]) -> None:
    text = "\n".join(p.text for p in held_out)
    assert not re.search(r"\\f[BIRP]|\n\.(PP|SH|TP|B|I|br)\b|  ", text)


def test_streams_begin_anywhere_and_are_repeatable(held_out: list[Page]) -> None:
    found = streams(held_out, 5, 100, seed=3)
    assert found == streams(held_out, 5, 100, seed=3) != streams(held_out, 5, 100, seed=4)
    assert Counter(label for _, label in found) == dict.fromkeys(range(len(LANGUAGES)), 5)
    assert {len(text) for text, _ in found} == {100}
    assert any(text[0].islower() for text, _ in found), "not only where paragraphs begin"


def test_digest_tells_data_apart(held_out: list[Page]) -> None:
    assert digest(held_out) != digest(held_out[:-1])


def test_split_goes_by_the_name() -> None:
    assert {split_of(f"{i}.1") for i in range(100)} == {"held_out", "develop", "train"}


@pytest.mark.parametrize(
    ("language", "text", "kept"),
    [
        ("da", "Vis filnavne og deres størrelser i den rækkefølge, som de blev fundet i.", True),
        ("da", "This paragraph was left as it is by those who translated the rest of the page.", False),
        ("en", "This paragraph was left as it is by those who translated the rest of the page.", True),
        ("en", "foo [-abcdef] [--long=N] [--other={a,b,c}] /usr/bin/x 0x1234 1234 5678", False),
        ("ru", "Программа выводит содержимое каталога в алфавитном порядке.", True),
        ("ru", "struct stat member, unsigned long flags, unsigned int mode", False),
        ("ja", "このコマンドはファイルの一覧を標準出力に表示する。", True),
        ("en", "Too short.", False),
    ],
)
def test_prose(language: str, text: str, kept: bool) -> None:
    assert is_prose(text, language) is kept


def test_page_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDDY_CACHE", str(tmp_path))
    for name in PACKAGES:
        folder = tmp_path / "data" / "debian" / name
        (folder / "root").mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"name": name, "version": "1", "source": name}))
    with pytest.raises(ConfigError, match=r"manpages-cs: no page with prose in the split held_out.*make data"):
        load_pages(["held_out"])
    names = [f"{i}.1" for i in range(100) if split_of(f"{i}.1") == "held_out"]
    page = tmp_path / "data/debian/manpages-cs/root/usr/share/man/cs/man1" / f"{names[0]}.gz"
    page.parent.mkdir(parents=True)
    page.write_bytes(gzip.compress(b".TH A\n\xff\n"))
    with pytest.raises(ConfigError, match=rf"{names[0]}\.gz: expected a manual page in UTF-8"):
        load_pages(["held_out"])
