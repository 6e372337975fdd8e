"""What comes in: fetched segments to their partitions' backlogs, and which partitions are held back meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.ahead import Ahead
from pipeline.ownership import Ownership
from pipeline.partition import Memory
from pipeline.transport.base import Transport

FETCH_S = 0.5
"""A fetch that finds nothing returns after this; consumers must be polled even when all is paused."""


class Inflow:
    """See the module. ``bound``: bytes that each of these memories' backlogs may have; ``ahead``: where records are
    decoded first, None for a codec that needs no such thing; ``arrived`` is called when something was fetched;
    ``aside_bytes``: of records that wait for others of their stream, of all partitions."""

    def __init__(
        self,
        transport: Transport,
        ownership: Ownership,
        bound: Callable[[Sequence[Memory]], int],
        ahead: Ahead | None,
        arrived: Callable[[], None],
        aside_bytes: int,
    ) -> None:
        self._transport, self._ownership = transport, ownership
        self._bound, self._ahead, self._arrived = bound, ahead, arrived
        self._aside_bytes = aside_bytes
        self.paused: set[int] = set()
        """Partitions whose backlog is full."""

    async def run(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not stopping.is_set():
            segments = await self._transport.fetch(FETCH_S)
            for fetched in segments:
                segment = fetched
                memory = self._ownership.memory(segment.partition)
                if memory is None:
                    continue
                if segment.next_offset <= memory.fetched:
                    continue
                known = int(np.searchsorted(segment.offsets, memory.fetched))
                if known:
                    segment = segment.cut(known)[1]  # fetched before a rebalance moved the position
                memory.fetched = segment.next_offset
                segment.fetched_s = loop.time()
                if self._ahead is not None:
                    self._ahead.offer(memory, segment)
                else:
                    memory.offer(segment)
            if segments:
                self.throttle()
                self._arrived()

    def throttle(self) -> None:
        """Pauses partitions whose backlog is full, resumes those with room again."""
        if self._ahead is not None:
            self._ahead.go()
        memories = self._ownership.memories()
        bound = self._bound(memories)
        # What a hot stream keeps waiting has room of its own, or its neighbours behind it would not be fetched (X2).
        crowded = sum(m.aside.nbytes for m in memories) >= self._aside_bytes
        full = {m.partition for m in memories if m.waiting_bytes >= bound or (crowded and m.aside)} - self.paused
        if full:
            self._transport.pause(full)
            self.paused |= full
        roomy = {
            m.partition for m in memories if m.waiting_bytes < bound // 2 and not (crowded and m.aside)
        } & self.paused
        if roomy:
            self.paused -= roomy
            self._transport.resume(roomy)
