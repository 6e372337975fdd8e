"""Which streams are in the arena just now.

A stream that must make room goes to the host tier and comes back with its next record: the number of streams is bounded
by memory and disk, not by slots. Only an end or the retention forgets one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.columns import I64, U8, Bools
from pipeline.engine import Arena
from pipeline.errors import TierFull
from pipeline.partition import Memory
from pipeline.streams.slots import CLEAN, Slots
from pipeline.streams.snapshots import Snapshots, assemble, split
from pipeline.streams.tier import Tier

log = logging.getLogger(__name__)

ROOM = 32
"""Where one stream must leave, a 32nd part of all slots is made free: looking for the idle ones costs the same."""


class Residency:
    """See the module. On the event loop, between the runs that a stream is in."""

    def __init__(self, slots: Slots, arena: Arena, tier: Tier) -> None:
        self._slots, self._arena, self.tier = slots, arena, tier
        self._memories: dict[int, Memory] = {}
        self._said_full = False
        self.evicted = 0
        """Streams that left the arena for room, ever."""

    @property
    def row_bytes(self) -> int:
        """Of a whole row."""
        kept: int = self._slots.codec.shape[1] + self._slots.head.shape[1]
        return self._arena.row_bytes + kept

    def own(self, memory: Memory) -> None:
        """From now on its streams may have to leave the arena."""
        self._memories[memory.partition] = memory

    def disown(self, memory: Memory) -> None:
        """It is closed: nothing of it is kept."""
        if self._memories.get(memory.partition) is memory:
            del self._memories[memory.partition]
            self.tier.drop(memory.partition)

    def lookup(self, memory: Memory, keys: list[bytes], poll: int) -> I64:
        """Slots of these streams for poll number ``poll``, those of new ones and of those that come back included; when
        no room can be made, only of those that come first."""
        slots = self._slots
        if slots.free < len(keys):
            self._make_room(memory, keys)
        before = slots.serials
        where = slots.lookup(memory.index, keys)
        slots.poll[where] = poll
        if slots.serials > before and self.tier.count(memory.partition):
            self._bring_back(memory, where[slots.serial[where] > before])
        return where

    def _bring_back(self, memory: Memory, where: I64) -> None:
        where = np.unique(where)
        keys = [self._slots.keys[s] for s in where.tolist()]
        back = self.tier.take(memory.partition, keys)
        if len(back.found):
            self.place(where[back.found], back.rows, back.applied, back.touched_ms)

    def place(self, where: I64, rows: U8, applied: I64, touched_ms: I64) -> None:
        """Whole rows into slots that were just taken for their streams."""
        slots = self._slots
        arena_rows, codec_rows, head_rows = split(rows, self._arena.row_bytes, slots.codec.shape[1])
        self._arena.write(where, arena_rows)
        slots.codec[where] = codec_rows
        slots.head[where] = head_rows
        slots.applied[where] = applied
        slots.touched_ms[where] = touched_ms
        slots.fresh[where] = False

    def restore(self, memory: Memory, keys: Sequence[bytes], rows: U8, applied: I64, touched_ms: I64) -> I64:
        """What a takeover brings: into free slots as far as they go, the rest to the host tier; slots of the former.

        Raises TierFull."""
        n = min(self._slots.free, len(keys))
        if n < len(keys):
            self.tier.put(memory.partition, list(keys[n:]), applied[n:], rows[n:], touched_ms[n:])
        where = self._slots.take_all(memory.index, memory.partition, list(keys[:n]))
        if n:
            self.place(where, rows[:n], applied[:n], touched_ms[:n])
        return where

    def expire(self, memory: Memory, before_ms: int, most: int) -> None:
        """Streams without a record since ``before_ms`` are forgotten (X12), ``most`` at a time: clean ones that no run
        has. Their tombstones go into the next part that R allows.
        None in a replay: what it is about to apply again may be theirs, and was shown of a state that goes on."""
        if memory.replaying:
            return
        slots = self._slots
        idle = np.flatnonzero(
            (slots.partition == memory.partition)
            & (slots.touched_ms < before_ms)
            & (slots.dirty == CLEAN)
            & ~(slots.busy | slots.ending | slots.saving)
            & (slots.poll <= slots.finished)
        )[:most].tolist()
        for slot in idle:
            memory.expiring[slots.keys[slot]] = int(slots.applied[slot])
            del memory.index[slots.keys[slot]]
        slots.release(idle)
        away = self.tier.idle(memory.partition, before_ms)[: most - len(idle)]
        read = self.tier.read(memory.partition, away)
        memory.expiring.update(zip(away, read.applied.tolist()))
        self.tier.forget(memory.partition, away)
        if memory.expiring:
            memory.finished(memory.nothing_done(), 0)

    def _make_room(self, memory: Memory, keys: list[bytes]) -> None:
        slots = self._slots
        where = np.array([memory.index.get(key, -1) for key in dict.fromkeys(keys)], np.int64)
        absent = where < 0
        if absent.sum() <= slots.free:
            return
        may_leave = self._may_leave()
        # A stream that is absent needs a slot, and one that comes before it keeps its own: as far as they go round.
        keep = ~absent & may_leave[where]
        fits = np.cumsum(absent | keep) <= slots.free + may_leave.sum()
        may_leave[where[keep & fits]] = False
        self._let_go(np.flatnonzero(may_leave), max(int(absent[fits].sum()) - slots.free, slots.total // ROOM))

    def make_room(self, wanted: int) -> None:
        """So many free slots, as far as streams may leave theirs."""
        if wanted > self._slots.free:
            self._let_go(np.flatnonzero(self._may_leave()), wanted - self._slots.free)

    def _may_leave(self) -> Bools:
        """By slot: its stream is idle."""
        slots = self._slots
        idle: Bools = (slots.partition >= 0) & (slots.poll <= slots.finished)
        idle &= ~(slots.busy | slots.ending | slots.saving)
        return idle

    def _let_go(self, idle: I64, most: int) -> None:
        """Of these, those that were at work longest ago."""
        slots = self._slots
        if most < len(idle):
            idle = idle[np.argpartition(slots.poll[idle], most)[:most]]
        owners = slots.partition[idle]
        for partition in np.unique(owners).tolist():
            if (owner := self._memories.get(partition)) is not None:
                self._evict(owner, idle[owners == partition])

    def _evict(self, memory: Memory, leaving: I64) -> None:
        """A dirty stream's snapshot is taken as it leaves (X5: no run has it, so all it includes is finished)."""
        slots = self._slots
        keys = [slots.keys[s] for s in leaving.tolist()]
        rows = assemble(self._arena.read(leaving), slots.codec[leaving], slots.head[leaving])
        applied = slots.applied[leaving]
        try:
            self.tier.put(memory.partition, keys, applied, rows, slots.touched_ms[leaving])
        except TierFull as error:
            if not self._said_full:
                self._said_full = True
                log.error("%s", error)
            return
        self._said_full = False
        dirty = np.flatnonzero(slots.dirty[leaving] != CLEAN)
        if len(dirty):
            saved = Snapshots.of(
                slots.serial[leaving[dirty]], [keys[i] for i in dirty.tolist()], applied[dirty], rows[dirty]
            )
            memory.finished(replace(memory.nothing_done(), snapshots=saved), 0)
        for key in keys:
            del memory.index[key]
        slots.release(leaving.tolist())
        self.evicted += len(keys)
