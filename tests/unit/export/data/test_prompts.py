"""Recorded prompts and their transcripts: how they are read, how they are split, and what is said of bad ones."""

from __future__ import annotations

import gzip
import wave
from pathlib import Path

import numpy as np
import pytest

from export.data.prompts import CHARACTERS, load_prompts, normalise, read_transcripts, read_wav, split_of
from pipeline.errors import ConfigError


def record(file: Path, samples: int = 800, rate: int = 8000, channels: int = 1, width: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(bytes(range(256)) * (samples * channels * width // 256 + 1))
    return file


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Press 7 to delete this message.", "press seven to delete this message"),
        ("letters/at: at [@]", "letters at at"),
        ("(10 seconds of silence)", ""),
        ("<beep ascending>", ""),
        ("then press the # key, or *", "then press the pound key or star"),
        ("a 28.8 kilobit modem", "a twenty eight point eight kilobit modem"),
        ("dial 500, 8500 or 10", "dial five hundred eight five zero zero or ten"),
        ("H.323", "h three two three"),
        ("zero 07, 90, 100", "zero zero seven ninety one hundred"),
        ("You’re 'here' o'clock", "you're here o'clock"),
        ("A.M. exclaimation-point [!]", "a m exclaimation point"),
    ],
)
def test_what_is_said(written: str, said: str) -> None:
    assert normalise(written) == said
    assert set(said) <= set(CHARACTERS)


def test_prompts_are_split_by_name_and_silence_is_left_out(tmp_path: Path) -> None:
    names = [f"words/{i}" for i in range(60)]
    for name in (*names, "beep"):
        record(tmp_path / "sounds" / f"{name}.wav")
    lines = [
        "; a comment",
        "",
        *(f"{name}: Word {i}" for i, name in enumerate(names)),
        "beep: [a tone]",
        "absent: gone",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    prompts = load_prompts(tmp_path / "sounds", tmp_path / "list.txt")
    assert prompts.silent == 1
    assert sorted(p.name for p in prompts.all) == sorted(names)
    for part, found in (("train", prompts.train), ("develop", prompts.develop), ("held_out", prompts.held_out)):
        assert found
        assert all(split_of(p.name) == part for p in found)
    assert {p.name: p.text for p in prompts.all}["words/21"] == "word twenty one"
    assert prompts.train[0].pcm.dtype == np.int16


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: fine\nno colon here\n", r"list.txt, line 2: 'no colon here'; expected `NAME: TEXT`"),
        (b"a: fine\n\nb: \xff\n", r"list.txt, line 3: not UTF-8"),
        (b"a: one\na: two\n", r"list.txt, line 2: 'a' for the second time"),
        (b"; nothing\n", r"list.txt: no line of it has a transcript"),
    ],
)
def test_a_malformed_list_is_named_by_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_transcripts(tmp_path / "list.txt")


def test_a_list_that_is_no_gzip(tmp_path: Path) -> None:
    (tmp_path / "list.txt.gz").write_bytes(b"a: one\n")
    with pytest.raises(ConfigError, match=r"list\.txt\.gz: .*expected a list of transcripts"):
        read_transcripts(tmp_path / "list.txt.gz")
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(b"a: one\n"))
    assert read_transcripts(tmp_path / "list.txt.gz") == {"a": "one"}


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"rate": 16000}, "1 channels of 16 bits at 16000 Hz; expected 16-bit mono PCM at 8000 Hz"),
        ({"channels": 2}, "2 channels of 16 bits"),
        ({"width": 1}, "1 channels of 8 bits"),
    ],
)
def test_a_recording_of_another_shape(tmp_path: Path, shape: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=f"x.wav: {said}"):
        read_wav(record(tmp_path / "x.wav", **shape))


def test_a_recording_that_is_cut_off(tmp_path: Path) -> None:
    whole = record(tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(whole[:500])
    with pytest.raises(ConfigError, match=r"x.wav: \d+ of \d+ samples are there"):
        read_wav(tmp_path / "x.wav")
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    with pytest.raises(ConfigError, match=r"x.wav: .*expected 16-bit mono"):
        read_wav(tmp_path / "x.wav")


def test_a_recording_without_transcript_and_a_folder_without_recordings(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a: one\n")
    with pytest.raises(ConfigError, match=r"no \*.wav below it"):
        load_prompts(tmp_path, tmp_path / "list.txt")
    record(tmp_path / "b.wav")
    with pytest.raises(ConfigError, match=r"list.txt: no line `b: TEXT` for .*b.wav"):
        load_prompts(tmp_path, tmp_path / "list.txt")
