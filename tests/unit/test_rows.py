"""Rows of numbers at once are the bytes that aiokafka reads and writes field by field."""

from __future__ import annotations

from io import BytesIO

import pytest
from aiokafka.protocol.produce import ProduceRequest_v7
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest_v0
from aiokafka.protocol.types import Array, CompactArray, CompactString, Int16, Int32, Int64, TaggedFields
from hypothesis import given
from hypothesis import strategies as st

from pipeline.transport.kafka import wire
from pipeline.transport.kafka.rows import CompactRows, Numbers, OffsetRows, Rows

i16, i32, i64 = (st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (16, 32, 64))
FIELDS = (("a", Int32), ("b", Int16), ("c", Int64))
rows = st.lists(st.tuples(i32, i16, i64), max_size=200)


@given(rows)
def test_rows(items: list[tuple[int, int, int]]) -> None:
    ours, theirs = Rows(*FIELDS), Array(*FIELDS)
    encoded = theirs.encode(items)
    assert ours.encode(items) == encoded
    data = BytesIO(encoded + b"rest")
    assert ours.decode(data) == items
    assert data.read() == b"rest"


@given(rows, st.integers(0, 3))
def test_compact_rows_with_and_without_tags(items: list[tuple[int, int, int]], tagged: int) -> None:
    ours, theirs = CompactRows(*FIELDS), CompactArray(*FIELDS, ("tags", TaggedFields))
    tags = b"\x01\x05\x02zz"  # one, of number 5 and two bytes
    body = b"".join(
        Int32.encode(a) + Int16.encode(b) + Int64.encode(c) + (tags if tagged and i % 4 == tagged else b"\0")
        for i, (a, b, c) in enumerate(items)
    )
    data = theirs.encode([])[:0] + CompactArray(Int32).encode([0] * len(items))[: -4 * len(items) or None] + body
    left, right = BytesIO(data + b"rest"), BytesIO(data + b"rest")
    assert ours.decode(left) == theirs.decode(right)
    assert left.read() == right.read() == b"rest"


@given(st.lists(st.tuples(i32, i64, i32, st.text(max_size=300)), max_size=50))
def test_offsets(items: list[tuple[int, int, int, str]]) -> None:
    fields = (("p", Int32), ("o", Int64), ("e", Int32), ("m", CompactString("utf-8")), ("tags", TaggedFields))
    full = [(*item, {}) for item in items]
    assert OffsetRows(*fields).encode(full) == CompactArray(*fields).encode(full)


def test_nulls_and_answers_that_are_cut() -> None:
    for ours, theirs in ((Rows(*FIELDS), Array(*FIELDS)), (Numbers(), Array(Int32))):
        assert ours.encode(None) == theirs.encode(None)
        assert ours.decode(BytesIO(theirs.encode(None))) is None
    assert CompactRows(*FIELDS).decode(BytesIO(b"\0")) is None
    with pytest.raises(ValueError, match="ends after 5 of 28 bytes"):
        Rows(*FIELDS).decode(BytesIO(b"\0\0\0\x02hello"))
    with pytest.raises(ValueError, match=r"underrun|unpack"):
        CompactRows(*FIELDS).decode(BytesIO(b"\x03hello"))


def test_whole_requests_and_answers() -> None:
    topics = [("out", [0, 3, 63]), ("\u00e9", [2**31 - 1])]
    ours = wire.AddPartitionsToTxnRequestV0("lane", 77, 5, topics)
    theirs = AddPartitionsToTxnRequest_v0("lane", 77, 5, topics)
    assert ours.encode() == theirs.encode()
    answers = [("out", [(0, 0), (63, 55)]), ("x", [])]
    data = theirs.RESPONSE_TYPE(9, answers).encode()
    assert wire.AddPartitionsToTxnResponseV0.decode(data).errors == answers
    produced = [("out", [(3, 0, 2**40, -1, 7), (4, 45, -1, -1, -1)])]
    data = ProduceRequest_v7.RESPONSE_TYPE(produced, 0).encode()
    assert wire.ProduceResponseV7.decode(data).topics == produced
