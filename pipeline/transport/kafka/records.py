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

import numpy as np
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from pipeline.columns import I64, U8, Headers, Records, as_list

BATCH_BYTES = 900_000
"""A batch stays below the broker's default of 1,048,588 bytes, whatever the last record brings."""

RECORDS_PER_SHAPE = 8
"""Below so many records a shape, one append a record is as fast."""

COMPRESSION = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_ENCODE: dict[int, Callable[[bytes], bytes]] = {1: gzip_encode, 2: snappy_encode, 3: lz4_encode, 4: zstd_encode}

# offset, length, leader epoch, magic, crc | attributes, last offset delta, first and largest timestamp, producer id,
# producer epoch, base sequence, count
_HEADER = struct.Struct(">qiibIhiqqqhii")
_PRODUCER = struct.Struct(">qhi")
_CRC_AT, _CHECKED_FROM, _PRODUCER_AT = 17, 21, 43
_MAGIC, _TRANSACTIONAL = 2, 0x10


class Batch:
    """One transactional record batch. Its bytes are final but for the producer, who signs it when it is sent."""

    __slots__ = ("_buffer", "count")

    def __init__(self, buffer: bytearray, count: int) -> None:
        self._buffer = buffer
        self.count = count

    def __len__(self) -> int:
        return len(self._buffer)

    def signed(self, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
        """The batch as it goes over the wire. May be called again, with the same or another producer."""
        _PRODUCER.pack_into(self._buffer, _PRODUCER_AT, producer_id, producer_epoch, base_sequence)
        crc = calc_crc32c(bytes(memoryview(self._buffer)[_CHECKED_FROM:]))
        struct.pack_into(">I", self._buffer, _CRC_AT, crc)
        return bytes(self._buffer)


def batches(records: Records, compression: str = "none", limit: int = BATCH_BYTES) -> list[Batch]:
    """Cuts ``records`` into batches of at most ``limit`` bytes each before compression, or of one larger record.

    Offsets inside a batch are 0, 1, ...; timestamps are the records' own.
    """
    if not len(records):
        return []
    codec = COMPRESSION[compression]
    shapes = None if records.extra is not None else _shapes(records)
    if shapes is None:
        return list(_by_record(records, codec, limit))
    return list(_by_column(records, *shapes, codec, limit))


def _shapes(records: Records) -> tuple[I64, I64] | None:
    """Of each record: bytes of key and value, and which of the few shapes it has; None where there are many shapes."""
    try:
        lengths = _lengths(records.keys)
        if isinstance(records.values, np.ndarray):
            shape, lengths = lengths, lengths + records.values.shape[1]
        else:
            of_values = _lengths(records.values)
            shape, lengths = lengths << 32 | of_values, lengths + of_values
    except TypeError:  # a null has no length
        return None
    n = len(records)
    if (shape == shape[0]).all():
        return lengths, np.zeros(n, np.int64)
    distinct, which = np.unique(shape, return_inverse=True)
    return (lengths, which) if len(distinct) * RECORDS_PER_SHAPE <= n else None


def _lengths(items: Sequence[bytes | None]) -> I64:
    return np.fromiter(map(len, items), np.int64, len(items))  # type: ignore[arg-type]


def _by_column(records: Records, lengths: I64, shapes: I64, codec: int, limit: int) -> Iterator[Batch]:
    # Beside key and value a record has its own length, time and offset (5 + 10 + 5 bytes), attributes, two lengths and
    # the number of headers (1 + 3 * 5 bytes).
    overhead = 36 + len(_constant(records)) + sum(5 + len(_prefix(name, v)) + v.shape[1] for name, v in records.columns)
    ends = np.cumsum(lengths + overhead)
    i, n = 0, len(records)
    while i < n:
        room = (int(ends[i - 1]) if i else 0) + limit - _HEADER.size
        j = max(i + 1, int(np.searchsorted(ends, room, side="right")))
        times = records.timestamps[i:j]
        columns = varint_column(times - times[0]), varint_column(np.arange(j - i))
        which = shapes[i:j]
        if (which == which[0]).all():
            body = _rows(records, slice(i, j), *columns)[0]
        else:
            woven = np.empty(j - i, object)
            for shape in np.unique(which):
                at = np.flatnonzero(which == shape)
                rows, width = _rows(records, at + i, *(column[at] for column in columns))
                woven[at] = [rows[k : k + width] for k in range(0, len(rows), width)]
            body = b"".join(woven.tolist())
        yield _batch(body, j - i, int(times[0]), int(times.max()), codec)
        i = j


def _rows(records: Records, at: slice | I64, time: U8, offset: U8) -> tuple[bytes, int]:
    """The records ``at``, all of one shape, as bytes of equal length, and that length."""
    n = len(time)
    keys = _stack(records.keys, at)
    values = records.values[at] if isinstance(records.values, np.ndarray) else _stack(records.values, at)
    pieces: list[bytes | U8] = [b"\0", time, offset]
    pieces += [varint(keys.shape[1]), keys]
    pieces += [varint(values.shape[1]), values]
    pieces += [varint(len(records.constant) + len(records.columns)) + _constant(records)]
    for name, column in records.columns:
        pieces += [_prefix(name, column), column[at]]
    widths = [len(p) if isinstance(p, bytes) else p.shape[1] for p in pieces]
    pieces.insert(0, length := varint(sum(widths)))
    widths.insert(0, len(length))
    template = b"".join(p if isinstance(p, bytes) else bytes(p.shape[1]) for p in pieces)
    rows = np.empty((n, len(template)), np.uint8)
    rows[:] = np.frombuffer(template, np.uint8)
    start = 0
    for piece, width in zip(pieces, widths):
        if not isinstance(piece, bytes):
            rows[:, start : start + width] = piece
        start += width
    return rows.tobytes(), len(template)


def _stack(items: Sequence[bytes | None], at: slice | I64) -> U8:
    """The byte strings ``at``, equally long and none of them null, as ``uint8 [n, length]``."""
    chosen = items[at] if isinstance(at, slice) else [items[i] for i in at.tolist()]
    joined = b"".join(chosen)  # type: ignore[arg-type]
    return np.frombuffer(joined, np.uint8).reshape(len(chosen), -1)


def _constant(records: Records) -> bytes:
    return b"".join(_field(name.encode()) + _field(value) for name, value in records.constant)


def _prefix(name: str, column: U8) -> bytes:
    """What stands before a column header's value."""
    return _field(name.encode()) + varint(column.shape[1])


def _by_record(records: Records, codec: int, limit: int) -> Iterator[Batch]:
    values, times = as_list(records.values), records.timestamps.tolist()
    headers = _headers(records)
    builder, start = None, 0
    for i, (key, value) in enumerate(zip(records.keys, values)):
        if builder is None or builder.append(i - start, times[i], key, value, headers[i]) is None:
            if builder is not None:
                yield Batch(builder.build(), i - start)
            builder, start = DefaultRecordBatchBuilder(_MAGIC, codec, 1, -1, -1, 0, limit), i
            builder.append(0, times[i], key, value, headers[i])  # the first is taken whatever its size
    if builder is not None:
        yield Batch(builder.build(), len(values) - start)


def _headers(records: Records) -> list[list[tuple[str, bytes | None]]]:
    """Of each record: the constant ones, the columns', its own."""
    n = len(records)
    constant: list[tuple[str, bytes | None]] = list(records.constant)
    if not records.columns and records.extra is None:
        return [constant] * n
    columns = [[(name, value) for value in as_list(column)] for name, column in records.columns]
    extra: list[Headers] = records.extra if records.extra is not None else [()] * n
    return [[*constant, *(column[i] for column in columns), *extra[i]] for i in range(n)]


def _batch(body: bytes, count: int, first_time: int, largest_time: int, codec: int) -> Batch:
    attributes = _TRANSACTIONAL
    if codec:
        packed = _ENCODE[codec](body)
        if len(packed) < len(body):
            body, attributes = packed, attributes | codec
    buffer = bytearray(_HEADER.size + len(body))
    _HEADER.pack_into(
        buffer, 0, 0, len(buffer) - 12, -1, _MAGIC, 0, attributes, count - 1, first_time, largest_time, -1, -1, 0, count
    )
    buffer[_HEADER.size :] = body
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
