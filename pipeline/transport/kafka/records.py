"""Records as columns -> record batches as bytes (message format 2), without a Python object per record.

Records whose keys and values are as long as each other's are rows of one matrix: a template broadcast down, then the
columns that vary. A batch of a few such shapes is a few matrices, woven together again in order. A varint column is as
wide as its widest number; the shorter ones are padded with continuation bits, which every reader takes (tests/kafka
holds Java, librdkafka and aiokafka to it). What is too ragged for that goes through aiokafka's builder, one append a
record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.record._protocols import DefaultRecordBatchBuilderProtocol
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from pipeline.columns import I64, U8, Headers, Records, as_list

BATCH_BYTES = 900_000
"""A batch stays below the broker's default of 1,048,588 bytes, whatever the last record brings."""

FEW_RECORDS = 16
"""So few are appended one by one: arrays cost 35 us a batch whatever its size, and a commit has a batch a partition."""
RECORDS_PER_SHAPE = 8
"""Below so many records a shape, one append a record is as fast."""

COMPRESSION = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
# What does not compress, float32 states say, goes through at 1 to 5 GB/s at these levels; at lz4's default it takes
# twenty times as long, and what does compress gets hardly smaller.
_ENCODE: dict[int, Callable[[bytes], bytes]] = {
    1: gzip_encode,
    2: snappy_encode,
    3: partial(lz4_encode, level=1),
    4: partial(zstd_encode, level=1),
}
LEAST_SAVING = 1 / 32
"""Of a batch, else it goes as it is."""

# offset, length, leader epoch, magic, crc | attributes, last offset delta, first and largest timestamp, producer id,
# producer epoch, base sequence, count
HEADER = struct.Struct(">qiibIhiqqqhii")
_PRODUCER = struct.Struct(">qhi")
_TIMES = struct.Struct(">qq")
_CRC_AT, CHECKED_FROM, _TIMES_AT, _PRODUCER_AT = 17, 21, 27, 43
_ATTRIBUTES_AT = 22
"""The low one of their two bytes."""
_MAGIC = 2
CODEC, TRANSACTIONAL, CONTROL = 0x07, 0x10, 0x20
"""Of a batch's attributes."""


class Batch:
    """One record batch. Its bytes are final but for the producer, who signs it when it is sent."""

    __slots__ = ("_buffer", "count")

    def __init__(self, buffer: bytearray, count: int) -> None:
        self._buffer = buffer
        self.count = count

    def __len__(self) -> int:
        return len(self._buffer)

    def signed(self, producer_id: int, producer_epoch: int, base_sequence: int, transactional: bool = True) -> bytes:
        """The batch as it goes over the wire. May be called again, with the same or another producer."""
        self._buffer[_ATTRIBUTES_AT] &= ~TRANSACTIONAL
        self._buffer[_ATTRIBUTES_AT] |= TRANSACTIONAL * transactional
        _PRODUCER.pack_into(self._buffer, _PRODUCER_AT, producer_id, producer_epoch, base_sequence)
        crc = calc_crc32c(memoryview(self._buffer)[CHECKED_FROM:])  # type: ignore[arg-type]
        struct.pack_into(">I", self._buffer, _CRC_AT, crc)
        return bytes(self._buffer)


def batches(records: Records, compression: str = "none", limit: int = BATCH_BYTES) -> list[Batch]:
    """Cuts ``records`` into batches of at most ``limit`` bytes each before compression, or of one larger record.

    Offsets inside a batch are 0, 1, ...; timestamps are the records' own.
    """
    if not len(records):
        return []
    codec = COMPRESSION[compression]
    one_by_one = records.extra is not None or len(records) <= FEW_RECORDS
    shapes = None if one_by_one else _shapes(records)
    if shapes is None:
        return list(_by_record(records, codec, limit))
    return list(_by_column(records, *shapes, codec, limit))


def _shapes(records: Records) -> tuple[I64, I64] | None:
    """Of each record: bytes of key and value, and which of the few shapes it has; None where there are many shapes."""
    shape = _lengths(records.keys)
    lengths = np.maximum(shape, 0)
    if isinstance(records.values, np.ndarray):
        lengths += records.values.shape[1]
    else:
        of_values = _lengths(records.values)
        shape, lengths = shape << 32 | (of_values + 1), lengths + np.maximum(of_values, 0)
    n = len(records)
    if (shape == shape[0]).all():
        return lengths, np.zeros(n, np.int64)
    distinct, which = np.unique(shape, return_inverse=True)
    return (lengths, which) if len(distinct) * RECORDS_PER_SHAPE <= n else None


def _lengths(items: Sequence[bytes | None]) -> I64:
    """-1 of a null, as on the wire."""
    try:
        return np.fromiter(map(len, items), np.int64, len(items))  # type: ignore[arg-type]
    except TypeError:
        return np.fromiter((-1 if item is None else len(item) for item in items), np.int64, len(items))


def _by_column(records: Records, lengths: I64, shapes: I64, codec: int, limit: int) -> Iterator[Batch]:
    # Beside key and value a record has its own length, time and offset (5 + 10 + 5 bytes), attributes, two lengths and
    # the number of headers (1 + 3 * 5 bytes).
    overhead = 36 + len(_constant(records)) + sum(5 + len(_prefix(name, v)) + v.shape[1] for name, v in records.columns)
    ends = np.cumsum(lengths + overhead)
    i, n = 0, len(records)
    while i < n:
        room = (int(ends[i - 1]) if i else 0) + limit - HEADER.size
        j = max(i + 1, int(np.searchsorted(ends, room, side="right")))
        times = records.timestamps[i:j]
        columns = varint_column(times - times[0]), varint_column(np.arange(j - i))
        which = shapes[i:j]
        if (which == which[0]).all():
            pieces = _pieces(records, slice(i, j), *columns)
            buffer = bytearray(HEADER.size + (j - i) * _width(pieces))
            _fill(np.frombuffer(buffer, np.uint8, offset=HEADER.size).reshape(j - i, -1), pieces)
        else:
            woven = np.empty(j - i, object)
            for shape in np.unique(which):
                at = np.flatnonzero(which == shape)
                pieces = _pieces(records, at + i, *(column[at] for column in columns))
                rows = np.empty((len(at), _width(pieces)), np.uint8)
                _fill(rows, pieces)
                blob, width = rows.tobytes(), rows.shape[1]
                woven[at] = [blob[k : k + width] for k in range(0, len(blob), width)]
            buffer = bytearray(HEADER.size) + b"".join(woven.tolist())
        yield _batch(buffer, j - i, int(times[0]), int(times.max()), codec)
        i = j


def _pieces(records: Records, at: slice | I64, time: U8, offset: U8) -> list[bytes | U8]:
    """The records ``at``, all of one shape, as rows: constant (bytes) and varying (``uint8 [n, W]``) pieces."""
    values = records.values
    pieces: list[bytes | U8] = [time, offset, *_stack(records.keys, at)]
    pieces += [varint(values.shape[1]), values[at]] if isinstance(values, np.ndarray) else _stack(values, at)
    pieces += [varint(len(records.constant) + len(records.columns)) + _constant(records)]
    for name, column in records.columns:
        pieces += [_prefix(name, column), column[at]]
    return [varint(1 + _width(pieces)) + b"\0", *pieces]  # length, and attributes, of which there are none


def _width(pieces: list[bytes | U8]) -> int:
    return sum(len(p) if isinstance(p, bytes) else p.shape[1] for p in pieces)


def _fill(rows: U8, pieces: list[bytes | U8]) -> None:
    start = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            rows[:, start : start + len(piece)] = np.frombuffer(piece, np.uint8)
            start += len(piece)
        else:
            rows[:, start : start + piece.shape[1]] = piece
            start += piece.shape[1]


def _stack(items: Sequence[bytes | None], at: slice | I64) -> list[bytes | U8]:
    """The byte strings ``at``, which are equally long, or all null: their length, and ``uint8 [n, length]``."""
    chosen = items[at] if isinstance(at, slice) else [items[i] for i in at.tolist()]
    if chosen[0] is None:
        return [varint(-1)]
    joined = b"".join(chosen)  # type: ignore[arg-type]
    return [varint(len(chosen[0])), np.frombuffer(joined, np.uint8).reshape(len(chosen), -1)]


def _constant(records: Records) -> bytes:
    return b"".join(_field(name.encode()) + _field(value) for name, value in records.constant)


def _prefix(name: str, column: U8) -> bytes:
    """What stands before a column header's value."""
    return _field(name.encode()) + varint(column.shape[1])


def _by_record(records: Records, codec: int, limit: int) -> Iterator[Batch]:
    # aiokafka's builder takes a first timestamp of -1 (a record without one) for none yet: all are one later here, and
    # the batch's first and largest are set right in the end.
    values, times = as_list(records.values), (records.timestamps + 1).tolist()
    headers = _headers(records)
    builder, start = None, 0
    for i, (key, value) in enumerate(zip(records.keys, values)):
        if builder is None or builder.append(i - start, times[i], key, value, headers[i]) is None:
            if builder is not None:
                yield _built(builder, i - start, codec)
            builder, start = DefaultRecordBatchBuilder(_MAGIC, 0, 1, -1, -1, 0, limit), i
            builder.append(0, times[i], key, value, headers[i])  # the first is taken whatever its size
    if builder is not None:
        yield _built(builder, len(values) - start, codec)


def _built(builder: DefaultRecordBatchBuilderProtocol, count: int, codec: int) -> Batch:
    buffer = bytearray(builder.build())
    first, largest = _TIMES.unpack_from(buffer, _TIMES_AT)
    return _batch(buffer, count, first - 1, largest - 1, codec)


def _headers(records: Records) -> list[list[tuple[str, bytes | None]]]:
    """Of each record: the constant ones, the columns', its own."""
    n = len(records)
    constant: list[tuple[str, bytes | None]] = list(records.constant)
    if not records.columns and records.extra is None:
        return [constant] * n
    columns = [[(name, value) for value in as_list(column)] for name, column in records.columns]
    extra: list[Headers] = records.extra if records.extra is not None else [()] * n
    return [[*constant, *(column[i] for column in columns), *extra[i]] for i in range(n)]


def _batch(buffer: bytearray, count: int, first_time: int, largest_time: int, codec: int) -> Batch:
    """``buffer``: room for the header, then the records."""
    attributes = TRANSACTIONAL
    if codec:
        packed = _ENCODE[codec](bytes(memoryview(buffer)[HEADER.size :]))
        if len(packed) <= (len(buffer) - HEADER.size) * (1 - LEAST_SAVING):
            buffer, attributes = bytearray(HEADER.size) + packed, attributes | codec
    head = (len(buffer) - 12, -1, _MAGIC, 0, attributes, count - 1, first_time, largest_time, -1, -1, 0, count)
    HEADER.pack_into(buffer, 0, 0, *head)
    return Batch(buffer, count)


def varint(number: int) -> bytes:
    """Zigzag varint."""
    left = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    out.append(left)
    return bytes(out)


def varint_column(numbers: I64) -> U8:
    """Zigzag varints ``uint8 [n, W]``, all as wide as the widest."""
    zigzag = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    width = max(1, -(-int(zigzag.max()).bit_length() // 7))
    out = np.empty((len(numbers), width), np.uint8)
    for i in range(width):
        out[:, i] = (zigzag >> np.uint64(7 * i)).astype(np.uint8) | 128
    out[:, -1] &= 127
    return out


def _field(content: bytes) -> bytes:
    return varint(len(content)) + content
