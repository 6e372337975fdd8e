"""What comes in: fetched segments to their partitions' backlogs, and which partitions are held back meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.ahead import Ahead
from pipeline.columns import Segment
from pipeline.ownership import Ownership
from pipeline.partition import Memory
from pipeline.transport.base import Transport

FETCH_S = 0.5
"""A fetch that finds nothing returns after this; consumers must be polled even when all is paused."""
MUCH = 1024
"""Records of a partition that are yet to be fetched: where there are more, what is set aside waits for them (S3)."""
READ_ON_S = 0.2
"""So long after the last that came: what is in the log cannot always be read (an open transaction, no leader)."""


class Inflow:
    """See the module. ``bound``: bytes that each of these memories' backlogs may have; ``ahead``: where records are
    decoded first, None for a codec that needs no such thing; ``arrived`` is called when something was fetched;
    ``light``: whether the polls of these times take next to no time;
    ``aside_bytes``: of records that wait for others of their stream, of all partitions."""

    def __init__(
        self,
        transport: Transport,
        ownership: Ownership,
        bound: Callable[[Sequence[Memory]], int],
        ahead: Ahead | None,
        arrived: Callable[[], None],
        light: Callable[[], bool],
        aside_bytes: int,
    ) -> None:
        self._transport, self._ownership = transport, ownership
        self._bound, self._ahead, self._arrived, self._light = bound, ahead, arrived, light
        self._aside_bytes = aside_bytes
        self.paused: set[int] = set()
        """Partitions whose backlog is full."""
        self._reading: dict[int, float] = {}
        """Partitions of which there is much to read, and until when that is believed, seconds of the loop's clock."""

    async def run(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not stopping.is_set():
            timeout_s = READ_ON_S if self._reading else FETCH_S
            # Of much to read nothing may wait: its polls are light while a hot stream's records are only set aside.
            unhurried = self._ahead is None and not self._reading and self._light()
            segments = await self._transport.fetch(timeout_s, unhurried=unhurried)
            now_s = loop.time()
            for segment in segments:
                self._offer(segment, now_s)
            over = self._look_ahead([s.partition for s in segments], now_s)
            if segments:
                self.throttle()
            if segments or over:
                self._arrived()

    def _offer(self, segment: Segment, now_s: float) -> None:
        """Joins its partition's backlog, or is decoded first."""
        memory = self._ownership.memory(segment.partition)
        if memory is None or segment.next_offset <= memory.fetched:
            return
        known = int(np.searchsorted(segment.offsets, memory.fetched))
        if known:
            segment = segment.cut(known)[1]  # fetched before a rebalance moved the position
        memory.fetched = segment.next_offset
        segment.fetched_s = now_s
        if self._ahead is not None:
            self._ahead.offer(memory, segment)
        else:
            memory.offer(segment)

    def _look_ahead(self, came: Sequence[int], now_s: float) -> bool:
        """Notes where there is much to read; whether that is over somewhere."""
        for partition, lag in self._transport.lag(came).items():
            if lag > MUCH:
                self._reading[partition] = now_s + READ_ON_S
            else:
                self._reading.pop(partition, None)
        over = [partition for partition, until in self._reading.items() if until <= now_s]
        for partition in over:
            del self._reading[partition]
        held = [m for m in self._ownership.memories() if m.reading_on]
        self._read_on()
        return any(not m.reading_on for m in held)

    def _read_on(self) -> None:
        """Where what is set aside waits: only while there is room for more of it, lest reading stops over it."""
        memories = self._ownership.memories()
        roomy = sum(m.aside.nbytes for m in memories) < self._aside_bytes * 3 // 4
        for memory in memories:
            memory.reading_on = roomy and memory.partition in self._reading and memory.partition not in self.paused

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
        self._read_on()
