"""An event loop without real time: one seed decides when everything happens, and in which order.

Simulated processes share the loop. A process is killed (nothing of it ever runs again), stopped (what is due waits) and
continued, as ``kill -9``, SIGSTOP and SIGCONT do. Who belongs to which process is told by a context variable, which
tasks, timers and callbacks inherit.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

CALLBACK_S = 2e-6
"""Virtual time that a callback takes: whatever spins does not stand still."""
EPOCH_S = 1_750_000_000.0


class Stuck(Exception):
    """Nothing will ever happen again, or too much happens at one moment."""


class Process:
    """One simulated process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.ready: deque[asyncio.Handle] = deque()

    def __repr__(self) -> str:
        return f"<{self.name}>"


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current() -> Process | None:
    """Whose code runs; None: the world's."""
    return _process.get()


class SimTask(asyncio.Task):
    """A task whose hash, and so its place in a set, is the same in every run of a seed."""

    _numbers = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        SimTask._numbers += 1
        self._number = SimTask._numbers
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class SimFuture(asyncio.Future):
    """As SimTask."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        SimTask._numbers += 1
        self._number = SimTask._numbers
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.BaseEventLoop):
    """See the module. ``shuffle``: callbacks of one process run in any order, too, not as they were scheduled."""

    def __init__(self, rng: random.Random, shuffle: bool = False) -> None:
        super().__init__()
        SimTask._numbers = 0
        self._rng, self._shuffle = rng, shuffle
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._runnable: list[Process] = []
        self._over = False
        self._world = Process("world")
        self.steps = 0
        self._tasks: list[SimTask] = []
        self.failures: list[str] = []
        """What nobody awaited: exceptions of callbacks and of tasks that were collected."""
        self.set_exception_handler(self._note)
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, context: Any = None, **_: Any) -> Any:
        task = SimTask(coroutine, loop=loop, context=context)
        # Kept to the end: a task of a killed process that is collected would run its ``finally``.
        self._tasks.append(task)
        return task

    def create_future(self) -> Any:
        return SimFuture(loop=self)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._over:
            self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def time(self) -> float:
        return self._now

    # ---- scheduling

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = asyncio.Handle(callback, args, self, context)
        self._push(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Threads have real time; what they would do happens at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # as an executor does
            future.set_exception(error)
        return future

    def _push(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(_process) or self._world
        if not process.alive:
            return
        if not process.ready and not process.stopped:
            self._runnable.append(process)
        process.ready.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        return

    # ---- processes

    def stop_process(self, process: Process) -> None:
        if process.alive and not process.stopped:
            process.stopped = True
            if process.ready:
                self._runnable.remove(process)

    def continue_process(self, process: Process) -> None:
        if process.alive and process.stopped:
            process.stopped = False
            if process.ready:
                self._runnable.append(process)

    def kill_process(self, process: Process) -> None:
        if process.alive:
            if process.ready and not process.stopped:
                self._runnable.remove(process)
            process.alive = False
            process.ready.clear()

    def spawn(self, process: Process, make: Callable[[], Any], name: str) -> asyncio.Task[Any]:
        """A task inside a process; ``make`` gives its coroutine."""
        context = contextvars.copy_context()
        context.run(_process.set, process)
        return self.create_task(context.run(make), name=name, context=context)

    # ---- running

    def _run_once(self) -> None:
        for _ in range(256):
            self._step()
            if self._stopping:
                return

    def _step(self) -> None:
        timers, now = self._timers, self._now
        while timers and (timers[0][0] <= now or not self._runnable):
            when, _, handle = heapq.heappop(timers)
            if handle._cancelled:
                continue
            if when > now:
                self._now = now = when
            self._push(handle)
        if not self._runnable:
            raise Stuck("nothing is scheduled any more")
        rng, runnable = self._rng, self._runnable
        i = int(rng.random() * len(runnable)) if len(runnable) > 1 else 0
        process = runnable[i]
        ready = process.ready
        if self._shuffle and len(ready) > 1:
            ready.rotate(-int(rng.random() * len(ready)))
        handle = ready.popleft()
        if not ready:
            runnable[i] = runnable[-1]
            runnable.pop()
        self.steps += 1
        self._now += CALLBACK_S
        if not handle._cancelled:
            handle._run()

    def end(self) -> None:
        """Nothing runs any more; what is left is dropped without a word."""
        self._over = True
        self._timers.clear()
        self._runnable.clear()
        for task in self._tasks:
            task._log_destroy_pending = False
            if not task.done():
                _close(task.get_coro())
        self._tasks.clear()

    def _process_events(self, event_list: Any) -> None:
        return

    def _write_to_self(self) -> None:
        return


def _close(coroutine: Any) -> None:
    """Here and now: left to the collector, half-run coroutines that refer to each other have crashed the interpreter.
    One that awaits something in its ``finally`` must be told again."""
    for _ in range(100):
        try:
            coroutine.close()
        except Exception:  # noqa: BLE001  # of a process that is dead
            continue
        return


@contextmanager
def virtual(loop: SimLoop, rng: random.Random) -> Iterator[None]:
    """Clocks and random sources of the whole interpreter are the simulation's."""
    state = random.getstate()
    random.seed(rng.getrandbits(64))
    bits = random.Random(rng.getrandbits(64))

    def wall() -> float:
        return EPOCH_S + loop.time()

    with (
        mock.patch.object(time, "time", wall),
        mock.patch.object(time, "monotonic", loop.time),
        mock.patch.object(time, "perf_counter", loop.time),
        mock.patch.object(os, "urandom", bits.randbytes),
    ):
        try:
            yield
        finally:
            random.setstate(state)
