"""Arrays with a row for each partition, read and written at once: aiokafka takes a call for every field of a row.

A commit of 64 partitions has six such arrays; they are the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from aiokafka.protocol.types import Array, CompactArray, Int16, Int32, Int64, TaggedFields, UnsignedVarInt32

_FORMS: dict[Any, str] = {Int16: "h", Int32: "i", Int64: "q"}


def _row(fields: Sequence[tuple[str, Any]], end: str = "") -> struct.Struct:
    return struct.Struct(">" + "".join(_FORMS[kind] for _, kind in fields) + end)


class Rows(Array):
    """Of whole numbers."""

    def __init__(self, *fields: tuple[str, Any]) -> None:
        super().__init__(*fields)
        self._row = _row(fields)

    def encode(self, items: Sequence[Any] | None) -> bytes:
        if items is None:
            return Int32.encode(-1)
        pack = self._row.pack
        return b"".join((Int32.encode(len(items)), *(pack(*item) for item in items)))

    def decode(self, data: BytesIO) -> list[Any] | None:
        length = Int32.decode(data)
        return None if length < 0 else list(self._row.iter_unpack(_read(data, length * self._row.size)))


class Numbers(Array):
    """Of an int32 each."""

    def __init__(self) -> None:
        super().__init__(Int32)

    def encode(self, items: Sequence[Any] | None) -> bytes:
        if items is None:
            return Int32.encode(-1)
        return struct.pack(f">{1 + len(items)}i", len(items), *items)


class CompactRows(CompactArray):
    """Of whole numbers, then tags; a row that has some is rare, and is read as aiokafka does."""

    def __init__(self, *fields: tuple[str, Any]) -> None:
        super().__init__(*fields, ("tags", TaggedFields))
        self._row = _row(fields, "B")

    def decode(self, data: BytesIO) -> list[Any] | None:
        begin = data.tell()
        length = UnsignedVarInt32.decode(data) - 1
        if length >= 0:
            raw = data.read(length * self._row.size)
            if len(raw) == length * self._row.size and not any(raw[self._row.size - 1 :: self._row.size]):
                return [(*row[:-1], {}) for row in self._row.iter_unpack(raw)]
        data.seek(begin)
        found: list[Any] | None = super().decode(data)
        return found


class OffsetRows(CompactArray):
    """Partition, offset, leader epoch, metadata, tags (none): what a transaction commits."""

    _FIXED = _row((("partition", Int32), ("offset", Int64), ("leader_epoch", Int32)))

    def encode(self, items: Sequence[Any] | None) -> bytes:
        pieces = [UnsignedVarInt32.encode(0 if items is None else len(items) + 1)]
        for partition, offset, epoch, metadata, _ in items or ():
            content = metadata.encode()
            pieces += (
                self._FIXED.pack(partition, offset, epoch),
                UnsignedVarInt32.encode(len(content) + 1),
                content,
                b"\0",
            )
        return b"".join(pieces)


def _read(data: BytesIO, size: int) -> bytes:
    raw = data.read(size)
    if len(raw) != size:
        raise ValueError(f"an answer ends after {len(raw)} of {size} bytes of an array")
    return raw
