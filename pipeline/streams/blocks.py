"""Blocks of records in a file, as columns; each whole or not there. Pure but for reading and writing at a position.

::

    CRC-32 of the rest of it, begun with the file's seed, u32 | n u32 | bytes of the columns u64 | width i64 |
    start i64 | next i64 | columns: offsets i64 [n], lengths of the keys u32 [n], keys, values [n, width]

All values of a block are equally long; width -1: all are null. ``start`` is where the block before it left off and
``next`` where the log goes on after it; the blocks of one stretch but the last have next = start.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO

import numpy as np

from pipeline.columns import I64, U8, Changelog, Values

log = logging.getLogger(__name__)

HEAD = struct.Struct("<IIQqqq")
SUMMED = 4
"""A block's checksum is of what follows it."""
NULLS = -1
BLOCK_BYTES = 4 << 20
"""Values of one block, about: what is lost at most when a file's end is torn, and read at once."""


@dataclass(frozen=True, slots=True)
class Group:
    """Records of distinct keys with values of one length."""

    keys: list[bytes]
    offsets: I64
    values: U8 | None
    """``uint8 [n, width]``; None: all are null."""

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes) if self.values is not None else 0


def grouped(stretch: Changelog) -> list[Group]:
    """The newest of each key, by the length of their values."""
    keys, values, offsets = stretch.keys, stretch.values, stretch.offsets
    last = dict(zip(keys, range(len(keys))))
    which = list(last.values())
    if isinstance(values, np.ndarray):
        if len(which) < len(keys):
            keys, values, offsets = list(last), values[which], offsets[which]
        return [Group(keys, offsets, values)]
    by_width: dict[int, list[int]] = {}
    for i in which:
        value = values[i]
        by_width.setdefault(NULLS if value is None else len(value), []).append(i)
    groups = []
    for width, mine in by_width.items():
        matrix = None
        if width != NULLS:
            matrix = np.frombuffer(b"".join([values[i] or b"" for i in mine]), np.uint8).reshape(len(mine), width)
        groups.append(Group([keys[i] for i in mine], offsets[mine], matrix))
    return groups


def merged(groups: list[Group]) -> list[Group]:
    """One group for each length of values; no nulls: where they are the newest, nothing is left to forget."""
    by_width: dict[int, list[Group]] = {}
    for group in groups:
        if group.values is not None:
            by_width.setdefault(group.values.shape[1], []).append(group)
    return [
        Group(
            [key for group in mine for key in group.keys],
            np.concatenate([group.offsets for group in mine]),
            np.concatenate([group.values for group in mine if group.values is not None]),
        )
        for mine in by_width.values()
    ]


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a file, whole."""

    n: int
    width: int
    next: int
    end: int
    """Where the next block begins in the file."""
    columns: U8

    def offsets(self) -> I64:
        return self.columns[: 8 * self.n].view("<i8").astype(np.int64)

    def keys(self) -> list[bytes]:
        ends = np.cumsum(self.columns[8 * self.n : 12 * self.n].view("<u4"), dtype=np.int64).tolist()
        blob = self.columns[12 * self.n : 12 * self.n + (ends[-1] if ends else 0)].tobytes()
        return [blob[a:b] for a, b in zip([0, *ends], ends)]

    def values(self) -> Values:
        if self.width == NULLS:
            return [None] * self.n
        return self.columns[len(self.columns) - self.n * self.width :].reshape(self.n, self.width)

    def group(self, which: I64) -> Group:
        """Some of its records."""
        keys, values = self.keys(), self.values()
        matrix = values[which] if isinstance(values, np.ndarray) else None
        return Group([keys[i] for i in which.tolist()], self.offsets()[which], matrix)


def read_blocks(fd: int, begin: int, end: int, seed: int) -> Iterator[Block]:
    """Blocks from ``begin`` to ``end``, as far as they are whole and each goes on where the one before it left off."""
    position, reached = begin, 0
    while position < end:
        try:
            head = os.pread(fd, HEAD.size, position)
            if len(head) < HEAD.size:
                return
            checksum, n, length, width, start, after = HEAD.unpack(head)
            if start != reached or length > end - position - HEAD.size:
                return
            columns = np.empty(length, np.uint8)
            if os.preadv(fd, [columns.data], position + HEAD.size) < length:
                return
        except OSError as error:  # a sector that cannot be read
            log.warning("a file cannot be read at byte %d: %s", position, error.strerror)
            return
        if zlib.crc32(columns.data, zlib.crc32(head[SUMMED:], seed)) != checksum:
            return
        position, reached = position + HEAD.size + length, after
        yield Block(n, width, after, position, columns)


def write_blocks(file: FileIO, at: int, seed: int, groups: list[Group], start: int, after: int) -> int:
    """Writes groups as the blocks of one stretch; where the file ends."""
    pieces = [piece for group in groups for piece in _cut(group)]
    if not pieces and after > start:
        pieces = [Group([], np.empty(0, np.int64), None)]
    for i, group in enumerate(pieces):
        n, width = len(group.keys), NULLS if group.values is None else group.values.shape[1]
        lengths = np.fromiter(map(len, group.keys), "<u4", n)
        columns = [group.offsets.astype("<i8").data, lengths.data, memoryview(b"".join(group.keys))]
        if group.values is not None:
            columns.append(np.ascontiguousarray(group.values).data)
        length = sum(column.nbytes for column in columns)
        head = HEAD.pack(0, n, length, width, start, after if i == len(pieces) - 1 else start)
        checksum = zlib.crc32(head[SUMMED:], seed)
        for column in columns:
            checksum = zlib.crc32(column, checksum)
        at = write_all(file, at, [memoryview(checksum.to_bytes(SUMMED, "little") + head[SUMMED:]), *columns])
    return at


def _cut(group: Group) -> Iterator[Group]:
    """Pieces of ``BLOCK_BYTES``, about."""
    n = max(1, BLOCK_BYTES * len(group.keys) // max(group.nbytes, 1))
    for a in range(0, len(group.keys), n):
        values = group.values[a : a + n] if group.values is not None else None
        yield Group(group.keys[a : a + n], group.offsets[a : a + n], values)


def write_all(file: FileIO, at: int, pieces: Sequence[memoryview]) -> int:
    """Writes pieces one after the other, however often the system is to be asked; where they end. Raises OSError."""
    views = [piece.cast("B") for piece in pieces if piece.nbytes]
    while views:
        written = os.pwritev(file.fileno(), views, at)
        at += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
    return at
