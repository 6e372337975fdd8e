"""Record batches built from columns say to aiokafka's parser exactly what the columns said."""

from __future__ import annotations

import numpy as np
import pytest
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import Headers, Records, as_list
from pipeline.transport.kafka.records import COMPRESSION, batches, varint, varint_column

HEADER_NAMES = ("eddy-model", "eddy-source", "ü", "x" * 70)
timestamps = st.integers(-1, 2**62)
names = st.sampled_from(HEADER_NAMES)
small = st.binary(max_size=90)


def expected_headers(records: Records, i: int) -> list[tuple[str, bytes]]:
    own: Headers = records.extra[i] if records.extra is not None else ()
    return [*records.constant, *((name, bytes(column[i])) for name, column in records.columns), *own]


def read_back(built: list[bytes]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for data in built:
        memory = MemoryRecords(data)
        batch = memory.next_batch()
        assert batch.validate_crc()
        assert batch.is_transactional
        assert (batch.producer_id, batch.base_offset) == (77, 0)
        parsed = list(batch)
        assert not memory.has_next()
        assert [r.offset for r in parsed] == list(range(len(parsed)))
        assert batch.next_offset == len(parsed)
        rows += [(r.key, r.value, r.timestamp, list(r.headers)) for r in parsed]
    return rows


@st.composite
def columns(draw: st.DrawFn) -> Records:
    n = draw(st.integers(1, 60))
    if draw(st.booleans()):
        keys: list[bytes | None] = draw(st.lists(st.binary(min_size=5, max_size=5), min_size=n, max_size=n))
    else:
        keys = draw(st.lists(st.sampled_from([b"", b"a", b"bc", b"x" * 200]), min_size=n, max_size=n))
    kind = draw(st.sampled_from(["matrix", "list", "nulls"]))
    if kind == "matrix":
        width = draw(st.sampled_from([0, 1, 63, 64, 300]))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        values: np.ndarray | list[bytes | None] = rng.integers(0, 256, (n, width), dtype=np.uint8)
    else:
        items = small if kind == "list" else st.none() | small
        values = draw(st.lists(items, min_size=n, max_size=n))
    if kind == "nulls" and draw(st.booleans()):
        keys = [None if i % 3 == 0 else key for i, key in enumerate(keys)]
    times = np.array(draw(st.lists(timestamps, min_size=n, max_size=n)), np.int64)
    constant = tuple(draw(st.lists(st.tuples(names, small), max_size=2)))
    widths = draw(st.lists(st.sampled_from([0, 1, 12, 70]), max_size=2))
    of_columns = tuple((f"c{i}", np.full((n, w), i, np.uint8)) for i, w in enumerate(widths))
    extra = draw(st.none() | st.lists(st.lists(st.tuples(names, small), max_size=2), min_size=n, max_size=n))
    return Records(keys, values, times, constant, of_columns, extra)


@settings(max_examples=300, deadline=None)
@given(columns(), st.sampled_from(sorted(COMPRESSION)), st.sampled_from([200, 2_000, 900_000]))
def test_what_is_built_is_what_was_given(records: Records, compression: str, limit: int) -> None:
    built = batches(records, compression, limit)
    rows = read_back([batch.signed(77, 3, 0) for batch in built])
    values = as_list(records.values)
    assert rows == [
        (records.keys[i], values[i], int(records.timestamps[i]), expected_headers(records, i))
        for i in range(len(records))
    ]
    assert sum(batch.count for batch in built) == len(records)
    for batch in built:
        assert len(batch) <= limit or batch.count == 1 or compression != "none"


@pytest.mark.parametrize("shapes", [1, 3, 400])
def test_each_road_gives_the_same_records(shapes: int) -> None:
    n = 3_000
    keys: list[bytes | None] = [b"k" * (i % shapes) + b"%05d" % i for i in range(n)]
    values = np.arange(n * 8, dtype=np.uint8).reshape(n, 8)
    times = np.arange(n)[::-1] * 3 + 1_700_000_000_000
    source = np.arange(n * 12, dtype=np.uint8).reshape(n, 12)
    records = Records(keys, values, times, (("m", b"1"),), (("s", source),))
    rows = read_back([batch.signed(77, 0, 0) for batch in batches(records)])
    assert rows == [
        (keys[i], bytes(values[i]), int(times[i]), [("m", b"1"), ("s", bytes(source[i]))]) for i in range(n)
    ]


@pytest.mark.parametrize("shapes", [1, 3])
def test_batches_stay_below_the_limit_and_are_not_small(shapes: int) -> None:
    n = 5_000
    keys: list[bytes | None] = [b"k" * (i % shapes) + b"%05d" % i for i in range(n)]
    built = batches(Records(keys, np.zeros((n, 500), np.uint8), np.zeros(n, np.int64)), limit=100_000)
    assert all(len(batch) <= 100_000 for batch in built)
    assert all(len(batch) > 85_000 for batch in built[:-1])


def test_a_record_larger_than_a_batch_goes_alone() -> None:
    values: list[bytes | None] = [b"small", b"x" * 50_000, b"small"]
    built = batches(Records([b"a", b"b", b"c"], values, np.zeros(3, np.int64)), limit=1_000)
    assert [batch.count for batch in built] == [1, 1, 1]


def test_no_records_make_no_batch() -> None:
    assert batches(Records.none()) == []


def test_a_batch_can_be_signed_again() -> None:
    (batch,) = batches(Records([b"k"], [b"v"], np.array([5])))
    first, second = batch.signed(77, 0, 0), batch.signed(77, 1, 9)
    assert first != second
    parsed = MemoryRecords(second).next_batch()
    assert parsed.validate_crc()
    assert (parsed.producer_epoch, parsed.base_sequence) == (1, 9)
    assert batch.signed(77, 0, 0) == first


def test_compression_makes_it_smaller_or_is_left_out() -> None:
    n = 1_000
    keys: list[bytes | None] = [b"%04d" % i for i in range(n)]
    for name in ("gzip", "snappy", "lz4", "zstd"):
        (flat,) = batches(Records(keys, np.zeros((n, 100), np.uint8), np.zeros(n, np.int64)), name)
        assert len(flat) < 30_000
        # Nulls and records that all differ are compressed too.
        ends: list[bytes | None] = [None if i % 4 else b"z" * (i % 700) for i in range(n)]
        (woven,) = batches(Records(keys, ends, np.zeros(n, np.int64)), name)
        assert len(woven) < 30_000
        noise = np.random.default_rng(0).integers(0, 256, (1, 100), dtype=np.uint8)
        (single,) = batches(Records([b"k"], noise, np.zeros(1, np.int64)), name)
        assert read_back([single.signed(77, 0, 0)])[0][1] == bytes(noise[0])


@given(st.integers(-(2**62), 2**62))
def test_a_varint_is_zigzag(number: int) -> None:
    value, shift = 0, 0
    for byte in varint(number):
        value |= (byte & 127) << shift
        shift += 7
    assert (value >> 1) ^ -(value & 1) == number


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20))
def test_a_varint_column_is_as_wide_as_its_widest(numbers: list[int]) -> None:
    column = varint_column(np.array(numbers))
    assert column.shape[1] == max(len(varint(n)) for n in numbers)
    for number, row in zip(numbers, column, strict=True):
        value = sum((int(byte) & 127) << (7 * i) for i, byte in enumerate(row))
        assert (value >> 1) ^ -(value & 1) == number
        assert all(byte & 128 for byte in row[:-1])
        assert row[-1] < 128
