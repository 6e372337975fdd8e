"""A changelog's bytes in columns: the same records as one by one, whatever their shapes and transactions."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from pipeline.columns import Records, as_list
from pipeline.transport.kafka import stretches
from pipeline.transport.kafka.columns import ColumnRecords
from pipeline.transport.kafka.records import COMPRESSION, batches
from pipeline.transport.kafka.stretches import changelogs, end_of

CONTROL_BIT = 0x20
Row = tuple[int, bytes | None, bytes | None]


class Log:
    """Batches one after the other, as a broker gives them."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.end = 0
        self._starts: list[tuple[int, int]] = []
        self.aborted: list[tuple[int, int]] = []

    def write(self, records: Records, producer: int, compression: str = "none", limit: int = 900_000) -> None:
        for batch in batches(records, compression, limit):
            self._put(batch.signed(producer, 0, 0), batch.count)

    def marker(self, producer: int, commit: bool) -> None:
        key = struct.pack(">hh", 0, int(commit))
        (batch,) = batches(Records([key], [b"\0" * 6], np.array([7])))
        content = bytearray(batch.signed(producer, 0, 0))
        content[22] |= CONTROL_BIT
        struct.pack_into(">I", content, 17, calc_crc32c(bytes(content[21:])))
        self._put(bytes(content), 1)

    def compacted(self, offsets: list[int], records: list[tuple[bytes, bytes]], last: int) -> None:
        """What the cleaner leaves of a batch that ended with offset ``last``."""
        builder = DefaultRecordBatchBuilder(2, 0, 1, 9, 0, 0, 1_000_000)
        for offset, (key, value) in zip(offsets, records, strict=True):
            assert builder.append(offset, 1_000 + offset, key, value, []) is not None
        content = bytearray(builder.build())
        struct.pack_into(">i", content, 23, last)
        struct.pack_into(">I", content, 17, calc_crc32c(bytes(content[21:])))
        self._put(bytes(content), last + 1)

    def answer(self, position: int) -> bytes:
        """What a fetch gets: batches from the one that ``position`` is in."""
        begin = max((at for offset, at in self._starts if offset <= position), default=0)
        return bytes(self.data[begin:]) if position < self.end else b""

    def _put(self, content: bytes, offsets: int) -> None:
        self._starts.append((self.end, len(self.data)))
        self.data += struct.pack(">q", self.end) + content[8:]
        self.end += offsets


def one_by_one(log: Log, position: int) -> list[Row]:
    """As aiokafka reads it."""
    place, memory = TopicPartition("t", 0), MemoryRecords(log.answer(position))
    segment = next(ColumnRecords(place, memory, list(log.aborted), position, None, None, True, READ_COMMITTED))
    assert segment.next_offset == max(log.end, position)
    return list(zip(segment.offsets.tolist(), segment.keys, segment.values, strict=True))


def in_columns(log: Log, position: int) -> list[Row]:
    data = log.answer(position)
    found = list(changelogs(data, position, log.aborted))
    for stretch in found:
        assert stretch.offsets.dtype == np.int64
        assert len(stretch.keys) == len(stretch.values) == len(stretch.offsets)
    assert end_of(data, position) == (found[-1].next_offset if found else position)
    for one, after in pairwise(found):
        assert one.next_offset <= (int(after.offsets[0]) if after.keys else after.next_offset)
    return [row for s in found for row in zip(s.offsets.tolist(), s.keys, as_list(s.values), strict=True)]


def snapshots(rng: np.random.Generator, n: int, width: int, key_width: int = 10) -> Records:
    keys: list[bytes | None] = [b"%0*d" % (key_width, i) for i in rng.integers(0, 10**6, n).tolist()]
    times = 1_700_000_000_000 + rng.integers(-5, 500, n)
    return Records(keys, rng.integers(0, 256, (n, width), dtype=np.uint8), times)


def ragged(rng: np.random.Generator, n: int) -> Records:
    sizes = rng.integers(-1, 40, n).tolist()
    values = [None if size < 0 else rng.bytes(size) for size in sizes]
    return Records([b"k" * int(i) for i in rng.integers(1, 30, n)], values, np.full(n, 5))


@pytest.mark.parametrize("seed", range(30))
def test_any_log_reads_as_record_by_record(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log = Log()
    for _ in range(int(rng.integers(1, 12))):
        producer, first = int(rng.integers(1, 4)), log.end
        for _ in range(int(rng.integers(1, 4))):
            n = int(rng.choice([1, 2, 7, 8, 9, 63, 65, 300]))
            shape = rng.integers(0, 4)
            if shape == 0:
                records = ragged(rng, n)
            elif shape == 1:
                records = Records([b"gone%d" % i for i in range(n)], [None] * n, np.full(n, 9))
            else:
                records = snapshots(rng, n, int(rng.choice([0, 1, 40, 200])), int(rng.choice([1, 6, 70])))
            log.write(records, producer, str(rng.choice(list(COMPRESSION))), int(rng.choice([900, 900_000])))
        commit = bool(rng.integers(0, 2))
        if not commit:
            log.aborted.append((producer, first))
        log.marker(producer, commit)
    for position in {0, 1, log.end // 3, log.end // 2, log.end - 1, log.end}:
        assert in_columns(log, position) == one_by_one(log, position)


def test_what_the_cleaner_leaves_is_where_it_was() -> None:
    log = Log()
    log.write(snapshots(np.random.default_rng(1), 20, 8), 1)
    log.compacted([0, 3, 4, 9, 17, 30, 31, 40, 41, 60], [(b"k%d" % i, b"value %d" % i) for i in range(10)], 63)
    log.compacted([], [], 5)
    expected = one_by_one(log, 3)
    assert [offset - 20 for offset, _, _ in expected[-10:]] == [0, 3, 4, 9, 17, 30, 31, 40, 41, 60]
    assert in_columns(log, 3) == expected
    assert in_columns(log, 20 + 64) == []


def test_alike_snapshots_are_a_matrix_and_joined_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    log = Log()
    for _ in range(10):
        log.write(snapshots(rng, 100, 50), 1, "lz4")
        log.marker(1, True)
    (joined,) = changelogs(bytes(log.data), 0, [])
    assert isinstance(joined.values, np.ndarray)
    assert joined.values.shape == (1_000, 50)
    assert joined.next_offset == log.end
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 1)
    several = list(changelogs(bytes(log.data), 0, []))
    assert [len(s.keys) for s in several] == [100] * 10
    assert all(np.shares_memory(s.values, s.values.base) for s in several if isinstance(s.values, np.ndarray))


def test_an_answer_cut_within_a_batch_ends_before_it() -> None:
    rng = np.random.default_rng(3)
    log = Log()
    log.write(snapshots(rng, 10, 20), 1)
    whole = len(log.data)
    log.write(snapshots(rng, 10, 20), 1)
    for cut in (whole, whole + 5, whole + 70, len(log.data) - 1):
        data = bytes(log.data[:cut])
        assert end_of(data, 0) == 10
        assert [s.next_offset for s in changelogs(data, 0, [])] == [10]
    assert list(changelogs(b"", 4, [])) == []


@pytest.mark.parametrize("at", [30, 61, 90, -1])
def test_a_damaged_batch_is_named_by_its_offset(at: int) -> None:
    log = Log()
    log.write(snapshots(np.random.default_rng(4), 12, 20), 1)
    first = len(log.data)
    log.write(snapshots(np.random.default_rng(5), 12, 20), 1)
    log.data[at if at < 0 else first + at] ^= 1
    with pytest.raises(CorruptRecordException, match="offset 12 whose checksum"):
        list(changelogs(bytes(log.data), 0, []))


def test_records_that_only_look_alike_are_read_one_by_one() -> None:
    """The sum of their lengths is a multiple of their number, and yet they are not as long as each other."""
    lengths = [10, 12, 8, 10, 11, 9, 10, 10]
    values: list[bytes | None] = [bytes([i]) * n for i, n in enumerate(lengths)]
    builder = DefaultRecordBatchBuilder(2, 0, 1, 9, 0, 0, 1_000_000)
    for i, value in enumerate(values):
        assert builder.append(i, 5, b"key", value, []) is not None
    log = Log()
    log._put(bytes(builder.build()), 8)
    assert [value for _, _, value in in_columns(log, 0)] == values
    # And with headers, of which Eddy's snapshots have none.
    log.write(Records([b"k"] * 9, np.zeros((9, 4), np.uint8), np.arange(9), (("name", b"value"),)), 1)
    assert in_columns(log, 0) == one_by_one(log, 0)
