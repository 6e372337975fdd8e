"""Polls, from the choice of the next one until it is finished: admit -> run in the arena -> finish (head).

Three overlap: one is decoded, one runs (onnxruntime releases the GIL), one is committed. They finish in the order they
came (S3); a failed run costs the partitions with a row in it their memory (X11).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable

from pipeline.engine import Engine, Run
from pipeline.errors import EddyError, EngineFailed
from pipeline.metrics import Metrics
from pipeline.outlet import Outlet
from pipeline.ownership import Ownership
from pipeline.placing import Placing
from pipeline.policy import SnapshotPolicy
from pipeline.poll import Poll
from pipeline.pump import Pump

DEPTH = 2
"""Runs with the engine at once: one runs, the next is bound already (S2)."""
FAILURES_MAX = 5
"""Runs of a partition that may fail in a row before it stops; one that names the record at fault does not count."""


class Rounds:
    """See the module. ``work`` is set where there may be something to take. ``throttle`` is called when a poll was
    taken, ``returned`` when a run is back, ``failed`` with what nobody else hears of. ``step_s``: seconds of sound or
    film of a step, 0 for other models."""

    def __init__(
        self,
        engine: Engine,
        pump: Pump,
        placing: Placing,
        outlet: Outlet,
        policy: SnapshotPolicy,
        ownership: Ownership,
        metrics: Metrics,
        work: asyncio.Event,
        stopping: asyncio.Event,
        step_s: float,
        throttle: Callable[[], None],
        returned: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._engine, self._pump, self._placing, self._outlet = engine, pump, placing, outlet
        self._policy, self._ownership, self._metrics = policy, ownership, metrics
        self._work, self._stopping, self._step_s = work, stopping, step_s
        self._throttle, self._returned, self._failed = throttle, returned, failed
        self._polls: deque[Poll] = deque()
        """Submitted and not yet finished, in order (S3)."""
        self._waking: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Nothing is in flight."""
        return not self._polls

    def close(self) -> None:
        if self._waking is not None:
            self._waking.cancel()

    async def run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while (poll := self._next()) is not None:
                self._count(poll)
                self._polls.append(poll)
                self._engine.submit(poll.run, self._back)
                self._throttle()
                await asyncio.sleep(0)  # a run on the event loop must not keep the others from it

    def _next(self) -> Poll | None:
        """The next poll, if the engine has room for it (S2)."""
        if self._engine.in_flight >= DEPTH:
            return None
        loop = asyncio.get_running_loop()
        now_s, now_ms = loop.time(), int(time.time() * 1000)
        memories = self._ownership.memories()
        if self._stopping.is_set():
            return self._pump.save(memories, now_s, now_ms)
        held = self._pump.due
        poll = self._pump.next(memories, now_s, now_ms)
        if self._pump.due is not None and self._pump.due != held:
            loop.call_at(self._pump.due, self._work.set)
        if poll is None and (due := self._policy.next_s(memories)) is not None:
            self._wake_at(due)
        return poll

    def _wake_at(self, due: float) -> None:
        """Snapshots are due at a time of their own, whether or not records come."""
        if self._waking is not None and self._waking.when() > due:
            self._waking.cancel()
            self._waking = None
        if self._waking is None:
            self._waking = asyncio.get_running_loop().call_at(due, self._woken)

    def _woken(self) -> None:
        self._waking = None
        self._work.set()

    def _count(self, poll: Poll) -> None:
        if all(s.idle for s in poll.shares):
            return  # nothing but snapshots
        now = asyncio.get_running_loop().time()
        self._metrics.poll(
            len(poll.keys),
            poll.steps,
            [now - s.fetched_s for s in poll.shares],
            [s.b - s.a for s in poll.shares],
            record_bytes=sum(s.value_bytes for s in poll.shares),
            media_s=poll.steps * self._step_s,
        )
        if poll.hidden is not None:
            self._metrics.replay(replayed=int(poll.hidden.sum()))
        for memory in (s.memory for s in poll.shares if s.memory.skipped):
            self._metrics.replay(skipped=memory.skipped)
            memory.skipped = 0

    def _back(self, run: Run) -> None:
        """A run is done; polls finish in the order they came (S3)."""
        try:
            while self._polls and self._polls[0].run.left == 0:
                self._finish(self._polls.popleft())
        except Exception as error:  # noqa: BLE001  # a callback of the loop: there is nobody above to raise to
            self._failed(error)
        self._returned()
        self._work.set()

    def _finish(self, poll: Poll) -> None:
        error = poll.run.error
        if error is None:
            try:
                self._outlet.finish(poll, asyncio.get_running_loop().time())
            except EddyError as raised:
                error = raised
        if error is not None:
            self._torn(poll, error)
            return
        for share in poll.shares:
            if share.problem is not None and not share.memory.closed:
                self._ownership.halt(share.memory.partition, share.problem)
        self._metrics.engine(poll.run.batch_sizes, poll.run.seconds, generated=len(poll.fed))
        for reason, n in Counter(error.reason for error, _, _ in poll.failed.values()).items():
            self._metrics.dead_letters(reason, n)

    def _torn(self, poll: Poll, error: BaseException) -> None:
        """X11: partitions with a row in the batch drop their memory and take over; then its records run alone."""
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]  # a MemoryError says nothing
        failed = EngineFailed(first, [s.memory.partition for s in poll.shares if not s.idle])
        self._metrics.error(failed)
        alone = len(poll.keys) == 1 and not len(poll.fed)
        for s in poll.shares:
            memory = s.memory
            if memory.closed or s.idle:
                continue
            # A first failure may be the device's: only who fails again by itself is at fault.
            fault = alone and self._pump.suspects(memory.partition, int(poll.offsets[0]))
            if fault:
                self._placing.blame(memory.partition, int(poll.offsets[0]), str(failed))
            self._pump.suspect(memory.partition, s.next_offset)
            if not fault and self._ownership.failed_run(memory.partition) > FAILURES_MAX:
                self._ownership.halt(memory.partition, f"{FAILURES_MAX} runs failed in a row, the last with: {failed}")
            else:
                self._ownership.retake(memory.partition, f"the model failed: {failed}")
        self._outlet.abandon(poll)
