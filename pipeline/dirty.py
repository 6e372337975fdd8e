"""Which streams of a partition have done records that no snapshot of theirs includes, and since when. Pure.

Kept as the columns in which polls finish: a stream becomes dirty with the first record after its last snapshot, and is
clean again with the next one. ``Slots.dirty`` says what holds for each slot; a chunk here is only where to look.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from pipeline.columns import I64, Bools
from pipeline.streams.slots import CLEAN, Slots


@dataclass(slots=True)
class _Chunk:
    """Streams that became dirty with one poll."""

    slots: I64
    serials: I64
    offsets: I64
    """First done record of each that its snapshot lacks."""
    since_s: float


class Dirty:
    """See the module. One partition's. ``since_s`` are seconds of the caller's clock."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._heap: list[tuple[int, int, _Chunk]] = []
        """By the lowest offset that was dirty when the chunk was last looked at."""
        self._made = 0

    def mark(self, slots: I64, offsets: I64, now_s: float) -> None:
        """Records ``offsets`` of the streams in ``slots`` are finished, int64 ``[n]`` each; a stream's in order."""
        of = self._slots
        new = of.dirty[slots] == CLEAN
        if not new.any():
            return
        slots, offsets = slots[new], offsets[new]
        of.dirty[slots[::-1]] = offsets[::-1]  # of a stream's several records the first: numpy assigns in order
        first = of.dirty[slots] == offsets
        if not first.all():
            slots, offsets = slots[first], offsets[first]
        self._push(_Chunk(slots, of.serial[slots], offsets, now_s))

    def _push(self, chunk: _Chunk) -> None:
        self._made += 1
        heapq.heappush(self._heap, (int(chunk.offsets.min()), self._made, chunk))

    def lowest(self) -> int | None:
        """First done record of any stream that its snapshot lacks; None: there is none."""
        chunk = self._first()
        return int(chunk.offsets.min()) if chunk is not None else None

    def since_s(self) -> float | None:
        """Since when the stream with that record is dirty."""
        chunk = self._first()
        return chunk.since_s if chunk is not None else None

    def oldest(self, before_s: float, most: int) -> I64:
        """Slots of at most ``most`` streams that are dirty since before ``before_s``, lowest record first. Those that
        are ending or of which a snapshot is in flight are left out: a stream stays dirty until that is finished."""
        found: list[I64] = []
        looked: list[_Chunk] = []
        while most > 0 and (chunk := self._first()) is not None and chunk.since_s <= before_s:
            heapq.heappop(self._heap)
            looked.append(chunk)
            usable = chunk.slots[~(self._slots.ending[chunk.slots] | self._slots.saving[chunk.slots])]
            found.append(usable[:most])
            most -= len(found[-1])
        for chunk in looked:
            self._push(chunk)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _first(self) -> _Chunk | None:
        """The chunk with the lowest dirty record, cleared of what is clean again."""
        while self._heap:
            _, _, chunk = self._heap[0]
            still = self._valid(chunk)
            if still.all():
                return chunk
            heapq.heappop(self._heap)
            if still.any():
                chunk.slots, chunk.serials, chunk.offsets = (
                    chunk.slots[still],
                    chunk.serials[still],
                    chunk.offsets[still],
                )
                self._push(chunk)
        return None

    def _valid(self, chunk: _Chunk) -> Bools:
        of = self._slots
        valid: Bools = (of.serial[chunk.slots] == chunk.serials) & (of.dirty[chunk.slots] == chunk.offsets)
        return valid
