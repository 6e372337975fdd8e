"""Which streams of a partition have done records that no snapshot of theirs includes, and since when. Pure.

Kept as the columns in which polls finish: a stream becomes dirty with the first record after its last snapshot, and is
clean again with the next one. ``Slots.dirty`` says what holds for each slot; a chunk here is only where to look.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

from pipeline.columns import I64
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
    """See the module. One partition's. ``since_s`` are seconds of the caller's clock, which does not go back."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._queue: deque[_Chunk] = deque()
        """In the order they became dirty."""
        self._heap: list[tuple[int, int, _Chunk]] = []
        """The same by the lowest offset that was dirty when the chunk was last looked at: what holds R."""
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
        self._made += 1
        chunk = _Chunk(slots, of.serial[slots], offsets, now_s)
        self._queue.append(chunk)
        heapq.heappush(self._heap, (int(offsets.min()), self._made, chunk))

    def lowest(self) -> int | None:
        """First done record of any stream that its snapshot lacks; None: there is none."""
        while self._heap:
            low, made, chunk = self._heap[0]
            if not self._prune(chunk):
                heapq.heappop(self._heap)
                continue
            now = int(chunk.offsets.min())
            if now == low:
                return low
            heapq.heapreplace(self._heap, (now, made, chunk))
        return None

    def not_before_s(self) -> float | None:
        """No stream is dirty since before that; maybe none since then, either. Costs nothing, unlike ``since_s``."""
        return self._queue[0].since_s if self._queue else None

    def since_s(self) -> float | None:
        """Since when the stream that is dirty for longest is so."""
        while self._queue:
            if self._prune(self._queue[0]):
                return self._queue[0].since_s
            self._queue.popleft()
        return None

    def oldest(self, before_s: float, most: int) -> I64:
        """Slots of at most ``most`` streams that are dirty since before ``before_s``, those that are so for longest
        first. Those that are ending or of which a snapshot is in flight are left out: a stream stays dirty until that
        is finished."""
        of, found = self._slots, list[I64]()
        for chunk in self._queue:
            if most <= 0 or chunk.since_s > before_s:
                break
            if self._prune(chunk):
                usable = chunk.slots[~(of.ending[chunk.slots] | of.saving[chunk.slots])]
                found.append(usable[:most])
                most -= len(found[-1])
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _prune(self, chunk: _Chunk) -> bool:
        """Clears it of what is clean again; whether something is left."""
        of = self._slots
        still = (of.serial[chunk.slots] == chunk.serials) & (of.dirty[chunk.slots] == chunk.offsets)
        if not still.all():
            chunk.slots, chunk.serials, chunk.offsets = chunk.slots[still], chunk.serials[still], chunk.offsets[still]
        return len(chunk.slots) > 0
