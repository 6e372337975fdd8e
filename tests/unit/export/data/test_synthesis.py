"""Synthetic voices by the real espeak-ng, what they say, and how their sound is made worse."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.data.distort import Distortion, distort, noise
from export.data.prompts import CHARACTERS, RATE
from export.data.synthesis import Request, cast, phonemes, resample, speak
from pipeline.errors import ConfigError


@pytest.fixture(scope="module")
def espeak() -> None:
    """By hand a machine with neither espeak-ng nor apt may skip; CI may not."""
    if not os.environ.get("CI") and not (shutil.which("espeak-ng") or shutil.which("apt-get")):
        pytest.skip("no espeak-ng on this machine, and no apt-get to fetch it with")


@pytest.mark.usefixtures("espeak")
def test_a_voice_says_the_same_twice_and_is_kept() -> None:
    requests = [Request("seven", "en-us+f2", 150, 50), Request("one two", "en-gb+m3", 170, 40)]
    first = speak(requests)
    assert [0.3 < len(sound) / RATE < 2.5 for sound in first] == [True, True]
    assert all(np.abs(sound).max() > 3000 for sound in first)
    again = speak(requests)
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert len(speak([Request("seven", "en-us+f2", 90, 50)])[0]) > len(first[0])


@pytest.mark.usefixtures("espeak")
def test_words_have_sounds() -> None:
    found = phonemes(["fourteen", "cat", "don't"])
    assert found["cat"] == ("k", "a", "t")
    assert found["fourteen"] == ("f", "o@", "t", "i:", "n")
    assert not any(set("',_ ") & set(sound) for word in found.values() for sound in word)


@pytest.mark.usefixtures("espeak")
def test_a_voice_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="tlh-nowhere"):
        speak([Request("seven", "tlh-nowhere", 150, 50)])


def test_the_cast_follows_from_the_seed() -> None:
    texts = ["a"] * 200
    assert cast(texts, 3) == cast(texts, 3)
    assert cast(texts, 3) != cast(texts, 4)
    kept = {r.voice.split("+")[1] for r in cast(texts, 3, women=None)}
    assert not kept & {r.voice.split("+")[1] for r in cast(texts, 3)}


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.int16)


@pytest.mark.parametrize(("given", "wanted"), [(22050, 8000), (8000, 16000), (8000, 8000)])
def test_a_change_of_rate_keeps_the_tone(given: int, wanted: int) -> None:
    found = resample(tone(1000, 0.5, given), given, wanted)
    right = tone(1000, 0.5, wanted)
    assert len(found) == len(right)
    inside = slice(wanted // 50, -wanted // 50)
    assert np.abs(found[inside].astype(int) - right[inside]).max() < 80
    high = resample(tone(3900, 0.5, given) + tone(10000, 0.5, given), given, wanted) if given > wanted else None
    assert high is None or np.abs(high[inside].astype(int) - tone(3900, 0.5, wanted)[inside]).max() < 200


def test_sound_is_made_worse_by_the_generator_alone() -> None:
    sound = tone(440, 1.0, RATE)
    same = distort(sound, Distortion(0, 0, 0, 0, 0, 0), np.random.default_rng(0))
    np.testing.assert_allclose(same, sound / 32768, atol=1e-6)
    how = Distortion(noise=1.0, line=1.0)
    a, b = (distort(sound, how, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert 0.85 < len(a) / len(sound) < 1.17
    low = tone(60, 1.0, RATE)
    narrow = distort(low, Distortion(0, 0, 0, 0, 0, line=1.0), np.random.default_rng(0))
    assert np.abs(narrow[800:-800]).max() < 0.01 * np.abs(low / 32768).max()
    assert noise(8000, np.random.default_rng(0)).std() == pytest.approx(1, abs=0.1)


def test_what_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from export.data import sayings

    file = tmp_path / "usr/share/dict/american-english-small"
    file.parent.mkdir(parents=True)
    file.write_text("aardvark\nAnn\ncat's\ncat\n", encoding="utf-8")
    monkeypatch.setattr(sayings, "debian", lambda name: tmp_path)
    assert sayings.word_list() == ["aardvark", "cat"]
    shares = {"digits": 0.2, "named": 0.2, "letters": 0.1, "words": 0.2, "prose": 0.2, "phrases": 0.1}
    texts = sayings.sayings(300, 1, shares, ["press the pound key"])
    assert texts == sayings.sayings(300, 1, shares, ["press the pound key"])
    assert all(text and set(text) <= set(CHARACTERS) for text in texts)
    assert any("pound key" in text for text in texts)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"american-english-small: .*expected a list of words"):
        sayings.word_list()
    file.write_text("1\n")
    with pytest.raises(ConfigError, match="no line of it is a word"):
        sayings.word_list()
