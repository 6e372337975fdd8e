"""The engine: binds a poll's calls on the event loop, runs them on its threads.

A thread only runs what is bound, puts the outputs that are wanted into the poll's columns, and copies the rows to
snapshot after the last call of its slots. Slot modulo threads picks the thread: one slot never runs on two (S1).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from pipeline.codecs.given import Given
from pipeline.columns import I64, U8, AnyArray, Rectangle
from pipeline.contract import Contract
from pipeline.engine import graph
from pipeline.engine.arena import Arena
from pipeline.engine.costs import Costs, Few
from pipeline.engine.providers import device_of, open_session

INLINE_S = 0.001
"""A poll that should take less, with nothing in flight, runs on the event loop: a hand-over costs as much."""
FEW_STREAMS = 4
"""Calls of so few tell what one stream's part of a poll takes; in those of more it is a part of many."""


@dataclass(slots=True)
class Call:
    """One rectangle, bound. ``outputs`` as the graph lays them out; ``keeps`` holds what the binding points into."""

    binding: Any
    positions: I64
    outputs: list[AnyArray]
    keeps: tuple[AnyArray, ...]
    streams: int


@dataclass(slots=True)
class Job:
    """One thread's share of a run."""

    calls: list[Call]
    snapshot: I64
    """Which of the run's slots to snapshot are this thread's: indices."""
    seconds: float = 0.0
    few: Few = field(default_factory=Few)


@dataclass(slots=True)
class Run:
    """The calls of one poll. Filled when ``done`` is called; ``error`` is the first that a call raised."""

    jobs: list[Job]
    outputs: tuple[AnyArray, ...]
    """What the head reads, ``[n_kept, *shape]`` each."""
    kept: I64 | None
    """Step -> its place in ``outputs``, -1 for a step whose outputs nobody reads; None: the step itself."""
    snapshot_slots: I64
    rows: U8
    """``uint8 [len(snapshot_slots), row_bytes]``: the rows as they were after the last call."""
    steps: int
    batch_sizes: I64
    left: int = 0
    error: BaseException | None = None
    seconds: float = 0.0
    queued: float = field(default_factory=time.perf_counter)


class Engine:
    """See the module. Raises ModelError, ProviderError."""

    def __init__(
        self,
        model: onnx.ModelProto,
        contract: Contract,
        reads: Sequence[str],
        *,
        slots: int,
        threads: int = 1,
        intra_op_threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        provider_options: dict[str, dict[str, str]] | None = None,
        provider_policy: str = "require",
    ) -> None:
        self._contract = contract
        wrapped = graph.wrap(model, contract, reads)
        self._session: ort.InferenceSession = open_session(
            wrapped, providers, provider_options or {}, provider_policy, intra_op_threads
        )
        self.providers: list[str] = self._session.get_providers()
        self._options = ort.RunOptions()
        # Its default, said: each run asks for it, and the answer that it is not set is an exception (45 us).
        self._options.add_run_config_entry("gpu_graph_id", "0")
        device = device_of(self._session)
        self.arena = Arena(contract, slots, device, None if device == "cpu" else self.providers)
        self._reads = [contract.output(name) for name in reads]
        self._given = Given(contract) if contract.stream_constants else None
        self._loop: Callable[[Callable[[], None]], object] = lambda f: f()
        self._queues: list[queue.SimpleQueue[tuple[Run, Job, Callable[[Run], None]] | None]] = [
            queue.SimpleQueue() for _ in range(threads)
        ]
        self._threads: list[threading.Thread] = []
        self.in_flight = 0
        """Runs handed over and not yet done."""
        self.light = False
        """The last run was expected to be over at once."""
        self.costs = Costs()

    @property
    def threads(self) -> int:
        return len(self._queues)

    def start(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """``call_soon`` runs a function on the event loop (``loop.call_soon_threadsafe``)."""
        self._loop = call_soon
        for i, tasks in enumerate(self._queues):
            thread = threading.Thread(target=self._work, args=(tasks,), name=f"engine-{i}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Ends the threads within one node of the graph: what they still have to run ends with an error."""
        self._options.terminate = True
        for tasks in self._queues:
            tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def prepare(
        self,
        plan: Sequence[Sequence[Rectangle]],
        values: Sequence[AnyArray],
        steps: int,
        fresh: np.ndarray[Any, np.dtype[np.bool_]],
        kept: I64 | None,
        n_kept: int,
        snapshot_slots: I64,
        given: U8 | None = None,
    ) -> Run:
        """Binds. ``values``: one array per step input, ``[steps, *shape]``; ``fresh``: bool by slot, cleared for what
        is bound here; ``kept``, ``n_kept``: see Run. ``plan`` has one list of rectangles per thread. ``given``: the
        rows of the streams' own constants, by slot; only for a contract that has any."""
        outputs = tuple(np.empty((n_kept, *o.shape), o.dtype) for o in self._reads)
        threads = len(plan)
        jobs = []
        for thread, rectangles in enumerate(plan):
            mine = np.flatnonzero(snapshot_slots % threads == thread) if threads > 1 else np.arange(len(snapshot_slots))
            jobs.append(Job([self._bind(r, values, fresh, given) for r in rectangles], mine))
        # One thread reads them all at once, and brings the array with it.
        rows = np.empty((len(snapshot_slots) if threads > 1 else 0, self.arena.row_bytes), np.uint8)
        sizes = np.array([r.positions.shape[1] for rectangles in plan for r in rectangles], np.int64)
        return Run(jobs, outputs, kept, snapshot_slots, rows, steps, sizes)

    def _bind(
        self,
        rectangle: Rectangle,
        values: Sequence[AnyArray],
        fresh: np.ndarray[Any, np.dtype[np.bool_]],
        given: U8 | None,
    ) -> Call:
        contract, positions, slots = self._contract, rectangle.positions, rectangle.slots
        if contract.time_axis is None:
            at = positions[0]
        else:
            at = positions if contract.time_axis == 0 else np.ascontiguousarray(positions.T)
        binding = self._session.io_binding()
        keeps: list[AnyArray] = []
        for step, column in zip(contract.steps, values):
            x = column[at]
            binding.bind_cpu_input(step.name, x)
            keeps.append(x)
        if self._given is not None and given is not None:
            for constant, own in zip(contract.stream_constants, self._given.columns(slots, given)):
                binding.bind_cpu_input(constant.name, own)
                keeps.append(own)
        if contract.states:
            new = fresh[slots]
            fresh[slots] = False
            binding.bind_cpu_input(graph.SLOTS, slots)
            binding.bind_cpu_input(graph.FRESH, new)
            keeps += [slots, new]
            self.arena.bind(binding)
        outputs = []
        for spec in self._reads:
            y = np.empty((*at.shape, *spec.shape), spec.dtype)
            binding.bind_output(spec.name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)
            outputs.append(y)
        return Call(binding, at, outputs, tuple(keeps), len(slots))

    def submit(self, run: Run, done: Callable[[Run], None]) -> None:
        """Runs it on the threads, or at once where that is cheaper or no thread was started; ``done`` is called on the
        event loop."""
        run.left = len(run.jobs)
        run.queued = time.perf_counter()
        self.light = self.costs.run_s(run.steps) < INLINE_S
        if not self._threads or (self.in_flight == 0 and self.light):
            self.in_flight += 1
            for job in run.jobs:
                self._run(run, job)
            self._finish(run, done, len(run.jobs))
            return
        self.in_flight += 1
        for tasks, job in zip(self._queues, run.jobs):
            tasks.put((run, job, done))

    def _finish(self, run: Run, done: Callable[[Run], None], jobs: int = 1) -> None:
        run.left -= jobs
        if run.left:
            return
        self.in_flight -= 1
        run.seconds = max((job.seconds for job in run.jobs), default=0.0)
        if run.steps and run.error is None:
            self.costs.ran(run.steps, sum(job.seconds for job in run.jobs))
            for job in run.jobs:
                if job.few.calls:
                    self.costs.ran_few(job.few)
        done(run)

    def _work(self, tasks: queue.SimpleQueue[tuple[Run, Job, Callable[[Run], None]] | None]) -> None:
        while (task := tasks.get()) is not None:
            run, job, done = task
            self._run(run, job)
            self._loop(lambda run=run, done=done: self._finish(run, done))  # type: ignore[misc]

    def _run(self, run: Run, job: Job) -> None:
        """Runs one thread's calls in order. After an error nothing of the run is run on: its rows are torn."""
        began = time.perf_counter()
        try:
            for i, call in enumerate(job.calls):
                if run.error is not None:
                    return
                called = time.perf_counter()
                self._session.run_with_iobinding(call.binding, self._options)
                if call.streams <= FEW_STREAMS:
                    job.few.add(call.positions.size // call.streams, call.streams, time.perf_counter() - called)
                self._collect(run, call)
                job.calls[i] = None  # type: ignore[call-overload]  # its buffers are free as soon as they are read
            if len(run.jobs) == 1:
                run.rows = self.arena.read(run.snapshot_slots)
            elif len(job.snapshot):
                run.rows[job.snapshot] = self.arena.read(run.snapshot_slots[job.snapshot])
        except Exception as error:  # noqa: BLE001  # onnxruntime raises a class per status, with no common base
            run.error = error
        finally:
            job.seconds = time.perf_counter() - began

    @staticmethod
    def _collect(run: Run, call: Call) -> None:
        if run.kept is None:
            for whole, y in zip(run.outputs, call.outputs):
                whole[call.positions] = y
            return
        places = run.kept[call.positions]
        wanted = places >= 0
        if wanted.any():
            for whole, y in zip(run.outputs, call.outputs):
                whole[places[wanted]] = y[wanted]
