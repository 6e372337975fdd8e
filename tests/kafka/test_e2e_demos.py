"""Every application as `eddy demo NAME` shows it: shipped models, a real Kafka, no torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from export.edits import edits
from services.broker import Broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
FIGURES = (
    r"streams, [\d,]+ steps, mean realised batch [\d.]+.*, latency p50 [\d.]+ ms, p99 [\d.]+ ms \(.*\); [\d.]+ s in all"
)


@pytest.fixture
def without_torch(tmp_path: Path) -> Path:
    """A folder to put on the path: whoever imports torch ends."""
    (tmp_path / "torch.py").write_text("raise ImportError('serving needs no torch')\n")
    return tmp_path


def shown(name: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "services", "demo", name],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"transport Apache Kafka .*: \d+ {FIGURES}", done.stdout.splitlines()[-1]), done.stdout
    return done.stdout


def found(pattern: str, text: str) -> tuple[int, ...]:
    match = re.search(pattern, text)
    assert match is not None, text
    return tuple(map(int, match.groups()))


def test_text_is_generated(broker: Broker, without_torch: Path) -> None:
    assert "The for statement is used to " in " ".join(shown("text", without_torch).split())


def test_languages_are_told_apart(broker: Broker, without_torch: Path) -> None:
    right, all_of_them = found(r"(\d+) of (\d+) documents in the right language", shown("language", without_torch))
    assert right >= all_of_them - 2


def test_the_sentiment_of_messages_is_heard(broker: Broker, without_torch: Path) -> None:
    right, messages = found(r"(\d+) of (\d+) messages labelled", shown("sentiment", without_torch))
    assert right >= 0.7 * messages


def test_speech_is_written_down(broker: Broker, without_torch: Path) -> None:
    text = shown("speech", without_torch)
    pairs = re.findall(r"^  said   (.*)\n  heard  (.*)$", text, re.M)
    assert len(pairs) == 6
    wrong = sum(edits(heard, said) for said, heard in pairs)
    assert wrong < 0.35 * sum(len(said) for said, _ in pairs), text


def test_one_frame_does_not_tell_where_a_digit_goes(broker: Broker, without_torch: Path) -> None:
    first, _, _, last, streams = found(
        r"right for (\d+) after 1, (\d+) after 2, (\d+) after 4, (\d+) after 8 frames, of (\d+)",
        shown("video", without_torch),
    )
    assert last >= streams - 2
    assert first <= streams // 2
