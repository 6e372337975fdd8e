"""A changelog's fetched bytes -> columns, without a Python object per record.

Snapshots of one model are as long as each other, and so are their records as a worker writes them: a batch of them is a
matrix, whose columns are cut out of it. What is of other shapes is read record by record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.errors import CorruptRecordException
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c

from pipeline.columns import I64, U8, Changelog, Values, as_list
from pipeline.transport.kafka.records import CHECKED_FROM, CODEC, CONTROL, HEADER, TRANSACTIONAL

_DECODE: dict[int, Callable[[bytes], bytes]] = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}
_LENGTH = struct.Struct(">qi")
_MAGIC_AT, _LAST_DELTA_AT = 16, 23
FEW_RECORDS = 8
"""Fewer are read one by one: as fast."""
STRETCH_BYTES = 262_144
"""Batches are joined up to here; a larger one stands alone, where it was fetched."""

Aborted = Sequence[tuple[int, int]]
"""Of a fetch: producer id, first offset of an aborted transaction."""


def end_of(data: bytes, position: int) -> int:
    """Where a log goes on after what was fetched from ``position`` on, by the headers of its whole batches alone."""
    at, size = 0, len(data)
    while at + HEADER.size <= size:
        base, length = _LENGTH.unpack_from(data, at)
        if at + _LENGTH.size + length > size:
            break
        last = struct.unpack_from(">i", data, at + _LAST_DELTA_AT)[0] if data[at + _MAGIC_AT] >= 2 else 0
        position = max(position, base + last + 1)
        at += _LENGTH.size + length
    return position


def changelogs(data: bytes, position: int, aborted: Aborted) -> Iterator[Changelog]:
    """What was fetched from ``position`` on, read committed, in a few stretches; the last one's ``next_offset`` is
    ``end_of`` them all. Raises CorruptRecordException."""
    group: list[Changelog] = []
    size, next_offset = 0, position
    for base, end, content in _batches(data, aborted):
        next_offset = end
        if content is None:
            continue
        stretch = _unpack(content, base, end)
        i = int(np.searchsorted(stretch.offsets, position))
        if i:  # a batch is fetched whole
            stretch = Changelog(stretch.keys[i:], stretch.values[i:], stretch.offsets[i:], end)
        if group and (size >= STRETCH_BYTES or not _alike(group[-1].values, stretch.values)):
            yield _join(group)
            group, size = [], 0
        if stretch.keys:
            group.append(stretch)
            size += len(content)
    if group:
        joined = _join(group)
        joined.next_offset = max(next_offset, position)
        yield joined
    elif next_offset > position:
        yield Changelog([], [], np.empty(0, np.int64), next_offset)


def _batches(data: bytes, aborted: Aborted) -> Iterator[tuple[int, int, memoryview | None]]:
    """Of each whole batch: its first offset, where the log goes on after it, its bytes (None: nothing for us)."""
    view, at = memoryview(data), 0
    coming = sorted(aborted, key=lambda row: row[1], reverse=True)
    hidden: set[int] = set()
    while at + HEADER.size <= len(data):
        base, length, _, magic, crc, attributes, last, _, _, producer, _, _, _ = HEADER.unpack_from(data, at)
        batch = view[at : at + _LENGTH.size + length]
        if len(batch) < _LENGTH.size + length:
            return
        if magic != 2:
            raise CorruptRecordException(f"a batch of message format {magic} at offset {base}, where 2 was written")
        if calc_crc32c(batch[CHECKED_FROM:]) != crc:  # type: ignore[arg-type]
            raise CorruptRecordException(f"a batch at offset {base} whose checksum is wrong")
        while coming and coming[-1][1] <= base:
            hidden.add(coming.pop()[0])
        if attributes & CONTROL:
            if ControlRecord.parse(next(DefaultRecordBatch(batch)).key or b"") == ABORT_MARKER:
                hidden.discard(producer)
            yield base, base + last + 1, None
        else:
            committed = not (attributes & TRANSACTIONAL and producer in hidden)
            yield base, base + last + 1, batch if committed else None
        at += len(batch)


def _unpack(batch: memoryview, base: int, end: int) -> Changelog:
    header = HEADER.unpack_from(batch)
    attributes, count = header[5], header[12]
    if count >= FEW_RECORDS:
        content: bytes | memoryview = batch[HEADER.size :]
        if attributes & CODEC:
            content = _DECODE[attributes & CODEC](bytes(content))
        found = _alike_records(np.frombuffer(content, np.uint8), count, base, end)
        if found is not None:
            return found
    records = list(DefaultRecordBatch(batch))
    offsets = np.fromiter((r.offset for r in records), np.int64, len(records))
    # Eddy writes none without a key, and the broker refuses them of a compacted topic.
    return Changelog([r.key or b"" for r in records], [r.value for r in records], offsets, end)


def _alike_records(content: U8, count: int, base: int, end: int) -> Changelog | None:
    """Records whose fields are as long as each other's, each where the first one has it; None where they are not.

    Every record begins with its length: where all of these are the width of a row, rows are records.
    """
    width, rest = divmod(len(content), count)
    if rest or not width:
        return None
    rows = content.reshape(count, width)
    first = rows[0].tobytes()
    try:
        length, attributes_at = varint_at(first, 0)
        _, offset_at = varint_at(first, attributes_at + 1)
        _, key_length_at = varint_at(first, offset_at)
        key_length, key_at = varint_at(first, key_length_at)
        value_length, value_at = varint_at(first, key_at + max(key_length, 0))
        headers, stop = varint_at(first, value_at + max(value_length, 0))
    except IndexError:
        return None
    if attributes_at + length != width or stop != width or headers or key_length < 0:
        return None
    key_end = key_at + key_length
    value_end = value_at + max(value_length, 0)
    # The same in all rows: lengths and attributes; and how wide the time and the offset are.
    for a, b in ((0, attributes_at + 1), (key_length_at, key_at), (key_end, value_at), (value_end, width)):
        if not (rows[:, a:b] == rows[0, a:b]).all():
            return None
    varying = slice(attributes_at + 1, key_length_at)
    if not (rows[:, varying] >> 7 == rows[0, varying] >> 7).all():
        return None
    blob = rows[:, key_at:key_end].tobytes()
    keys = [blob[i : i + key_length] for i in range(0, len(blob), key_length)] if key_length else [b""] * count
    values: Values = [None] * count if value_length < 0 else rows[:, value_at:value_end]
    return Changelog(keys, values, base + _numbers(rows[:, offset_at:key_length_at]), end)


def varint_at(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and where it ends. Raises IndexError where it does not."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number >> 1 ^ -(number & 1), at


def _numbers(columns: U8) -> I64:
    """Zigzag varints ``uint8 [n, W]``, equally wide, as int64 ``[n]``."""
    numbers = np.zeros(len(columns), np.int64)
    for i in range(columns.shape[1]):
        numbers |= (columns[:, i] & 127).astype(np.int64) << 7 * i
    return numbers >> 1 ^ -(numbers & 1)


def _alike(one: Values, other: Values) -> bool:
    widths = [values.shape[1] if isinstance(values, np.ndarray) else -1 for values in (one, other)]
    return widths[0] == widths[1]


def _join(group: list[Changelog]) -> Changelog:
    """Stretches whose values are alike."""
    if len(group) == 1:
        return group[0]
    keys = [key for s in group for key in s.keys]
    matrices = [s.values for s in group if isinstance(s.values, np.ndarray)]
    values: Values = np.concatenate(matrices) if matrices else [value for s in group for value in as_list(s.values)]
    return Changelog(keys, values, np.concatenate([s.offsets for s in group]), group[-1].next_offset)
