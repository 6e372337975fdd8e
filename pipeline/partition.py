"""One partition's memory: what waits, what is done, what is frozen. Pure: no clock, no I/O.

The plain form of the commit: whole finished polls in order, so nothing above C is ever done (D is empty), and every
part carries the snapshot of every stream it advanced, so a replay never begins below C (R = C, X6).
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipeline.columns import I64, RECORD_OVERHEAD, Membership, Part, Records, Segment
from pipeline.errors import Broken
from pipeline.streams.slots import Index, Slots
from pipeline.streams.snapshots import Snapshots

MARK_VERSION = 1
MARK_BYTES_MAX = 3000
"""Of base64 beside an offset (X2); brokers refuse more than 4,096 by default."""
_MARK = struct.Struct("<B16sqqH8s")


@dataclass(frozen=True, slots=True)
class Mark:
    """The metadata beside a committed offset (X2)."""

    tag: bytes
    committed: int
    """C, once more: an offset set by somebody's tool does not have it."""
    replay_from: int
    """R."""
    digest: bytes
    done_above: tuple[tuple[int, int], ...] = ()
    """D as runs ``(first, count)``; always empty in the plain form."""
    version: int = MARK_VERSION

    def encode(self) -> str:
        raw = _MARK.pack(
            self.version, self.tag, self.committed, self.replay_from, len(self.done_above), self.digest
        ) + b"".join(struct.pack("<qq", *run) for run in self.done_above)
        text = base64.b64encode(raw).decode()
        if len(text) > MARK_BYTES_MAX:
            raise Broken(f"offset metadata of {len(text)} bytes, at most {MARK_BYTES_MAX}")
        return text

    @staticmethod
    def decode(text: str) -> Mark | None:
        """None for metadata that is not Eddy's (blank, or another program's)."""
        try:
            raw = base64.b64decode(text, validate=True)
            version, tag, committed, replay_from, runs, digest = _MARK.unpack_from(raw)
            done = tuple(struct.unpack_from("<qq", raw, _MARK.size + 16 * i) for i in range(runs))
        except (binascii.Error, ValueError, struct.error):
            return None
        return Mark(tag, committed, replay_from, digest, done, version)


class Tags:
    """Unique per part: eight random bytes per process start, and a counter (X2)."""

    def __init__(self, incarnation: bytes) -> None:
        if len(incarnation) != 8:
            raise ValueError(f"incarnation of {len(incarnation)} bytes, expected 8")
        self._incarnation, self._count = incarnation, 0

    def next(self) -> bytes:
        self._count += 1
        return self._incarnation + self._count.to_bytes(8, "big")


@dataclass(slots=True)
class Done:
    """What one finished poll leaves for one partition."""

    next_offset: int
    outputs: Records
    dead_letters: Records
    snapshots: Snapshots
    asked_ms: I64
    """Timestamps of its input records, int64 ``[n]``."""

    @property
    def nbytes(self) -> int:
        records = len(self.outputs) + len(self.dead_letters)
        values = self.outputs.value_bytes + self.dead_letters.value_bytes
        return values + self.snapshots.nbytes + RECORD_OVERHEAD * records


@dataclass(slots=True)
class Memory:
    """A partition's memory since its takeover. Replaced as a whole by the next takeover, never repaired (X4, X11)."""

    partition: int
    membership: Membership
    """As it was when the partition was assigned (X1)."""
    base: bytes | None
    """Tag that the takeover read; then that of the last own part committed (X4). None: the group had none."""
    committed: int
    """C."""
    index: Index
    admitted: int
    """Where the next segment to be taken into a poll begins, at the least."""
    backlog: deque[Segment] = field(default_factory=deque)
    """Fetched, not yet taken into a poll."""
    backlog_bytes: int = 0
    backlog_records: int = 0
    undecoded_bytes: int = 0
    """Fetched, and on its way to the backlog: being decoded ahead, or waiting for that."""
    pending: list[Done] = field(default_factory=list)
    """Finished, not yet in a part, in order."""
    uncommitted_bytes: int = 0
    """Of polls in flight, of ``pending`` and of the frozen part."""
    frozen: Part | None = None
    frozen_bytes: int = 0
    in_flight: int = 0
    """Polls that hold slots of this memory."""
    feedable: list[I64] = field(default_factory=list)
    """Slots of streams that want another generated step and have none in flight."""
    closed: bool = False
    """Dropped: whatever still comes back for it is ignored."""
    blocked: str | None = None
    """Why the first record of the backlog cannot be taken now: ``slots`` or ``generation``."""
    said_blocked: bool = False
    """It was logged that it waits for slots."""

    def offer(self, segment: Segment) -> None:
        """Fetched records join the backlog."""
        self.backlog.append(segment)
        self._waits(segment)

    @property
    def waiting_bytes(self) -> int:
        """Fetched and in no poll yet."""
        return self.backlog_bytes + self.undecoded_bytes

    def waiting_steps(self, step_bytes: int) -> int:
        """About how many steps of ``step_bytes`` the backlog has, at least one a record."""
        return max(1, self.backlog_records, self.backlog_bytes // step_bytes)

    def _waits(self, segment: Segment, sign: int = 1) -> None:
        self.backlog_bytes += sign * segment.nbytes
        self.backlog_records += sign * len(segment)

    def take(self, step_budget: int, step_bytes: int, records_max: int) -> Segment | None:
        """From the backlog's head: about ``step_budget`` steps of ``step_bytes`` each, at least one record."""
        taken: list[Segment] = []
        while self.backlog and records_max > 0:
            n = len(self.backlog[0])
            if n:
                mean = max(1.0, self.backlog[0].value_bytes / step_bytes / n)
                fits = max(0 if taken else 1, min(records_max, int(step_budget / mean)))
                if not fits:
                    break
                if fits < n:
                    first, rest = self.backlog.popleft().cut(fits)
                    self.backlog.extendleft((rest, first))
                records_max -= min(fits, n)
                step_budget -= int(min(fits, n) * mean)
            taken.append(self.backlog.popleft())
        if not taken:
            return None
        segment = Segment.join(taken)
        self._waits(segment, -1)
        return segment

    def give_back(self, segment: Segment) -> None:
        """The rest of a segment that could not be taken whole."""
        self.backlog.appendleft(segment)
        self._waits(segment)

    def finished(self, done: Done, input_bytes: int) -> None:
        """A poll of it is finished (S3: in the order of polls)."""
        self.uncommitted_bytes += done.nbytes - input_bytes
        self.pending.append(done)

    def freeze(self, tag: bytes, digest: bytes, now_ms: int, merge: Callable[[Records], Records]) -> Part | None:
        """What is finished becomes a part (X2); None when there is nothing that the group does not know yet (a new
        group does not know its start: X8).

        Whole polls in order: C is where the last one ends, every stream advanced has its newest snapshot in here, so
        what it shows is covered (X5, X7) and R = C (X6).
        """
        if self.frozen is not None:
            raise Broken(f"partition {self.partition}: a second part while {self.frozen.tag.hex()} is frozen")
        new_group = self.base is None
        if not self.pending and not new_group:
            return None
        done, self.pending = self.pending, []
        size = sum(d.nbytes for d in done)
        committed = done[-1].next_offset if done else self.committed
        if committed < self.committed:
            raise Broken(f"partition {self.partition}: C would fall from {self.committed} to {committed}")
        outputs = merge(Records.join([d.outputs for d in done]))
        dead = Records.join([d.dead_letters for d in done])
        snapshots = Snapshots.latest([d.snapshots for d in done]).records(digest, now_ms) if done else Records.none()
        if not (new_group or len(outputs) or len(dead) or len(snapshots) or committed != self.committed):
            self.uncommitted_bytes -= size
            return None
        self.frozen_bytes = size
        mark = Mark(tag, committed, committed, digest)
        asked = np.concatenate([d.asked_ms for d in done]) if done else np.empty(0, np.int64)
        self.frozen = Part(self.partition, tag, committed, mark.encode(), outputs, dead, snapshots, asked)
        return self.frozen

    def saved(self, part: Part) -> None:
        """EndTxn has succeeded: the part is in memory as committed and its tag is the base (X3)."""
        if self.frozen is not part:
            raise Broken(f"partition {self.partition}: part {part.tag.hex()} was saved but is not the frozen one")
        self.frozen = None
        self.uncommitted_bytes -= self.frozen_bytes
        self.frozen_bytes = 0
        self.base, self.committed = part.tag, part.committed

    def close(self, slots: Slots) -> None:
        """Drops everything. Its slots are free once no run in flight has them (X11)."""
        self.closed = True
        self.backlog.clear()
        self.pending.clear()
        self.feedable.clear()
        self.frozen = None
        self.backlog_bytes = self.backlog_records = self.undecoded_bytes = 0
        self.uncommitted_bytes = self.frozen_bytes = 0
        self.release_if_idle(slots)

    def release_if_idle(self, slots: Slots) -> None:
        """Called when a run is back: a closed memory gives its slots up with the last one."""
        if self.closed and not self.in_flight:
            slots.release(list(self.index.values()))
            self.index.clear()


def fair_bound(total_bytes: int, partitions: int) -> int:
    """One partition's part of a bound in bytes, at least 64 KiB."""
    return max(65_536, total_bytes // max(1, partitions))
