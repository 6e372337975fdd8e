"""Records whose turn it is -> their streams' slots, up to the first that finds none.

Streams come back from the host tier here, ends and dead letters are told from what is decoded, and what cannot be taken
goes back to where it waited. Runs on the event loop, without a clock and without I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.columns import I64, Segment
from pipeline.errors import RecordError
from pipeline.heads import Head
from pipeline.order import Turn
from pipeline.partition import Memory
from pipeline.residency import Residency
from pipeline.streams.slots import Slots


@dataclass(slots=True)
class Taken:
    """A segment's records with their slots, up to where it had to be cut."""

    segment: Segment
    slots: I64
    failed: dict[int, tuple[RecordError, bytes | None, bytes | None]] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)


class Placing:
    """See the module."""

    def __init__(self, head: Head, slots: Slots, residency: Residency, record_bytes_max: int) -> None:
        self._head, self._slots, self._residency = head, slots, residency
        self._record_bytes_max = record_bytes_max
        self._poison: dict[tuple[int, int], str] = {}
        """(partition, offset) of records whose own run failed, and how (X11)."""

    def blame(self, partition: int, offset: int, why: str) -> None:
        """This record's own run failed: from now on it is a dead letter."""
        self._poison[partition, offset] = why

    def forget(self, partition: int, below: int) -> None:
        """Records ``below`` this offset are done, those at fault among them."""
        self._poison = {(p, o): why for (p, o), why in self._poison.items() if p != partition or o >= below}

    def take(self, turn: Turn, poll: int) -> list[Taken]:
        """Slots for a turn's records, held by poll number ``poll`` from then on: first those that were set aside,
        then those of the stretch."""
        memory = turn.memory
        found: list[Taken] = []
        for i, (key, segment) in enumerate(turn.aside):
            taken, n = self._look_up(memory, segment, poll)
            if n:
                found.append(taken)
            if n < len(segment):
                # What is behind waits as well: a stream's later record would pass this one, and D might have no room.
                memory.aside.give_back(key, segment.cut(n)[1])
                for other, waits in turn.aside[i + 1 :]:
                    memory.aside.give_back(other, waits)
                turn.settle(0)
                return found
        chosen = turn.chosen()
        if chosen is None:
            return found
        if not len(chosen):
            turn.settle(0)
            found.append(Taken(chosen, np.empty(0, np.int64)))
            return found
        taken, n = self._look_up(memory, chosen, poll)
        turn.settle(n)
        if n:
            found.append(taken)
        return found

    def _look_up(self, memory: Memory, segment: Segment, poll: int) -> tuple[Taken, int]:
        """Slots of the first records, and of how many: for those after them there was none."""
        n = len(segment)
        odd = self._odd(segment)
        if not odd:
            slots = self._where(memory, segment.keys, poll)  # type: ignore[arg-type]  # none is None
            return self._cut(memory, Taken(segment, slots), len(slots))
        # Records without key or value, or that are refused: between them, stretches that go by columns.
        taken = Taken(segment, np.zeros(n, np.int64))
        done = 0
        for i in [*sorted(odd), n]:
            if i > done:
                slots = self._where(memory, segment.keys[done:i], poll)  # type: ignore[arg-type]
                taken.slots[done : done + len(slots)] = slots
                done += len(slots)
                if done < i:
                    break
            if i == n:
                break
            key, value, error = segment.keys[i], segment.values[i], odd[i]
            if key is not None and value is None:
                if not self._end(memory, taken, i, key, poll):
                    break
                if error is not None:
                    taken.failed[i] = (error, key, value)
            elif error is not None:
                if key is not None:
                    slot = self._where(memory, [key], poll)
                    if not len(slot):
                        break
                    taken.slots[i] = slot[0]
                taken.failed[i] = (error, key, value)
            done = i + 1
        return self._cut(memory, taken, done)

    def _where(self, memory: Memory, keys: list[bytes], poll: int) -> I64:
        return self._residency.lookup(memory, keys, poll)

    def _odd(self, segment: Segment) -> dict[int, RecordError | None]:
        """Records that are not simply decoded: dead letters with their reason, ends of streams with None."""
        odd: dict[int, RecordError | None] = {}
        keys, values = segment.keys, segment.values
        if segment.headers is not None:
            odd.update(self._head.refuse(segment.headers))
        if None in values or max(map(len, values)) > self._record_bytes_max:  # type: ignore[arg-type]
            for i, value in enumerate(values):
                if value is None:
                    odd[i] = None
                elif len(value) > self._record_bytes_max:
                    odd[i] = RecordError(
                        "too-large",
                        f"value of {len(value)} bytes, max_record_bytes is {self._record_bytes_max}",
                    )
        if None in keys:
            for i, key in enumerate(keys):
                if key is None:
                    odd[i] = RecordError("no-key", "a record without a key belongs to no stream; produce it with a key")
        for (partition, offset), why in self._poison.items():
            if partition == segment.partition:
                for i in np.flatnonzero(segment.offsets == offset).tolist():
                    odd[i] = RecordError("engine", f"the model failed on this record alone: {why}")
        return odd

    def _end(self, memory: Memory, taken: Taken, i: int, key: bytes, poll: int) -> bool:
        """A null value ends the stream; its slot is released when this poll is finished. A stream that is not known has
        nothing to end. False: it is in the host tier, and no slot is free for its last word."""
        if key not in memory.index and (memory.partition, key) not in memory.tier:
            return True
        found = self._where(memory, [key], poll)
        if not len(found):
            return False
        slot = int(found[0])
        del memory.index[key]
        self._slots.ending[slot] = True
        taken.slots[i] = slot
        taken.ended.append(i)
        return True

    @staticmethod
    def _cut(memory: Memory, taken: Taken, n: int) -> tuple[Taken, int]:
        """Keeps the first ``n`` records."""
        if n < len(taken.segment):
            memory.blocked = "slots"
            taken.segment = taken.segment.cut(n)[0]
            taken.slots = taken.slots[:n]
        return taken, n
