"""A stream's row at one position, as a changelog record.

Value: a header of 24 bytes, then the row (model states by dtype, the codec's memory, the head's memory)::

    version u8 | flags u8 (1: ended) | zero, 6 bytes | digest (``digest_of``), 8 bytes | A, int64 little-endian

An ended stream has the header alone (X5): A is the offset of the record that ended it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.beside import names_file
from pipeline.columns import I64, U8, Changelog, Records
from pipeline.contract import Contract

VERSION = 1
ENDED = 1
HEADER = 24
OTHER_ROWS = "another state schema, or other settings of its codec or head"
ROW_SETTINGS = ("step_s",)
"""Of a head: what it counts in a row goes by them. The others say what it makes of the row, from now on."""


def digest_of(contract: Contract) -> bytes:
    """Eight bytes that change when a row of one model means something else to another: its state schema, and what the
    memory of codec and head is read by. That is all of the codec's settings (an alphabet, a rate, a tokenizer's
    sha256), and the head's labels and files."""
    meaning: dict[str, Any] = {}
    if contract.codec.memory_bytes:
        meaning["codec"] = dict(contract.codec.settings)
    if contract.head.memory_bytes:
        own = {k: v for k, v in contract.head.settings.items() if k in ROW_SETTINGS or names_file(v)}
        meaning["head"] = [list(contract.head.labels), own]
    if not meaning:
        return contract.digest
    whole = contract.digest + json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(whole).digest()[:8]


@dataclass(slots=True)
class Snapshots:
    """Of one partition, from one or more polls: rows of streams, and streams that ended. In the order they happened."""

    serials: I64
    keys: list[bytes]
    applied: I64
    rows: U8
    """``uint8 [n, row_bytes]``."""
    ended_serials: I64
    ended_keys: list[bytes]
    ended_applied: I64

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes) + HEADER * (len(self.keys) + len(self.ended_keys))

    @staticmethod
    def latest(parts: list[Snapshots]) -> Snapshots:
        """What is newest of each stream: the last row of each, none of a stream that ended."""
        if len(parts) == 1 and not len(parts[0].ended_serials):
            return parts[0]
        serials = np.concatenate([p.serials for p in parts])
        ended = np.concatenate([p.ended_serials for p in parts])
        _, backwards = np.unique(serials[::-1], return_index=True)
        last = np.sort(len(serials) - 1 - backwards)
        if len(ended):
            last = last[~np.isin(serials[last], ended)]
        keys = [k for p in parts for k in p.keys]
        rows = np.concatenate([p.rows for p in parts]) if len(parts) > 1 else parts[0].rows
        return Snapshots(
            serials[last],
            [keys[i] for i in last.tolist()],
            np.concatenate([p.applied for p in parts])[last],
            rows[last],
            ended,
            [k for p in parts for k in p.ended_keys],
            np.concatenate([p.ended_applied for p in parts]),
        )

    def records(self, digest: bytes, now_ms: int) -> Records:
        """Changelog records. Ends come first: a stream that began again under the same key comes after its end."""
        parts = []
        if len(self.ended_keys):
            headers = _headers(digest, self.ended_applied, ENDED)
            parts.append(Records(self.ended_keys, headers, np.full(len(self.ended_keys), now_ms, np.int64)))
        if len(self.keys):
            values = np.empty((len(self.keys), HEADER + self.rows.shape[1]), np.uint8)
            values[:, :HEADER] = _headers(digest, self.applied, 0)
            values[:, HEADER:] = self.rows
            parts.append(Records(self.keys, values, np.full(len(self.keys), now_ms, np.int64)))
        return Records.join(parts)


def _headers(digest: bytes, applied: I64, flags: int) -> U8:
    headers = np.zeros((len(applied), HEADER), np.uint8)
    headers[:, 0], headers[:, 1] = VERSION, flags
    headers[:, 8:16] = np.frombuffer(digest, np.uint8)
    headers[:, 16:24] = applied.astype("<i8").view(np.uint8).reshape(-1, 8)
    return headers


@dataclass(slots=True)
class Restored:
    """What a changelog holds: the newest snapshot of every stream."""

    keys: list[bytes]
    applied: I64
    rows: U8
    ended: dict[bytes, int]
    """Key -> A of streams that ended."""
    problem: str | None = None
    """Why it cannot be used, naming the stream; then the rest may be incomplete."""


def overlay(newest: dict[bytes, bytes], stretch: Changelog) -> None:
    """Adds a stretch, in log order: of each key only the newest is kept, however often it was written."""
    for key, value in zip(stretch.keys, stretch.values):
        if value is None:
            newest.pop(key, None)
        else:
            newest[key] = value


def restore(newest: dict[bytes, bytes], digest: bytes, row_bytes: int) -> Restored:
    """Snapshots by key, as columns."""
    live: list[bytes] = []
    values: list[bytes] = []
    ended: dict[bytes, int] = {}
    for key, value in newest.items():
        problem = _check(key, value, digest, row_bytes)
        if problem is not None:
            return Restored([], np.empty(0, np.int64), np.empty((0, row_bytes), np.uint8), {}, problem)
        if value[1] & ENDED:
            ended[key] = int.from_bytes(value[16:24], "little", signed=True)
        else:
            live.append(key)
            values.append(value)
    matrix = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), HEADER + row_bytes)
    applied = np.ascontiguousarray(matrix[:, 16:24]).view("<i8")[:, 0].astype(np.int64)
    return Restored(live, applied, matrix[:, HEADER:], ended)


def _check(key: bytes, value: bytes, digest: bytes, row_bytes: int) -> str | None:
    if len(value) < HEADER:
        return f"snapshot of stream {key!r} has {len(value)} bytes, less than its header's {HEADER}"
    if value[0] != VERSION:
        return f"snapshot of stream {key!r} has version {value[0]}, this Eddy reads {VERSION}"
    if value[8:16] != digest:
        return (
            f"snapshot of stream {key!r} was written by a model with {OTHER_ROWS}"
            f" ({value[8:16].hex()}, this one is {digest.hex()})"
        )
    expected = HEADER if value[1] & ENDED else HEADER + row_bytes
    if len(value) != expected:
        return f"snapshot of stream {key!r} has {len(value)} bytes, expected {expected}"
    return None


def assemble(arena_rows: U8, codec_rows: U8, head_rows: U8) -> U8:
    """Whole rows, ``uint8 [n, row_bytes]``, from what the engine, the codec and the head hold."""
    pieces = [p for p in (arena_rows, codec_rows, head_rows) if p.shape[1]]
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces, axis=1) if pieces else arena_rows


def split(rows: U8, arena_bytes: int, codec_bytes: int) -> tuple[U8, U8, U8]:
    """The inverse of ``assemble``."""
    a, b = arena_bytes, arena_bytes + codec_bytes
    return rows[:, :a], rows[:, a:b], rows[:, b:]
