"""The worker: how the rooms are joined, what the group says, start and drain. To follow a record, go on in rounds.py.

    fetch -> admit (slots, decode, plan, bind) -> run in the arena -> finish (head) -> commit -> visible

Three polls overlap: one is being decoded, one runs (onnxruntime releases the GIL), one is being committed. Encoded
images are decoded before their poll, on threads. Every queue is bounded in bytes; a full one pauses its partition and
never drops.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx

from pipeline.ahead import Ahead
from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs import AheadCodec, make_codec
from pipeline.columns import I64, Membership
from pipeline.commit import Lane, Saved
from pipeline.committer import Committer
from pipeline.config import Config
from pipeline.contract import Contract
from pipeline.copies import Copies
from pipeline.engine import Engine
from pipeline.errors import Stalled, TakeoverError
from pipeline.gauges import gauging
from pipeline.heads import make_head
from pipeline.inflow import Inflow
from pipeline.intake import Intake
from pipeline.mark import Tags
from pipeline.metrics import Metrics
from pipeline.order import Order
from pipeline.outlet import Outlet
from pipeline.ownership import Ownership
from pipeline.partition import Memory
from pipeline.policy import SnapshotPolicy
from pipeline.pump import STREAM_STEPS, Pump
from pipeline.residency import Residency
from pipeline.rounds import Rounds
from pipeline.scheduler import Limits
from pipeline.standby import Standbys
from pipeline.streams.slots import Slots
from pipeline.streams.snapshots import digest_of
from pipeline.streams.tier import Tier
from pipeline.transport.base import Transport
from pipeline.watching import watch

log = logging.getLogger(__name__)

TIME_MAX = 256
"""Largest T of one call."""


class Worker:
    """One process's share of the work. ``run`` until ``stop``.

    Raises what the parts raise at their making: ContractError, ModelError, ProviderError.
    """

    def __init__(
        self,
        config: Config,
        transport: Transport,
        model: onnx.ModelProto,
        contract: Contract,
        metrics: Metrics,
        beside: Beside = NOTHING_BESIDE,
    ) -> None:
        self._config, self._transport, self._metrics = config, transport, metrics
        codec, head = make_codec(contract, beside), make_head(contract, beside)
        self._engine = Engine(
            model,
            contract,
            head.reads,
            slots=config.slots,
            threads=config.engine_threads,
            intra_op_threads=config.intra_op_threads,
            providers=config.providers,
            provider_options=config.provider_options,
            provider_policy=config.provider_policy,
        )
        self._slots = slots = Slots(config.slots, codec.memory_bytes, head.memory_bytes, contract.given_bytes)
        row_bytes = self._engine.arena.row_bytes + slots.codec.shape[1] + head.memory_bytes
        directory = Path(config.state_directory) if config.state_directory else None
        self._residency = Residency(slots, self._engine.arena, Tier(row_bytes, config.host_bytes, directory))
        self._copies = Copies(directory, config.group, config.changelog, transport, metrics)
        self._standbys = Standbys(transport, self._copies, config.standbys)
        limits = Limits(
            1 if contract.batching == "single" else config.max_batch,
            config.max_call_steps,
            1 if contract.time_axis is None else TIME_MAX,
        )
        head.interrupts = config.on_input == "interrupt"
        self._intake = Intake(
            contract,
            codec,
            head,
            self._engine,
            slots,
            self._residency,
            limits,
            config.max_record_bytes,
            saves_all=not config.snapshot_interval_ms,
        )
        self._outlet = Outlet(
            contract, head, self._slots, header_model=config.header_model, header_source=config.header_source
        )
        digest = digest_of(contract)
        at_least_once = config.processing_guarantee == "at_least_once"
        self._lane = Lane(
            transport,
            Tags(os.urandom(8)),
            digest,
            head.merge,
            # What a head shows and remembers stays in the transaction with the memory of it (X13).
            at_least_once=at_least_once and not self._intake.binds,
        )
        self._ownership = Ownership(
            transport,
            self._lane,
            slots,
            self._residency,
            self._copies,
            digest,
            metrics,
            self._running,
            self._checked,
            self._fail,
            lambda rows: self._outlet.active(rows[:, row_bytes - head.memory_bytes :]),
            look_twice=at_least_once,
            resets=config.bad_snapshot == "reset",
        )
        kept = head.reads if head.keeps == "all" else ()
        kept_bytes = contract.step_bytes + sum(contract.output(name).nbytes for name in kept)
        order = Order(slots, STREAM_STEPS, generates=head.generates, interrupts=head.interrupts)
        self._policy = SnapshotPolicy(
            0 if self._intake.binds else config.snapshot_interval_ms / 1e3, config.snapshot_bytes_per_second, row_bytes
        )
        self._pump = Pump(
            config,
            self._intake,
            order,
            self._policy,
            slots,
            self._engine.costs,
            codec.step_bytes,
            row_bytes,
            kept_bytes,
        )
        self._work = asyncio.Event()
        self._quiet = asyncio.Event()
        self._stopping = asyncio.Event()
        self._fatal: asyncio.Future[None] | None = None
        self.live = True
        """False once nothing gets done: the process is about to end."""
        self._ahead = self._decoder(codec) if isinstance(codec, AheadCodec) else None
        self._committer = Committer(
            config, self._lane, self._ownership, metrics, self._stopping, self._committed, self._settle_quiet
        )
        self._inflow = Inflow(
            transport,
            self._ownership,
            self._pump.bound,
            self._ahead,
            self._work.set,
            lambda: self._engine.light,
            config.queue_bytes,
        )
        self._rounds = Rounds(
            self._engine,
            self._pump,
            self._intake.placing,
            self._outlet,
            self._policy,
            self._ownership,
            metrics,
            self._work,
            self._stopping,
            codec.step_s,
            self._inflow.throttle,
            self._returned,
            self._fail,
        )

    def _decoder(self, codec: AheadCodec) -> Ahead:
        return Ahead(
            codec,
            self._config.decode_threads,
            self._config.max_record_bytes,
            self._metrics,
            lambda: self._pump.bound(self._ownership.memories()),
            self._work.set,
        )

    # ---- from outside

    @property
    def ready(self) -> bool:
        """Member of its group, and every partition it owns, maybe none, is running."""
        return self._ownership.ready and not self._stopping.is_set()

    @property
    def providers(self) -> list[str]:
        """Execution providers that run the model."""
        return self._engine.providers

    def stop(self) -> None:
        """Drain: nothing new is taken, what is in flight is finished and committed, then ``run`` returns."""
        self._stopping.set()

    async def run(self) -> None:
        """Until ``stop``, or until something fails that no takeover mends: then it raises that."""
        loop = asyncio.get_running_loop()
        self._fatal = loop.create_future()
        self._engine.start(loop.call_soon_threadsafe)
        if self._ahead is not None:
            self._ahead.start()
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._transport.start(self)
            shown = gauging(
                self._metrics, self._ownership, self._slots, self._residency, self._transport, self._inflow.paused
            )
            watching = watch(
                self._config,
                self._metrics,
                self._ownership,
                self._residency,
                self._transport,
                self._stopping,
                self._committer.wake.set,
                self._stalled,
            )
            for name, running in (
                *(("fetching", self._inflow.run(self._stopping)), ("pumping", self._rounds.run())),
                *(("committing", self._committer.run()), ("gauging", shown), ("watching", watching)),
            ):
                tasks.append(asyncio.create_task(running, name=name))
            if self._config.state_directory:
                tasks.append(asyncio.create_task(self._copies.tend(), name="copying"))
            if self._config.standbys:
                tasks.append(asyncio.create_task(self._standbys.run(), name="standing by"))
            tasks.append(asyncio.create_task(self._until_stopping(), name="stopping"))
            waited: list[asyncio.Future[Any]] = [*tasks, self._fatal]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            self._raise_if_failed(tasks)
            await self._drain(tasks, self._fatal)
            self._raise_if_failed(tasks)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            self._rounds.close()
            await self._ownership.close()
            await self._copies.close()
            self._residency.tier.close()
            if self._ahead is not None:
                await self._ahead.close()
            await self._transport.stop()
            self._engine.stop()

    async def _until_stopping(self) -> None:
        await self._stopping.wait()

    def _raise_if_failed(self, tasks: list[asyncio.Task[None]]) -> None:
        if self._fatal is not None and self._fatal.done():
            self._fatal.result()
        for task in tasks:
            if task.done():
                task.result()

    async def _drain(self, tasks: list[asyncio.Task[None]], fatal: asyncio.Future[None]) -> None:
        """Until nothing is in flight, or something fails that will not be drained."""
        self._ownership.draining = True
        self._work.set()
        if self._ahead is not None:
            self._ahead.halt()
        self._settle_quiet()
        drained = asyncio.create_task(self._quiet.wait(), name="drained")
        awaited: list[asyncio.Future[Any]] = [drained, fatal]
        awaited += [t for t in tasks if t.get_name() in ("committing", "pumping")]
        try:
            async with asyncio.timeout(self._config.drain_timeout_s):
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if drained.done():
                    await self._transport.leave()
        except TimeoutError:
            log.warning("not drained in %g s: the next owner does what is left", self._config.drain_timeout_s)
        finally:
            drained.cancel()

    def _settle_quiet(self) -> None:
        """Drained when nothing is in flight and nothing waits for a commit."""
        if self._stopping.is_set():
            memories = self._ownership.memories()
            busy = not self._rounds.idle or any(m.pending or m.frozen is not None for m in memories)
            # What is dirty is saved first: who takes over then has nothing to replay.
            if not busy and not any(m.dirty.lowest() is not None for m in memories):
                self._quiet.set()

    # ---- the group

    async def on_revoked(self, partitions: Collection[int]) -> None:
        await self._ownership.revoked()

    def on_assigned(self, membership: Membership, partitions: Collection[int]) -> None:
        self._inflow.paused.clear()
        self._copies.assigned(partitions)
        self._standbys.assigned(membership, partitions)
        self._ownership.assigned(membership, partitions)
        self._committer.wake.set()
        self._settle_quiet()

    def on_trouble(self, partition: int, error: TakeoverError) -> None:
        self._ownership.trouble(partition, error)

    def on_lost(self, reason: Exception) -> None:
        self._fail(reason)

    def _running(self, memory: Memory, live: I64) -> None:
        """A takeover is done: streams that were generating go on."""
        self._outlet.restore(memory, live)
        memory.dirty_since_s = asyncio.get_running_loop().time() - self._policy.interval_s
        self._inflow.paused.discard(memory.partition)  # it is fetched again, with an empty backlog
        if memory.base is None:
            self._committer.wake.set()  # a new group commits its start (X8)
        self._work.set()

    def _checked(self, saved: Sequence[Saved]) -> None:
        self._committer.saved(saved)

    def _committed(self, saved: Sequence[Saved]) -> None:
        """Parts are visible; none where memories were checked and found to be ours."""
        self._work.set()
        for s in saved:
            self._copies.saved(s.part, s.written)
            self._ownership.succeeded(s.memory.partition)
            self._intake.placing.forget(s.memory.partition, s.part.committed)

    def _returned(self) -> None:
        """A run is back, and what of it can be committed waits for that."""
        self._ownership.run_returned()
        self._committer.wake.set()
        self._settle_quiet()

    def _stalled(self, error: Stalled) -> None:
        self.live = False
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._fatal is not None and not self._fatal.done():
            self._fatal.set_exception(error)
