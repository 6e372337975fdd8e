"""One partition's memory: what waits, what is done, dirty and frozen; C, D and R. Pure: no clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.aside import Aside
from pipeline.columns import I64, RECORD_OVERHEAD, Membership, Part, Records, Segment
from pipeline.dirty import Dirty
from pipeline.errors import Broken
from pipeline.mark import NOT_KNOWN, Mark, Progress, Run, Topics
from pipeline.streams.slots import Index, Slots
from pipeline.streams.snapshots import Snapshots
from pipeline.streams.tier import Tier

BEGUN = b""
"""Key of the first record of a changelog partition; its null value forgets nothing."""
TOMBSTONES_MAX = 4096
"""In one part."""


@dataclass(slots=True)
class Done:
    """What one finished poll leaves for one partition."""

    progress: Progress
    """As it is once this poll and those before it are finished."""
    outputs: Records
    dead_letters: Records
    snapshots: Snapshots
    asked_ms: I64
    """Timestamps of its input records, int64 ``[n]``."""
    unhurried: bool = False
    """Nothing but pieces of generations that go on: they may wait for more (``generate_flush_ms``)."""

    @property
    def nbytes(self) -> int:
        records = len(self.outputs) + len(self.dead_letters)
        values = self.outputs.value_bytes + self.dead_letters.value_bytes
        return values + self.snapshots.nbytes + RECORD_OVERHEAD * records


@dataclass(frozen=True, slots=True)
class Frozen:
    """A part that is to be sent until the group has it, and what changes in memory once it has."""

    part: Part
    nbytes: int
    replay_from: int
    ended: Mapping[bytes, int]
    going_on: Sequence[bytes]
    """Streams with a row: whatever ended under such a key before, it is not the newest."""
    forgotten: Sequence[bytes]
    """Streams with a tombstone."""


@dataclass(slots=True)
class Memory:
    """A partition's memory since its takeover. Kept as long as it is this worker's own (X4), else replaced as a whole
    by the next takeover; never repaired (X11)."""

    partition: int
    membership: Membership
    """As it was when the partition was last assigned (X1)."""
    base: bytes | None
    """Tag that the takeover read; then that of the last own part committed (X4). None: the group had none."""
    committed: int
    """C."""
    replay_from: int
    """R."""
    index: Index
    slots: Slots
    tier: Tier
    """Where its streams are that have no slot just now."""
    replay: tuple[Run, ...] = ()
    """What was done before the takeover and is to be applied again, hidden: all below C, and D. Empty when that is
    over."""
    ended: dict[bytes, int] = field(default_factory=dict)
    """Streams whose snapshot says that they ended, and A: a tombstone is due once R has passed it (X12)."""
    checked: bool = True
    """The group was asked whose this memory is since the last assignment or failure (X4)."""

    admitted: int = field(init=False)
    """Where the next segment to be taken into a poll begins, at the least."""
    dirty_since_s: float = 0.0
    """Of streams that are dirty because of a replay, seconds of the worker's clock."""
    fetched: int = field(init=False)
    """Where the next fetch begins."""
    progress: Progress = field(init=False)
    """Of finished polls since the takeover, what was done before it not counted."""
    dirty: Dirty = field(init=False)
    replay_until: int = field(init=False)
    backlog: deque[Segment] = field(default_factory=deque)
    """Fetched, not yet taken into a poll."""
    backlog_bytes: int = 0
    backlog_records: int = 0
    undecoded_bytes: int = 0
    """Fetched, and on its way to the backlog: being decoded ahead, or waiting for that."""
    aside: Aside = field(default_factory=Aside)
    """Fetched and passed by its neighbours."""
    reading_on: bool = False
    """Much of its log is on its way: records that what is set aside keeps waiting (S3)."""
    pending: list[Done] = field(default_factory=list)
    """Finished, not yet in a part, in order."""
    uncommitted_bytes: int = 0
    """Of polls in flight, of ``pending`` and of the frozen part."""
    frozen: Frozen | None = None
    published: bool = False
    """Outputs of the frozen part are out already (at least once, X13)."""
    in_flight: int = 0
    """Polls that hold slots of this memory."""
    feedable: list[I64] = field(default_factory=list)
    """Slots of streams that want another generated step and have none in flight."""
    expiring: dict[bytes, int] = field(default_factory=dict)
    """Streams that are being forgotten, and A; their next records wait for the outcome (X12)."""
    skipped: int = 0
    """Records left out of a replay since it was last told: their streams' snapshots include them."""
    closed: bool = False
    """Dropped: whatever still comes back for it is ignored."""
    blocked: str | None = None
    """Why the first record of the backlog cannot be taken now: ``slots`` or ``order``."""
    said_blocked: bool = False
    """It was logged that it waits for slots."""

    def __post_init__(self) -> None:
        self.admitted = self.fetched = self.replay_from
        self.progress = Progress(self.replay_from)
        self.dirty = Dirty(self.slots)
        self.replay_until = self.replay[-1][1] if self.replay else self.replay_from
        self._ended_by_offset = deque(sorted((a, key) for key, a in self.ended.items()))

    _ended_by_offset: deque[tuple[int, bytes]] = field(init=False)

    # ---- what waits

    def offer(self, segment: Segment) -> None:
        """Fetched records join the backlog."""
        self.backlog.append(segment)
        self._waits(segment)

    @property
    def waiting_bytes(self) -> int:
        """Fetched, and neither in a poll yet nor set aside."""
        return self.backlog_bytes + self.undecoded_bytes

    @property
    def replaying(self) -> bool:
        """Records that were done before the takeover are still to come."""
        return self.admitted < self.replay_until

    def waiting_steps(self, step_bytes: int) -> int:
        """About how many steps of ``step_bytes`` the backlog has, at least one a record."""
        return max(1, self.backlog_records, self.backlog_bytes // step_bytes) + self.aside.records

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

    # ---- what is done

    def finished(self, done: Done, input_bytes: int) -> None:
        """A poll of it is finished (S3: in the order of polls)."""
        self.uncommitted_bytes += done.nbytes - input_bytes
        self.progress = done.progress
        self.pending.append(done)

    def nothing_done(self) -> Done:
        """What may carry a snapshot, or a tombstone, apart from any poll."""
        nothing = Records.none()
        return Done(self.progress, nothing, nothing, Snapshots.none(), np.empty(0, np.int64), unhurried=True)

    @property
    def busy(self) -> bool:
        """Something of it waits, runs or is to be committed."""
        return bool(self.backlog or self.aside or self.in_flight or self.pending or self.frozen is not None)

    @property
    def behind(self) -> bool:
        """Records were fetched that lie at C or above it."""
        return self.fetched > self.committed

    @property
    def hurried(self) -> bool:
        """Something is to be committed that waits for nothing."""
        return self.base is None or self.frozen is not None or any(not d.unhurried for d in self.pending)

    @property
    def unsaid(self) -> bool:
        """There may be something that the group does not know yet."""
        return self.frozen is not None or bool(self.pending) or self.base is None

    @property
    def will_show(self) -> bool:
        """The next part is likely to have outputs: what runs now may be done by then."""
        if self.frozen is not None:
            return len(self.frozen.part.outputs) > 0
        return self.in_flight > 0 or any(len(d.outputs) for d in self.pending)

    @property
    def will_save(self) -> bool:
        """It is likely to have snapshots."""
        if self.frozen is not None:
            return len(self.frozen.part.snapshots) > 0
        return self.base is None or any(d.snapshots.nbytes for d in self.pending)

    def freeze(
        self, tag: bytes, digest: bytes, now_ms: int, merge: Callable[[Records], Records], topics: Topics = NOT_KNOWN
    ) -> Part | None:
        """What is finished becomes a part (X2); None when there is nothing that the group does not know yet (a new
        group does not know its start: X8).

        Whole polls in order, so every snapshot among them includes only what is done once the part is visible (X5), and
        one that a choice needs is in the poll that shows the choice (X7).
        """
        if self.frozen is not None:
            raise Broken(f"partition {self.partition}: a second part while {self.frozen.part.tag.hex()} is frozen")
        new_group = self.base is None
        if not self.pending and not new_group:
            return None
        now = self.progress.and_done(self.replay)
        if not now.fits:
            return None  # what D has no room for waits until the gaps below it are filled (X2)
        done, self.pending = self.pending, []
        size = sum(d.nbytes for d in done)
        replay_from = self._replay_from(now)
        if now.low < self.committed or replay_from < self.replay_from:
            raise Broken(
                f"partition {self.partition}: C would fall from {self.committed} to {now.low}, or R from"
                f" {self.replay_from} to {replay_from}"
            )
        if self.replay and self.progress.low >= self.replay_until:
            self.replay = ()
        outputs = merge(Records.join([d.outputs for d in done]))
        dead = Records.join([d.dead_letters for d in done])
        latest = Snapshots.latest([d.snapshots for d in done]) if done else Snapshots.none()
        forgotten = self._to_forget(replay_from, latest)
        if new_group:
            # The changelog tells from now on that the group has begun (X8): another offset is no start then.
            forgotten.append(BEGUN)
        latest.tombstones = forgotten
        snapshots = latest.records(digest, now_ms)
        # The end of a replay may leave nothing but R to be said; else it would stand where retention comes to pass it.
        moved = now.low != self.committed or (replay_from != self.replay_from and not self.replay)
        if not (new_group or len(outputs) or len(dead) or len(snapshots) or moved):
            self.uncommitted_bytes -= size
            return None
        mark = Mark(tag, now.low, replay_from, digest, now.done_above, topics=topics)
        asked = np.concatenate([d.asked_ms for d in done]) if done else np.empty(0, np.int64)
        part = Part(self.partition, tag, now.low, mark.encode(), outputs, dead, snapshots, asked, now_ms)
        ended = dict(zip(latest.ended_keys, latest.ended_applied.tolist()))
        self.frozen = Frozen(part, size, replay_from, ended, latest.keys, forgotten)
        self.published = False
        return part

    def _replay_from(self, now: Progress) -> int:
        """R (X6): the lowest done record that no snapshot includes. What was done before the takeover and is yet to be
        applied again counts: it begins where this memory has not come to."""
        dirty = self.dirty.lowest()
        lowest = min(now.low, self.progress.low)
        return lowest if dirty is None else min(lowest, dirty)

    def _to_forget(self, replay_from: int, latest: Snapshots) -> list[bytes]:
        """X12: streams that ended or expired, whose last snapshot is still their newest, and whose last record no
        replay comes to."""
        gone: list[bytes] = []
        while self._ended_by_offset and self._ended_by_offset[0][0] < replay_from and len(gone) < TOMBSTONES_MAX:
            a, key = self._ended_by_offset.popleft()
            # Else it began again, or ended again since: that end comes later in the queue.
            if self.ended.get(key) == a:
                del self.ended[key]
                if key not in self.index and (self.partition, key) not in self.tier:
                    gone.append(key)
        gone += [key for key, a in self.expiring.items() if a < replay_from]
        if gone:
            fresh = {*latest.keys, *latest.ended_keys}
            gone = [key for key in dict.fromkeys(gone) if key not in fresh]
        return gone

    def saved(self, part: Part) -> None:
        """The part is committed: EndTxn has succeeded (X3), or the group holds its tag (X4). It is the base now."""
        frozen = self.frozen
        if frozen is None or frozen.part is not part:
            raise Broken(f"partition {self.partition}: part {part.tag.hex()} was saved but is not the frozen one")
        self.frozen = None
        self.uncommitted_bytes -= frozen.nbytes
        self.base, self.committed, self.replay_from = part.tag, part.committed, frozen.replay_from
        for key, a in frozen.ended.items():
            self.ended[key] = a
            self._ended_by_offset.append((a, key))
        if self.ended:
            for key in frozen.going_on:
                self.ended.pop(key, None)
        for key in frozen.forgotten:
            self.expiring.pop(key, None)

    # ---- the end

    def close(self) -> None:
        """Drops everything. Its slots are free once no run in flight has them (X11)."""
        self.closed = True
        self.backlog.clear()
        self.aside.clear()
        self.pending.clear()
        self.feedable.clear()
        self.frozen = None
        self.backlog_bytes = self.backlog_records = self.undecoded_bytes = self.uncommitted_bytes = 0
        self.release_if_idle()

    def release_if_idle(self) -> None:
        """Called when a run is back: a closed memory gives its slots up with the last one."""
        if self.closed and not self.in_flight:
            self.slots.release(list(self.index.values()))
            self.index.clear()


def fair_bound(total_bytes: int, partitions: int) -> int:
    """One partition's part of a bound in bytes, at least 64 KiB."""
    return max(65_536, total_bytes // max(1, partitions))
