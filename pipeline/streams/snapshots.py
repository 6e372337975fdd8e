"""A stream's row at one position, as a changelog record.

Value: a header of 32 bytes, then the row (model states by dtype, the codec's memory, the head's memory)::

    version u8 | flags u8 (1: ended) | zero, 2 bytes | CRC-32 of everything else, u32 |
    digest (``digest_of``), 8 bytes | A, int64 | when it was written, int64, ms since the epoch     (little-endian)

An ended stream has the header alone (X5): A is the offset of the record that ended it. A null value forgets (X12).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.beside import names_file
from pipeline.columns import I64, U8, Bools, Changelog, Records, as_list
from pipeline.contract import Contract

VERSION = 2
ENDED = 1
HEADER = 32
SUM = slice(4, 8)
DIGEST = slice(8, 16)
APPLIED = slice(16, 24)
WRITTEN = slice(24, 32)
OTHER_ROWS = "another state schema, or other settings of its codec or head"
GROWTH = 8 << 20
"""Bytes of a matrix of newest values, at least; only what is used of them is ever touched."""
PIECE = 2048
"""Values of a list that are joined at a time: what fits into a processor's cache costs half."""
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
    ended_keys: list[bytes]
    ended_applied: I64
    tombstones: list[bytes] = field(default_factory=list)
    """Keys to forget (X12). One of a key that has a snapshot here as well is void: it was meant for an older one."""

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes) + HEADER * (len(self.keys) + len(self.ended_keys))

    @staticmethod
    def none() -> Snapshots:
        return Snapshots.of(np.empty(0, np.int64), [], np.empty(0, np.int64), np.empty((0, 0), np.uint8))

    @staticmethod
    def of(serials: I64, keys: list[bytes], applied: I64, rows: U8) -> Snapshots:
        """Of streams that go on."""
        return Snapshots(serials, keys, applied, rows, [], np.empty(0, np.int64))

    @staticmethod
    def latest(parts: list[Snapshots]) -> Snapshots:
        """What is newest of each stream: the last row of each, none from before its key's end. A stream that had
        several slots meanwhile has a row from each, in order."""
        if len(parts) == 1 and not parts[0].ended_keys:
            return parts[0]
        serials = np.concatenate([p.serials for p in parts])
        ended = {k: a for p in parts for k, a in zip(p.ended_keys, p.ended_applied.tolist())}
        _, backwards = np.unique(serials[::-1], return_index=True)
        last = np.sort(len(serials) - 1 - backwards)
        keys = [k for p in parts for k in p.keys]
        applied = np.concatenate([p.applied for p in parts])
        if ended:  # by key, not by serial: who ends may have left the arena and come back since its row was saved
            before = [a < ended.get(keys[i], -1) for i, a in zip(last.tolist(), applied[last].tolist())]
            last = last[~np.array(before, np.bool_)]
        # Of none nobody knows how wide a row is: it does not join the others.
        rows = [p.rows for p in parts if len(p.keys)] or [parts[0].rows]
        return Snapshots(
            serials[last],
            [keys[i] for i in last.tolist()],
            applied[last],
            (np.concatenate(rows) if len(rows) > 1 else rows[0])[last],
            [k for p in parts for k in p.ended_keys],
            np.concatenate([p.ended_applied for p in parts]),
            [k for p in parts for k in p.tombstones],
        )

    def records(self, digest: bytes, now_ms: int, written_ms: I64 | None = None) -> Records:
        """Changelog records. Ends come before rows: a stream that began again under its key comes after its end.

        ``written_ms``: of each row, where it was first written at another time than now.
        """
        parts = []
        if self.tombstones:
            forgotten = dict.fromkeys(self.tombstones)
            for key in (*self.keys, *self.ended_keys):
                forgotten.pop(key, None)
            nothing: list[bytes | None] = [None] * len(forgotten)
            parts.append(Records(list(forgotten), nothing, np.full(len(forgotten), now_ms, np.int64)))
        if len(self.ended_keys):
            values = _values(digest, self.ended_applied, now_ms, ENDED, np.empty((len(self.ended_keys), 0), np.uint8))
            parts.append(Records(self.ended_keys, values, np.full(len(self.ended_keys), now_ms, np.int64)))
        if len(self.keys):
            values = _values(digest, self.applied, now_ms if written_ms is None else written_ms, 0, self.rows)
            parts.append(Records(self.keys, values, np.full(len(self.keys), now_ms, np.int64)))
        return Records.join(parts)


def _values(digest: bytes, applied: I64, written_ms: int | I64, flags: int, rows: U8) -> U8:
    """Whole values, ``uint8 [n, HEADER + row]``."""
    values = np.empty((len(rows), HEADER + rows.shape[1]), np.uint8)
    values[:, :4] = (VERSION, flags, 0, 0)
    values[:, DIGEST] = np.frombuffer(digest, np.uint8)
    values[:, APPLIED] = applied.astype("<i8").view(np.uint8).reshape(-1, 8)
    values[:, WRITTEN] = np.broadcast_to(np.asarray(written_ms, "<i8").reshape(-1, 1).view(np.uint8), (len(rows), 8))
    values[:, HEADER:] = rows
    values[:, SUM] = checksums(values).astype("<u4").view(np.uint8).reshape(-1, 4)
    return values


def checksums(values: U8) -> I64:
    """What should stand in each header, int64 ``[n]``: CRC-32 of all bytes of a value but those of the sum itself.

    ``values``: ``uint8 [n, at least HEADER]``, each row contiguous."""
    crc32, begin, end = zlib.crc32, SUM.start, SUM.stop
    starts = map(crc32, np.ascontiguousarray(values[:, :begin]))
    return np.fromiter(map(crc32, values[:, end:], starts), np.int64, len(values))


class Newest:
    """The newest value of every key of a changelog partition, however often each was written; columns in, columns out.

    Values that are as long as a snapshot of this row stand in one matrix, whatever they hold; ``restore`` judges them.
    """

    def __init__(self, row_bytes: int, room_bytes: int = 0) -> None:
        """``room_bytes``: so much is likely to come; what is not used of it is never touched."""
        self._width = HEADER + row_bytes
        self._index: dict[bytes, int] = {}
        self._matrix: U8 = np.empty((room_bytes // self._width, self._width), np.uint8)
        self._used = 0
        self.others: dict[bytes, bytes] = {}
        """Values of any other length: ends, and what another model wrote."""
        self.told = False
        """Something was committed to this changelog, if only that a key is forgotten: a group has begun (X8)."""

    def __len__(self) -> int:
        return len(self._index) + len(self.others)

    def add(self, stretch: Changelog) -> None:
        """Adds a stretch, in the log's order. A null value forgets its key (X12)."""
        keys, values = stretch.keys, stretch.values
        self.told |= len(keys) > 0
        last = dict(zip(keys, range(len(keys))))
        which = list(last.values())
        if isinstance(values, np.ndarray) and values.shape[1] == self._width:
            if len(last) < len(keys):
                keys, values = list(last), values[which]
            self._put(keys, values)
            return
        values = as_list(values)
        rows: list[tuple[bytes, bytes]] = []
        for key, i in last.items():
            value = values[i]
            if value is not None and len(value) == self._width:
                rows.append((key, value))
                continue
            self._index.pop(key, None)
            if value is None:
                self.others.pop(key, None)
            else:
                self.others[key] = value
        for a in range(0, len(rows), PIECE):
            piece = rows[a : a + PIECE]
            matrix = np.frombuffer(b"".join([value for _, value in piece]), np.uint8).reshape(len(piece), self._width)
            self._put([key for key, _ in piece], matrix)

    def _put(self, keys: list[bytes], values: U8) -> None:
        """``values``: ``uint8 [n, width]`` of distinct keys."""
        at = self._index.get
        where = np.fromiter((at(key, -1) for key in keys), np.int64, len(keys))
        new = np.flatnonzero(where < 0)
        if len(new):
            end = self._used + len(new)
            if end > len(self._matrix):
                # A new one and a copy: growing in place takes ten times as long, by pages of 4 KiB.
                grown = np.empty((max(end, 2 * self._used, GROWTH // self._width), self._width), np.uint8)
                grown[: self._used] = self._matrix[: self._used]
                self._matrix = grown
            where[new] = np.arange(self._used, end)
            fresh = [keys[i] for i in new.tolist()] if len(new) < len(keys) else keys
            self._index.update(zip(fresh, range(self._used, end)))
            self._used = end
            if self.others:
                for key in fresh:
                    self.others.pop(key, None)
        if len(new) == len(keys):
            self._matrix[self._used - len(new) : self._used] = values
        else:
            self._matrix[where] = values

    def columns(self) -> tuple[list[bytes], U8]:
        """Keys and values of those as long as a snapshot; a view, good until the next ``add``."""
        keys, matrix = list(self._index), self._matrix[: self._used]
        if len(keys) < self._used:
            matrix = matrix[list(self._index.values())]
        return keys, matrix


@dataclass(frozen=True, slots=True)
class Problem:
    """A snapshot that cannot be read; its stream has no state unless policy gives it a new one."""

    key: bytes
    kind: Literal["corrupt", "foreign", "version"]
    """Damaged; written by another model; in a layout that this version does not know."""
    text: str
    """What a user is told; names the stream."""


@dataclass(slots=True)
class Restored:
    """What a changelog holds: the newest snapshot of every stream that can be read, and what is wrong with the rest."""

    keys: list[bytes]
    applied: I64
    written_ms: I64
    """When each was written, ms since the epoch."""
    rows: U8
    ended: dict[bytes, int]
    """Key -> A of streams that ended."""
    problems: list[Problem] = field(default_factory=list)
    told: bool = True
    """Something was committed to the changelog before; see Newest."""

    def __len__(self) -> int:
        """All snapshots, readable or not."""
        return len(self.keys) + len(self.ended) + len(self.problems)


def restore(newest: Newest, digest: bytes) -> Restored:
    """Snapshots as columns; ``rows`` may be a view of ``newest``, which nothing is added to any more."""
    keys, values = newest.columns()
    odd = newest.others
    sound = _sound(values, digest)
    if not sound.all():
        odd = odd | {keys[i]: values[i].tobytes() for i in np.flatnonzero(~sound).tolist()}
        keys, values = [keys[i] for i in np.flatnonzero(sound).tolist()], values[sound]
    ended: dict[bytes, int] = {}
    problems: list[Problem] = []
    for key, value in odd.items():
        problem = _problem(key, value, digest, values.shape[1])
        if problem is None:
            ended[key] = int.from_bytes(value[APPLIED], "little", signed=True)
        else:
            problems.append(problem)
    applied, written_ms = _int64(values, APPLIED), _int64(values, WRITTEN)
    return Restored(keys, applied, written_ms, values[:, HEADER:], ended, problems, newest.told)


def _sound(values: U8, digest: bytes) -> Bools:
    """Which are whole snapshots of this model's, of streams that go on. ``values``: ``uint8 [n, at least HEADER]``."""
    sound: Bools = (values[:, :4] == (VERSION, 0, 0, 0)).all(axis=1)
    sound &= (values[:, DIGEST] == np.frombuffer(digest, np.uint8)).all(axis=1)
    sound &= checksums(values) == np.ascontiguousarray(values[:, SUM]).view("<u4")[:, 0]
    return sound


def _problem(key: bytes, value: bytes, digest: bytes, width: int) -> Problem | None:
    """Why a value that is no snapshot of a live stream is no end of one either; None: it is one."""
    who = f"snapshot of stream {key!r}"
    if len(value) < HEADER:
        return Problem(key, "corrupt", f"{who} has {len(value)} bytes, less than its header's {HEADER}")
    if value[0] != VERSION:
        return Problem(key, "version", f"{who} has version {value[0]}, this Eddy reads {VERSION}")
    if checksums(np.frombuffer(value, np.uint8)[None])[0] != int.from_bytes(value[SUM], "little"):
        return Problem(key, "corrupt", f"{who} is damaged: its checksum does not fit its {len(value)} bytes")
    if value[1:4] == bytes((ENDED, 0, 0)) and len(value) == HEADER:
        return None  # whoever wrote it: there is no row in it
    if value[DIGEST] != digest:
        text = f"was written by a model with {OTHER_ROWS} ({value[DIGEST].hex()}, this one is {digest.hex()})"
        return Problem(key, "foreign", f"{who} {text}")
    if value[1:4] not in (b"\0\0\0", bytes((ENDED, 0, 0))):
        return Problem(key, "version", f"{who} has flags {value[1:4].hex()}, which this Eddy does not know")
    expected = HEADER if value[1] == ENDED else width
    return Problem(key, "corrupt", f"{who} has {len(value)} bytes, expected {expected}")


def _int64(values: U8, field: slice) -> I64:
    return np.ascontiguousarray(values[:, field]).view("<i8")[:, 0].astype(np.int64)


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
