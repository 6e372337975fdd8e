"""Which waiting records of a partition go into the next poll, and which wait for others of their own stream (S1, S5).

A stream that generates takes its next record when it is done; a stream with more steps waiting than one poll takes of a
stream keeps the rest for the next polls. Both are set aside and their neighbours pass, as far as D has room for the
gaps that this leaves (X2). In a replay, records that a snapshot includes are left out (X8). Pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.columns import RECORD_OVERHEAD, Segment
from pipeline.mark import Progress, Run, runs_of
from pipeline.partition import Memory
from pipeline.streams.slots import Slots


@dataclass(slots=True)
class Turn:
    """What a partition gives to the next poll, before its streams have their slots."""

    memory: Memory
    aside: list[tuple[bytes, Segment]]
    """Records that were set aside before: a stretch of each stream."""
    stretch: Segment | None
    """From the backlog."""
    now: list[int] | None = None
    """Which of the stretch go now; None: all."""
    later: dict[bytes, list[int]] = field(default_factory=dict)
    """Which of it are to be set aside, by stream."""

    def steps(self, step_bytes: int) -> int:
        """About how many steps of ``step_bytes`` there are, at least one a record."""
        segments = [segment for _, segment in self.aside] + ([self.stretch] if self.stretch is not None else [])
        return sum(max(len(s), s.value_bytes // step_bytes) for s in segments)

    def chosen(self) -> Segment | None:
        """The records of the stretch that go now."""
        if self.stretch is None or self.now is None:
            return self.stretch
        return self.stretch.pick(self.now)

    def settle(self, taken: int) -> None:
        """``taken`` of the chosen records found their slots: those behind wait as if they had not been looked at, and
        what is between them is set aside."""
        memory, stretch = self.memory, self.stretch
        if stretch is None:
            return
        chosen = len(stretch) if self.now is None else len(self.now)
        if taken < chosen:
            cut = taken if self.now is None else self.now[taken]
            stretch, rest = stretch.cut(cut)
            memory.give_back(rest)
            self.later = {key: before for key, which in self.later.items() if (before := [i for i in which if i < cut])}
        memory.aside.add(stretch, self.later)
        memory.admitted = stretch.next_offset


class Order:
    """See the module. ``each``: steps of one stream in the next poll, about, ``most`` as it is made; a stream that
    ``generates`` takes one record at a time, and what comes meanwhile cuts that short if it ``interrupts``."""

    def __init__(self, slots: Slots, each: int, *, generates: bool, interrupts: bool) -> None:
        self._slots, self.most = slots, each
        self.each = each
        self._generates, self._interrupts = generates, interrupts

    def take(self, memory: Memory, steps: int, step_bytes: int, records_max: int) -> Turn | None:
        """About ``steps`` steps of ``step_bytes`` each, at most ``records_max`` records; None when none can go."""
        each = self._records(memory, step_bytes)
        aside: list[tuple[bytes, Segment]] = []
        if memory.aside and not self._reads_first(memory):
            most = max(1, min(records_max, steps))
            aside = self._from_aside(memory, each, most)
            records_max -= sum(len(s) for _, s in aside)
            steps -= sum(max(len(s), s.value_bytes // step_bytes) for _, s in aside)
        turn = Turn(memory, aside, None)
        if memory.backlog and memory.blocked is None and (not aside or (steps > 0 and records_max > 0)):
            turn.stretch = memory.take(max(1, steps), step_bytes, records_max)
            if turn.stretch is not None:
                self._sort(turn, each)
        return turn if turn.aside or turn.stretch is not None else None

    def _from_aside(self, memory: Memory, each: int, most: int) -> list[tuple[bytes, Segment]]:
        """By turns, as long as D has room for what they pass; else those that pass nothing (X2)."""

        def ready(key: bytes) -> bool:
            return self._ready(memory, key)

        taken = memory.aside.take(ready, each, most)
        if taken and not _fits(memory, memory.admitted):
            for key, segment in taken:
                memory.aside.give_back(key, segment)
            taken = memory.aside.take_lowest(ready, each, most)
        return taken

    def waits(self, memory: Memory) -> bool:
        """Whether something could go now."""
        if memory.blocked == "slots":
            return False
        if memory.backlog and memory.blocked is None:
            return True
        if not memory.aside or self._reads_first(memory):
            return False
        return memory.aside.any(lambda key: self._ready(memory, key))

    def _reads_first(self, memory: Memory) -> bool:
        """Whether what was set aside lets the partition be read on: neighbours of a hot stream that lie behind its
        backlog are found as soon as they can be (S3). Not where reading waits for it (X2), nor for generations, of
        which a poll takes little."""
        return memory.reading_on and memory.blocked is None and not self._generates

    def _records(self, memory: Memory, step_bytes: int) -> int:
        """Of one stream in one poll."""
        if self._generates:
            return 1
        records = memory.backlog_records + memory.aside.records
        value_bytes = memory.backlog_bytes + memory.aside.nbytes - RECORD_OVERHEAD * records
        return max(1, int(self.each / max(1.0, value_bytes / max(1, records) / step_bytes)))

    def _ready(self, memory: Memory, key: bytes) -> bool:
        """Whether the stream's next record may go now."""
        return key not in memory.expiring and not self._holds(memory, key)

    def _holds(self, memory: Memory, key: bytes) -> bool:
        """Whether a generation holds back what comes after it: all of it, or only the step that is in flight."""
        if not self._generates or (slot := memory.index.get(key)) is None:
            return False
        slots = self._slots
        if self._interrupts:
            return bool(slots.poll[slot] > slots.finished)
        return bool(slots.busy[slot])

    def _sort(self, turn: Turn, each: int) -> None:
        memory = turn.memory
        stretch = turn.stretch
        assert stretch is not None
        every = stretch.offsets
        if memory.replaying and len(stretch) and stretch.offsets[0] < memory.replay_until:
            stretch = turn.stretch = _not_applied(memory, stretch)
        if memory.reading_on:
            # No stream has more than half of a fetch now, or an eighth of what a poll may have where that is more: of
            # large records a fetch holds few, all would go as they come, and neighbours wait until the last one.
            each = min(each, max(1, each // 8, len(stretch) // 2))
        looks = self._generates or memory.aside or memory.expiring
        if not looks and (len(stretch) <= each or max(Counter(stretch.keys).values()) <= each):
            return
        ends = np.append(every, stretch.next_offset)[np.searchsorted(every, stretch.offsets, "right")]
        stretch.ends = ends
        self._set_aside(turn, stretch, each)
        if not turn.later:
            turn.now = None
            if not memory.aside:
                return
        waiting = np.sort(np.concatenate([np.empty(0, np.int64), *map(np.asarray, turn.later.values())]))
        if _fits(memory, stretch.next_offset, runs_of(stretch.offsets[waiting], ends[waiting])):
            return
        # What would pass them waits, as far as it must: behind the first of this stretch, or all of it.
        cut = int(waiting[0]) if len(waiting) else 0
        end = int(stretch.offsets[cut]) if cut else memory.admitted
        if cut and not _fits(memory, end):
            cut, end = 0, memory.admitted
        first, rest = stretch.cut(cut) if cut else (stretch.pick([]), stretch)
        turn.stretch = replace(first, next_offset=end)
        memory.give_back(rest)
        memory.blocked = "order"
        turn.now, turn.later = None, {}

    def _set_aside(self, turn: Turn, stretch: Segment, each: int) -> None:
        """Record by record, where some may have to wait: a tenth of a microsecond and more for each."""
        memory, later, now = turn.memory, turn.later, []
        seen = Counter({key: len(segment) for key, segment in turn.aside})
        for i, key in enumerate(stretch.keys):
            if key is None:
                now.append(i)
            elif (waits := later.get(key)) is not None:
                waits.append(i)
            elif key in memory.aside or seen[key] >= each or not self._ready(memory, key):
                later[key] = [i]
            else:
                seen[key] += 1
                now.append(i)
        turn.now = now


def _fits(memory: Memory, end: int, waiting: tuple[Run, ...] = ()) -> bool:
    """Whether D has room when all below ``end`` is done but what is set aside, and ``waiting`` behind that (X2)."""
    return Progress(end, (*memory.aside.runs, *waiting)).and_done(memory.replay).fits


def _not_applied(memory: Memory, stretch: Segment) -> Segment:
    """The records that their streams' snapshots do not include (X8), one by one: a replay is rare."""
    slots, index = memory.slots, memory.index
    keys = list({key for key in stretch.keys if key is not None and key not in index})
    read = memory.tier.read(memory.partition, keys)
    away = dict(zip((keys[i] for i in read.found.tolist()), read.applied.tolist()))

    def applied(key: bytes) -> int:
        slot = index.get(key)
        if slot is not None:
            return int(slots.applied[slot])
        return int(max(away.get(key, -1), memory.ended.get(key, -1)))

    offsets = stretch.offsets.tolist()
    which = [i for i, key in enumerate(stretch.keys) if key is None or offsets[i] > applied(key)]
    memory.skipped += len(stretch) - len(which)
    return stretch if len(which) == len(stretch) else stretch.pick(which)
