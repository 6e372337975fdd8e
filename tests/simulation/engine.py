"""The engine on virtual time: the real one (bindings, arena, rows to snapshot, what is kept), without threads and with
a session of our own. Calls run in the arena at one moment, and are told at a later one."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pipeline.engine.engine
import pipeline.worker
from pipeline.engine import Costs, Engine, Run
from tests.simulation.model import Session


class Unlearnt(Costs):
    """Real time tells nothing of runs on virtual time."""

    def ran(self, steps: int, took_s: float) -> None:
        return

    def ran_few(self, few: Any) -> None:
        return


class SimEngine(Engine):
    """See the module. ``rng``, ``fails`` and ``slow_s`` are the world's."""

    rng: random.Random
    fails: Callable[[], bool]
    slow_s: float

    def __init__(self, model: Any, contract: Any, reads: Any, **settings: Any) -> None:
        session = Session(contract, self.rng, self.fails)
        with (
            mock.patch.object(pipeline.engine.engine, "open_session", return_value=session),
            mock.patch.object(pipeline.engine.engine.graph, "wrap", return_value=model),
        ):
            super().__init__(model, contract, reads, **settings)
        self.costs = Unlearnt()
        session.rows = self.arena._tensors["int64"]._rows
        session.noise = self.arena._tensors["float32"]._rows
        self._free_s = [0.0] * self.threads
        self._waiting: list[deque[Any]] = [deque() for _ in range(self.threads)]

    def start(self, call_soon: Any) -> None:
        return

    def stop(self) -> None:
        return

    def submit(self, run: Run, done: Callable[[Run], None]) -> None:
        loop, rng = asyncio.get_running_loop(), self.rng
        run.left = len(run.jobs)
        self.in_flight += 1
        if self.in_flight == 1 and rng.random() < 0.3:
            for job in run.jobs:
                self._run(run, job)
            self._finish(run, done, len(run.jobs))
            return
        for i, job in enumerate(run.jobs):
            begins = max(self._free_s[i], loop.time()) + rng.random() * self.slow_s
            ends = self._free_s[i] = begins + rng.random() * self.slow_s
            self._waiting[i].append((run, job, done, ends))
            loop.call_at(begins, self._work_on, i)

    def _work_on(self, thread: int) -> None:
        """The thread's next job: in their order, also when several are due at once after the process stood still."""
        run, job, done, ends = self._waiting[thread].popleft()
        self._run(run, job)
        asyncio.get_running_loop().call_at(ends, self._finish, run, done)


@contextmanager
def engines(rng: random.Random, fails: Callable[[], bool], slow_s: float) -> Iterator[None]:
    """Workers get simulated engines. ``fails``: whether the next call does."""

    class Its(SimEngine):
        pass

    Its.rng, Its.slow_s = rng, slow_s
    Its.fails = staticmethod(fails)
    with mock.patch.object(pipeline.worker, "Engine", Its):
        yield
