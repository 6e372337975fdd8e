"""The arrays that flow from room to room.

A *segment* is one partition's stretch of a poll, as it was fetched. A *poll* holds the steps of many segments side
by side. A *rectangle* is one call of the engine. A *part* is what one partition gives to a commit. Columns are
parallel: index ``i`` of every column speaks of the same record (or step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecordError

I64: TypeAlias = NDArray[np.int64]
U8: TypeAlias = NDArray[np.uint8]
Bools: TypeAlias = NDArray[np.bool_]
AnyArray: TypeAlias = NDArray[Any]
Headers: TypeAlias = Sequence[tuple[str, bytes]]
RECORD_OVERHEAD = 160
"""Bytes that a record takes in memory beside its value, its key included; counted into the queues' bounds."""
Values: TypeAlias = "U8 | list[bytes | None]"
"""Record values: a matrix ``uint8 [n, V]`` where all are equally long, else a list (None is a null value)."""


@dataclass(slots=True)
class Segment:
    """One partition's stretch of a poll, as fetched: ``n`` records, maybe none.

    ``next_offset`` is where the next fetch begins: offsets between the last record and it hold no record for us
    (control batches, aborted or compacted away) and count as done. ``headers`` is None when no record has any.
    """

    partition: int
    keys: list[bytes | None]
    values: list[bytes | None]
    offsets: I64
    """int64 ``[n]``, ascending, not necessarily dense."""
    timestamps: I64
    """int64 ``[n]``, milliseconds since the epoch."""
    next_offset: int
    headers: list[Headers] | None = None
    value_bytes: int = 0
    """Sum of the values' lengths, bytes."""
    fetched_s: float = 0.0
    """When it was fetched, seconds of the event loop's clock."""
    ahead: list[AnyArray | RecordError | None] | None = None
    """What became of each record that was decoded before its poll; None for what is not to be decoded."""
    ends: I64 | None = None
    """int64 ``[n]``: behind each record, where the next record of the partition lies (no record is between them). None
    where nobody has asked."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """What it takes in memory, bytes: what the queues' bounds count."""
        size = self.value_bytes + RECORD_OVERHEAD * len(self.keys)
        if self.ahead is not None:
            size += sum(step.nbytes for step in self.ahead if isinstance(step, np.ndarray))
        if self.headers is not None:
            size += sum(len(name) + len(value) for headers in self.headers for name, value in headers)
        return size

    def cut(self, i: int) -> tuple[Segment, Segment]:
        """The first ``i`` records and the rest; the first part ends where the rest begins."""
        if i >= len(self.keys):
            empty = Segment(self.partition, [], [], self.offsets[:0], self.timestamps[:0], self.next_offset)
            return self, empty
        head_bytes = sum(map(len, filter(None, self.values[:i])))
        headers = self.headers
        first = Segment(
            self.partition,
            self.keys[:i],
            self.values[:i],
            self.offsets[:i],
            self.timestamps[:i],
            int(self.offsets[i]),
            headers[:i] if headers is not None else None,
            head_bytes,
            self.fetched_s,
            self.ahead[:i] if self.ahead is not None else None,
            self.ends[:i] if self.ends is not None else None,
        )
        rest = Segment(
            self.partition,
            self.keys[i:],
            self.values[i:],
            self.offsets[i:],
            self.timestamps[i:],
            self.next_offset,
            headers[i:] if headers is not None else None,
            self.value_bytes - head_bytes,
            self.fetched_s,
            self.ahead[i:] if self.ahead is not None else None,
            self.ends[i:] if self.ends is not None else None,
        )
        return first, rest

    def pick(self, which: Sequence[int]) -> Segment:
        """Some of its records, by index, in this order."""
        values = [self.values[i] for i in which]
        return Segment(
            self.partition,
            [self.keys[i] for i in which],
            values,
            self.offsets[which],
            self.timestamps[which],
            self.next_offset,
            [self.headers[i] for i in which] if self.headers is not None else None,
            sum(map(len, filter(None, values))),
            self.fetched_s,
            [self.ahead[i] for i in which] if self.ahead is not None else None,
            self.ends[which] if self.ends is not None else None,
        )

    @staticmethod
    def join(segments: Sequence[Segment]) -> Segment:
        """One partition's stretches, at least one, each beginning where the one before it ends."""
        first, last = segments[0], segments[-1]
        if len(segments) == 1:
            return first
        ends = [s.ends for s in segments if s.ends is not None]
        headers: list[Headers] | None = None
        if any(s.headers is not None for s in segments):
            headers = [h for s in segments for h in (s.headers if s.headers is not None else [()] * len(s))]
        return Segment(
            first.partition,
            [k for s in segments for k in s.keys],
            [v for s in segments for v in s.values],
            np.concatenate([s.offsets for s in segments]),
            np.concatenate([s.timestamps for s in segments]),
            last.next_offset,
            headers,
            sum(s.value_bytes for s in segments),
            first.fetched_s,
            join_ahead(segments),
            np.concatenate(ends) if len(ends) == len(segments) else None,
        )


def join_ahead(segments: Sequence[Segment]) -> list[AnyArray | RecordError | None] | None:
    """What was decoded ahead of these stretches; None where nothing was."""
    if all(s.ahead is None for s in segments):
        return None
    return [a for s in segments for a in (s.ahead if s.ahead is not None else [None] * len(s))]


@dataclass(slots=True)
class Records:
    """Records to be written to one partition of one topic, as columns; ``n`` of them, maybe none.

    Headers come in three kinds, joined per record in this order: ``constant`` (the same for all), ``columns`` (one
    name, a fixed-width ``uint8 [n, W]`` value that differs by record) and ``extra`` (anything, per record; None when
    no record has any).
    """

    keys: Sequence[bytes | None]
    """None only where the record has none (a dead letter)."""
    values: Values
    timestamps: I64
    constant: tuple[tuple[str, bytes], ...] = ()
    columns: tuple[tuple[str, U8], ...] = ()
    extra: list[Headers] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def value_bytes(self) -> int:
        """Sum of the values' lengths, bytes."""
        return bytes_of(self.values)

    @staticmethod
    def none() -> Records:
        return Records([], [], np.empty(0, np.int64))

    @staticmethod
    def join(parts: Sequence[Records]) -> Records:
        """One after the other. All must have the same constant and column headers."""
        parts = [p for p in parts if len(p)]
        if not parts:
            return Records.none()
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        keys = [k for p in parts for k in p.keys]
        matrices = [p.values for p in parts if isinstance(p.values, np.ndarray)]
        values: Values
        if len(matrices) == len(parts) and len({m.shape[1] for m in matrices}) == 1:
            values = np.concatenate(matrices)
        else:
            values = [v for p in parts for v in as_list(p.values)]
        extra: list[Headers] | None = None
        if any(p.extra is not None for p in parts):
            extra = [h for p in parts for h in (p.extra if p.extra is not None else [()] * len(p))]
        columns = tuple(
            (name, np.concatenate([p.columns[i][1] for p in parts])) for i, (name, _) in enumerate(first.columns)
        )
        timestamps = np.concatenate([p.timestamps for p in parts])
        return Records(keys, values, timestamps, first.constant, columns, extra)


def bytes_of(values: Values) -> int:
    """Sum of their lengths, bytes."""
    if isinstance(values, np.ndarray):
        return int(values.size)
    return sum(len(v) for v in values if v is not None)


def as_list(values: Values) -> list[bytes | None]:
    """Values as bytes objects; for the few places that need one per record."""
    if not isinstance(values, np.ndarray):
        return values
    blob, width = values.tobytes(), values.shape[1]
    return [blob[i : i + width] for i in range(0, len(blob), width)] if width else [b""] * len(values)


def source_column(partition: int, offsets: I64) -> U8:
    """The ``eddy-source`` header's values, ``uint8 [n, 12]``: int32 partition, int64 offset, big-endian."""
    out = np.empty((len(offsets), 12), np.uint8)
    out[:, :4] = np.frombuffer(int(partition).to_bytes(4, "big"), np.uint8)
    out[:, 4:] = offsets.astype(">i8").view(np.uint8).reshape(-1, 8)
    return out


@dataclass(frozen=True, slots=True)
class Rectangle:
    """One call of the engine: ``T`` steps of each of ``B`` streams; no padding, no lengths."""

    slots: I64
    """int64 ``[B]``, ascending, distinct."""
    positions: I64
    """int64 ``[T, B]``: which steps of the poll; along T a stream's own order."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Consumer group generation and member id, as they were when the partitions were assigned (X1).

    Raises ValueError on generation -1 or an empty member id: those pass the broker unchecked.
    """

    group: str
    generation: int
    member_id: str
    instance_id: str | None = None

    def __post_init__(self) -> None:
        if self.generation < 0 or not self.member_id:
            raise ValueError(f"not a membership: generation {self.generation}, member {self.member_id!r}")


@dataclass(frozen=True, slots=True)
class Part:
    """What one partition gives to a commit, frozen (X2). It is sent as it is, or not at all."""

    partition: int
    tag: bytes
    committed: int
    """C: every input offset below it is done once this part is visible."""
    metadata: str
    """What goes beside the offset: version, tag, C, R, D, digest (base64)."""
    outputs: Records = field(default_factory=Records.none)
    dead_letters: Records = field(default_factory=Records.none)
    snapshots: Records = field(default_factory=Records.none)
    asked_ms: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    """Timestamps of the input records that it makes done; nothing is written of them."""
    frozen_ms: int = 0
    """When, by the wall clock."""


IMPORTING = "eddy: states are being imported, and not all of them are here yet"
"""Beside an offset in place of metadata: no worker begins there (X15)."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A partition's committed offset and the metadata beside it, as the group holds them."""

    offset: int
    metadata: str


@dataclass(slots=True)
class Changelog:
    """A stretch of a changelog partition, as read: ``n`` records, maybe none. A null value is a tombstone."""

    keys: list[bytes]
    values: Values
    offsets: I64
    """int64 ``[n]``, ascending, not necessarily dense."""
    next_offset: int
    """Where a reading goes on: above it is what this stretch has not told of."""
    log_end: int = 0
    """What the reading goes up to, where it has an end; 0: not known."""
    whole_ms: int = 0
    """When the log had nothing above ``next_offset``, by the wall clock; 0: it may have had."""

    @property
    def value_bytes(self) -> int:
        """Sum of the values' lengths, bytes."""
        return bytes_of(self.values)
