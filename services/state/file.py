"""The file that states of streams travel in.

A line of JSON (what it is of), then frames: length of the payload u32, its CRC-32 u32, the payload (little-endian).
That is a stream::

    partition u32 | A i64 | when its snapshot was written i64, ms since the epoch | length of the key u32 | key | row

or, in the last frame alone, the number of streams u64: a file without it was cut off.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.columns import I64, U8
from pipeline.errors import UserError

VERSION = 1
HEAD_BYTES_MAX = 1 << 20
KEY_BYTES_MAX = 1 << 24
"""A frame that is longer than such a stream's is damaged: it must not make us ask for gigabytes."""
CHUNK_BYTES = 8_388_608
"""Rows that are held at a time."""
_FRAME = struct.Struct("<II")
_STREAM = struct.Struct("<IqqI")
_END = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Head:
    """What the states are of."""

    group: str
    topic: str
    partitions: int
    committed: list[int]
    """C by partition: every record below it is in the states, none from it on."""
    digest: str
    """Of the snapshots, hexadecimal: what kind of model can read the rows."""
    row_bytes: int
    made_ms: int
    model: str | None = None
    """Name and version, where it was given."""
    contract: str | None = None
    """SHA-256 of the model's contract, where it was given."""


@dataclass(slots=True)
class Rows:
    """Streams with their states, as columns."""

    partition: int
    """Where they are from."""
    keys: list[bytes]
    applied: I64
    written_ms: I64
    rows: U8
    """``uint8 [n, row_bytes]``."""


class Sink:
    """Takes streams for one file; ``writing`` makes one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.streams = 0
        self.nbytes = 0

    def add(self, rows: Rows) -> None:
        for i, key in enumerate(rows.keys):
            fixed = _STREAM.pack(rows.partition, int(rows.applied[i]), int(rows.written_ms[i]), len(key))
            self._frame(fixed + key + rows.rows[i].tobytes())
            self.streams += 1

    def _frame(self, payload: bytes) -> None:
        self._file.write(_FRAME.pack(len(payload), zlib.crc32(payload)))
        self._file.write(payload)
        self.nbytes += _FRAME.size + len(payload)

    def end(self) -> None:
        self._frame(_END.pack(self.streams))


@contextmanager
def writing(path: Path, head: Head) -> Iterator[Sink]:
    """The file appears, whole, when the block ends without an error. Raises UserError where it cannot be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("xb") as file:
            file.write(json.dumps({"eddy_state": VERSION, **asdict(head)}, ensure_ascii=False).encode() + b"\n")
            sink = Sink(file)
            yield sink
            sink.end()
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)


def read_head(path: Path) -> Head:
    """Raises UserError for a file that is not there or none of ours."""
    try:
        with path.open("rb") as file:
            return _head(path, file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _head(path: Path, file: BinaryIO) -> Head:
    line = file.readline(HEAD_BYTES_MAX)
    try:
        told = json.loads(line)
        version = told.pop("eddy_state")
        if version != VERSION:
            raise UserError(f"{path} has version {version}, this Eddy reads {VERSION}")
        head = Head(**told)
        if len(bytes.fromhex(head.digest)) != 8 or len(head.committed) != head.partitions:
            raise ValueError(head.digest)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no file of states: `eddy state export` writes one") from None
    return head


def read_rows(path: Path, head: Head) -> Iterator[Rows]:
    """The streams, about ``CHUNK_BYTES`` at a time, in order. Raises UserError for a damaged or shortened file."""
    try:
        with path.open("rb") as file:
            _head(path, file)
            yield from _rows(path, file, head)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _rows(path: Path, file: BinaryIO, head: Head) -> Iterator[Rows]:
    streams, chunk, size = 0, _Chunk(head.row_bytes), 0
    while True:
        payload = _payload(path, file, head)
        if len(payload) == _END.size:
            break
        partition, applied, written, key_bytes = _STREAM.unpack_from(payload)
        if len(payload) != _STREAM.size + key_bytes + head.row_bytes:
            raise UserError(f"{path} is damaged: stream {streams} has {len(payload)} bytes")
        if chunk.keys and (partition != chunk.partition or size > CHUNK_BYTES):
            yield chunk.rows()
            chunk, size = _Chunk(head.row_bytes), 0
        at = _STREAM.size + key_bytes
        chunk.add(partition, payload[_STREAM.size : at], applied, written, payload[at:])
        streams += 1
        size += len(payload)
    (expected,) = _END.unpack(payload)
    if streams != expected or file.read(1):
        raise UserError(f"{path} is damaged: it should hold {expected} streams and nothing behind them")
    if chunk.keys:
        yield chunk.rows()


def _payload(path: Path, file: BinaryIO, head: Head) -> bytes:
    start = file.read(_FRAME.size)
    if len(start) == _FRAME.size:
        length, checksum = _FRAME.unpack(start)
        if not _STREAM.size <= length <= _STREAM.size + KEY_BYTES_MAX + head.row_bytes and length != _END.size:
            raise UserError(f"{path} is damaged before byte {file.tell()}: export it again, or copy it again")
        payload = file.read(length)
        if len(payload) == length:
            if zlib.crc32(payload) != checksum:
                raise UserError(f"{path} is damaged before byte {file.tell()}: export it again, or copy it again")
            return payload
    raise UserError(f"{path} ends too early, it was cut off: export it again, or copy it again")


class _Chunk:
    """Streams of one partition, growing."""

    def __init__(self, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self.partition = 0
        self.keys: list[bytes] = []
        self._applied: list[int] = []
        self._written: list[int] = []
        self._pieces: list[bytes] = []

    def add(self, partition: int, key: bytes, applied: int, written_ms: int, row: bytes) -> None:
        self.partition = partition
        self.keys.append(key)
        self._applied.append(applied)
        self._written.append(written_ms)
        self._pieces.append(row)

    def rows(self) -> Rows:
        matrix = np.frombuffer(b"".join(self._pieces), np.uint8).reshape(len(self.keys), self._row_bytes)
        applied, written = np.array(self._applied, np.int64), np.array(self._written, np.int64)
        return Rows(self.partition, self.keys, applied, written, matrix)
