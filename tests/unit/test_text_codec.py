"""What the text codec makes of UTF-8 and of what is none, and which settings it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codecs.text import MEMORY_BYTES, TextCodec
from pipeline.columns import U8
from pipeline.contract import CodecSpec, StepInput
from pipeline.errors import ContractError
from tests.contracts import text_contract

ACCENTS = tuple("abcé€😀")


def fresh() -> U8:
    return np.zeros((4, MEMORY_BYTES), np.uint8)


def decode_all(
    codec: TextCodec, records: list[bytes], memory: U8 | None = None
) -> tuple[list[int], list[int], dict[int, str]]:
    """Tokens, counts and messages of records of stream 1, in one poll."""
    slots = np.ones(len(records), np.int64)
    steps = codec.decode(records, slots, fresh() if memory is None else memory)
    return steps.values[0].tolist(), steps.counts.tolist(), {i: str(e) for i, e in steps.failed.items()}


def test_characters_are_their_places_in_the_vocabulary() -> None:
    codec = TextCodec(text_contract(vocabulary=ACCENTS))
    assert decode_all(codec, [b"cab", "é😀".encode(), b"", b"a"]) == ([2, 0, 1, 3, 5, 0], [3, 2, 0, 1], {})


def test_an_unfinished_character_is_a_step_of_the_record_that_finishes_it() -> None:
    euro = "€".encode()
    for contract, tokens in (
        (text_contract(vocabulary=ACCENTS), ([0, 4, 1], [1, 0, 2])),
        (text_contract(unit="bytes"), ([97, *euro, 98], [1, 0, 4])),
    ):
        memory = fresh()
        codec = TextCodec(contract)
        assert decode_all(codec, [b"a" + euro[:1], euro[1:2], euro[2:] + b"b"], memory) == (*tokens, {})
        assert not memory.any()


def test_what_waits_is_in_the_row() -> None:
    memory = fresh()
    TextCodec(text_contract(vocabulary=ACCENTS)).decode([b"a" + "😀".encode()[:3]], np.array([1]), memory)
    assert memory[1].tolist() == [3, 0xF0, 0x9F, 0x98]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([b"ab\xff"], "no UTF-8 at position 2 of the record: bytes ff (invalid start byte)"),
        ([b"a\xc3(z"], "no UTF-8 at position 1 of the record: bytes c3 28 7a (invalid continuation byte)"),
        ([b"\xed\xa0"], "no UTF-8 at position 0 of the record: bytes ed a0 (invalid continuation byte)"),
        (
            [b"a\xe2\x82", b"b"],
            "no UTF-8 at position 0 of the record and before: bytes e2 82 62 (invalid continuation byte);"
            " dropped with it: bytes e2 82, held from an earlier record",
        ),
        (
            [b"\xc3", b"\xa9\xff"],
            "no UTF-8 at position 1 of the record: bytes ff (invalid start byte);"
            " dropped with it: bytes c3, held from an earlier record",
        ),
    ],
)
@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_bytes_that_can_never_be_utf8(unit: str, records: list[bytes], message: str) -> None:
    codec = TextCodec(text_contract(unit=unit, vocabulary=ACCENTS))
    last = len(records) - 1
    tokens, counts, failed = decode_all(codec, [*records, b"a"])
    assert failed == {last: message}
    assert counts[last:] == [0, 1]
    assert len(tokens) == sum(counts)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([b"abx"], "character 'x' (U+0078, character 2 of the record) is not among the model's 6"),
        (["aß".encode()], "character 'ß' (U+00DF, character 1 of the record) is not among the model's 6"),
        (["日".encode()], "character '日' (U+65E5, character 0 of the record) is not among the model's 6"),
    ],
)
def test_a_character_outside_the_vocabulary_without_an_unknown_token(records: list[bytes], message: str) -> None:
    codec = TextCodec(text_contract(vocabulary=ACCENTS))
    tokens, counts, failed = decode_all(codec, [b"a", *records, b"b"])
    assert failed == {1: message + ", and it has no token for others"}
    assert (tokens, counts) == ([0, 1], [1, 0, 1])


def test_a_stranger_takes_what_waited_with_it() -> None:
    codec = TextCodec(text_contract(vocabulary=ACCENTS))
    memory = fresh()
    tokens, counts, failed = decode_all(codec, [b"a\xc3", b"\x9fb\xe2", b"b"], memory)
    assert (tokens, counts) == ([0, 1], [1, 0, 1])
    assert failed[1].endswith("no token for others; dropped with it: bytes c3, held from an earlier record")
    assert not memory.any()


def test_the_unknown_token_stands_for_every_other_character() -> None:
    codec = TextCodec(text_contract(vocabulary=ACCENTS, unknown=6))
    assert decode_all(codec, ["axß日\U0010ffffé".encode()]) == ([0, 6, 6, 6, 6, 3], [6], {})
    inside = TextCodec(text_contract(vocabulary=ACCENTS, unknown=1))
    assert decode_all(inside, [b"ax"]) == ([0, 1], [2], {})


@given(st.lists(st.text(max_size=20), max_size=6))
def test_bytes_are_their_own_tokens(texts: list[str]) -> None:
    records = [t.encode() for t in texts]
    assert decode_all(TextCodec(text_contract(unit="bytes")), records) == (
        list(b"".join(records)),
        [len(r) for r in records],
        {},
    )


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_tokens_have_the_models_dtype(dtype: str) -> None:
    for contract in (text_contract(dtype=dtype), text_contract(unit="bytes", dtype=dtype)):
        codec = TextCodec(contract)
        for record in (b"ab", b"a\xc3"):
            assert codec.decode([record], np.array([1]), fresh()).values[0].dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "setting 'unit' is missing: expected 'characters', 'bytes' or 'tokens'"),
        ({"unit": "words"}, "setting 'unit' is 'words': expected 'characters', 'bytes' or 'tokens'"),
        ({"unit": ["bytes"]}, "setting 'unit' is ['bytes']: expected 'characters', 'bytes' or 'tokens'"),
        ({"unit": "bytes", "vocabulary": ["a"]}, "unknown setting 'vocabulary' (there are: unit)"),
        ({"unit": "characters"}, "setting 'vocabulary' is missing: expected a list of different characters"),
        ({"unit": "characters", "vocabulary": []}, "setting 'vocabulary' is []"),
        ({"unit": "characters", "vocabulary": "abc"}, "setting 'vocabulary' is 'abc'"),
        ({"unit": "characters", "vocabulary": ["a", "bc"]}, "setting 'vocabulary' is ['a', 'bc']"),
        ({"unit": "characters", "vocabulary": ["a", "a"]}, "setting 'vocabulary' is ['a', 'a']"),
        ({"unit": "characters", "vocabulary": ["a", 7]}, "setting 'vocabulary' is ['a', 7]"),
        ({"unit": "characters", "vocabulary": ["\ud800"]}, "setting 'vocabulary' is ['\\ud800']"),
        (
            {"unit": "characters", "vocabulary": ["a"], "unknown": -1},
            "setting 'unknown' is -1: expected a token or null",
        ),
        ({"unit": "characters", "vocabulary": ["a"], "unknown": True}, "setting 'unknown' is True"),
        ({"unit": "characters", "vocabulary": ["a"], "unknown": 2**31}, "setting 'unknown' is 2147483648"),
        ({"unit": "characters", "vocabulary": ["a"], "Unknown": 1}, "unknown setting 'Unknown'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        TextCodec(replace(text_contract(), codec=CodecSpec("text", settings=settings)))
    assert str(caught.value).startswith(f"contract of talk/1: codec text: {message}")


@pytest.mark.parametrize(
    "steps",
    [
        (StepInput("x", "float32"),),
        (StepInput("x", "int64", (1,)),),
        (StepInput("x", "int64"), StepInput("y", "int64")),
    ],
)
def test_the_model_must_take_tokens(steps: tuple[StepInput, ...]) -> None:
    with pytest.raises(ContractError, match=r"needs one step input of int64\[\] or int32\[\], the model has x "):
        TextCodec(replace(text_contract(), steps=steps))
