"""When commits happen, and what follows from them: the loop around the lane."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.columns import I64, AnyArray
from pipeline.commit import Lane, Outcome, Saved
from pipeline.config import Config
from pipeline.errors import GroupRefused
from pipeline.metrics import Metrics
from pipeline.ownership import Ownership
from pipeline.partition import Memory

log = logging.getLogger(__name__)

FAILED_S = (0.0, 0.02, 0.1, 0.5, 2.0)
"""Between a commit that failed and the next; the last repeats."""


def _now_ms() -> int:
    return int(time.time() * 1000)


class Committer:
    """A commit starts as soon as the last one is done and something is ready; the intervals only set a floor.

    ``saved`` is called with parts that are visible, ``idle`` when there is nothing to commit. ``wake`` says that there
    may be something.
    """

    def __init__(
        self,
        config: Config,
        lane: Lane,
        ownership: Ownership,
        metrics: Metrics,
        stopping: asyncio.Event,
        saved: Callable[[Sequence[Saved]], None],
        idle: Callable[[], None],
    ) -> None:
        self._lane, self._ownership, self._metrics = lane, ownership, metrics
        self._stopping, self._visible, self._idle = stopping, saved, idle
        self._interval_s = config.commit_interval_ms / 1e3
        self._flush_s = config.generate_flush_ms / 1e3
        self._last_s = 0.0
        self._failures = 0
        self.wake = asyncio.Event()

    async def run(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self._ownership.member:
                memories = self._ownership.memories()
                if self._waits(memories):
                    break
                began = time.perf_counter()
                outcome = await self._lane.commit(memories, _now_ms)
                if outcome is None:
                    break
                self._last_s = time.perf_counter()
                seconds = self._last_s - began
                self._settled(outcome, seconds)
                await self._rest(self._interval_s - seconds if outcome.error is None else self._patience_s())
            self._idle()

    def _waits(self, memories: Sequence[Memory]) -> bool:
        """Pieces of generations that all go on wait for more of them (``generate_flush_ms``)."""
        left = self._last_s + self._flush_s - time.perf_counter()
        if left <= 0 or self._stopping.is_set() or any(m.hurried for m in memories):
            return False
        if any(m.pending for m in memories):
            asyncio.get_running_loop().call_later(left, self.wake.set)
        return True

    def _patience_s(self) -> float:
        self._failures += 1
        return FAILED_S[min(self._failures, len(FAILED_S)) - 1]

    async def _rest(self, seconds: float) -> None:
        if seconds > 0 and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    def _settled(self, outcome: Outcome, seconds: float) -> None:
        """What became of a commit."""
        if outcome.error is not None:
            self._metrics.commit_failed(outcome.error)
            log.warning("commit failed: %s", outcome.error)
        if isinstance(outcome.error, GroupRefused):
            for memory in outcome.unchecked:
                self._ownership.refused(memory.partition)
        elif outcome.unchecked:
            self._ownership.ask()
        for memory, refusal in outcome.stopped:
            self._ownership.halt(memory.partition, str(refusal))
        if outcome.error is None:
            self._failures = 0
            self._metrics.transaction(seconds)
        self.saved(outcome.saved)

    def saved(self, saved: Sequence[Saved]) -> None:
        """Parts are visible; also called when unchecked memories were checked, though no part of theirs was."""
        self.wake.set()
        if saved:
            self._count([s.part.outputs.timestamps for s in saved], [s.part.asked_ms for s in saved], saved)
        self._visible(saved)

    def _count(self, answered: list[I64], asked: list[I64], saved: Sequence[Saved]) -> None:
        now_ms = time.time() * 1000

        def since(columns: list[I64]) -> AnyArray:
            at = np.concatenate(columns)
            return (now_ms - at[at >= 0]) / 1e3  # a producer may leave the timestamp out, which reads as -1

        parts = [s.part for s in saved]
        self._metrics.commit(
            parts=len(parts),
            outputs=sum(len(p.outputs) for p in parts),
            snapshots=sum(len(p.snapshots) for p in parts),
            snapshot_bytes=sum(p.snapshots.value_bytes for p in parts),
            latency_s=since(answered),
            records_s=since(asked),
        )
