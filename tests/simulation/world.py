"""One run: topics, producers, workers and what happens to them, all drawn from a seed."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import random
import struct
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pipeline.inflow
import pipeline.mark
import pipeline.worker
from pipeline.config import Config
from pipeline.contract import Contract
from pipeline.errors import Broken, EddyError
from pipeline.inflow import MUCH
from pipeline.mark import DONE_BYTES_MAX, Mark
from pipeline.metrics import Metrics
from pipeline.ownership import Phase
from pipeline.pump import STREAM_STEPS
from pipeline.transport.kafka import client as kafka_client
from pipeline.transport.kafka.transport import KafkaTransport
from pipeline.worker import Worker
from tests.simulation import invariants, model
from tests.simulation.client import Faults, Network, connected
from tests.simulation.cluster import HANDLERS, Cluster
from tests.simulation.disks import Disks
from tests.simulation.engine import engines
from tests.simulation.groups import State
from tests.simulation.log import Record
from tests.simulation.loop import Process, SimLoop, Stuck, virtual

INPUT, OUTPUT, GROUP = "in", "out", "g"
CONFIG = Config(
    input=INPUT,
    output=OUTPUT,
    group=GROUP,
    bootstrap_servers="sim:1",
    worker_id="w",
    slots=64,
    session_timeout_ms=3000,
    heartbeat_interval_ms=500,
    request_timeout_ms=1500,
    transaction_timeout_ms=2000,
    drain_timeout_s=3.0,
    max_stall_s=30.0,
    snapshot_compression="none",
)
ALL_BUT_FETCHES = frozenset(HANDLERS) - {1}
"""Requests that may be hit by faults where fetches are not."""
STOP_SHARE = 0.5
"""Of the requests after which a process may stand still."""
BOUND_S = 60.0
"""All inputs are done so long after the last fault and the last input."""


@dataclass
class Plan:
    """What a run is like; drawn from its seed, then bent by a bias."""

    seed: int
    talks: bool = False
    shuffle: bool = False
    nodes: int = 1
    partitions: int = 2
    workers: int = 2
    keys: int = 2
    """Of each partition."""
    records: int = 40
    produce_s: float = 6.0
    faults_s: float = 9.0
    """Nothing fails after that."""
    faults: Faults = field(default_factory=Faults)
    kills: int = 0
    stops: int = 0
    stop_s: float | None = None
    """For how long, about; None: anything."""
    graceful: int = 0
    crashes: int = 0
    compactions: int = 0
    retentions: int = 0
    """The input loses all that no takeover may have to read again."""
    joins: int = 0
    """Rebalances that no worker's fate has caused."""
    engine_faults: float = 0.0
    engine_good_s: float = math.inf
    """After a fault there is none for so long."""
    poison: float = 0.0
    ends: float = 0.0
    bad: float = 0.0
    input_transactions: float = 0.0
    verify_share: float = 0.0
    roll_share: float = 0.3
    marker_s: float = 0.003
    slow_marker: float = 0.0
    engine_s: float = 0.003
    stream_steps: int = STREAM_STEPS
    """Of one stream in one poll: what exceeds it is set aside."""
    done_bytes: int = DONE_BYTES_MAX
    """Room for D (X2)."""
    much: int = MUCH
    """Records yet to be fetched for which what is set aside waits."""
    horizon_s: float = 5.0
    """For so long a compacted topic keeps what only says that something is gone."""
    meddlings: int = 0
    """A tool sets an offset of the group while it is at work; in the end a human puts that right."""
    deleted: str = ""
    """A topic, "input" or "changelog", that is deleted and made anew: all that is left to do is to stop by name."""
    copies: str = ""
    """Whose disk a worker keeps local copies on: its "own", one that all "share", or nobody's."""
    damages: float = 0.0
    """A death damages what the disk has of a copy."""
    stop_at: int | None = None
    """A request after which a process may stand still at once, by its API key."""
    epilogue: bool = False
    """In the end all workers die, every stream gets one more record, and a new worker serves it."""
    config: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(seed: int) -> Plan:
        rng = random.Random(f"plan {seed}")
        some = rng.random
        plan = Plan(seed)
        plan.talks = some() < 0.3
        plan.shuffle = some() < 0.5
        plan.nodes = rng.choice([1, 1, 2, 3])
        plan.partitions = rng.choice([1, 2, 2, 3])
        plan.workers = rng.choice([1, 2, 2, 3])
        plan.keys = rng.choice([1, 2, 3])
        plan.records = rng.randrange(15, 60)
        plan.produce_s = rng.choice([0.5, 3.0, 6.0])
        chance = rng.choice([0.0, 0.002, 0.01, 0.03])
        plan.faults = Faults(*(chance * some() for _ in range(4)), late_s=rng.choice([0.05, 1.0, 4.0]))
        plan.kills = rng.choice([0, 1, 2, 4])
        plan.stops = rng.choice([0, 0, 1, 2])
        plan.graceful = rng.choice([0, 0, 1])
        plan.crashes = rng.choice([0, 0, 0, 1, 2])
        plan.compactions = rng.choice([0, 1, 3])
        plan.joins = rng.choice([0, 0, 1])
        plan.engine_faults = rng.choice([0.0, 0.0, 0.02])
        plan.poison = rng.choice([0.0, 0.0, 0.0, 0.02])
        if plan.poison:
            plan.engine_faults = 0.0  # a fault beside it would be taken for a record's own
        plan.ends = rng.choice([0.0, 0.03])
        plan.bad = rng.choice([0.0, 0.03])
        plan.input_transactions = rng.choice([0.0, 0.0, 0.2])
        plan.verify_share = rng.choice([0.0, 0.2])
        plan.slow_marker = rng.choice([0.0, 0.05, 0.3])
        plan.engine_s = rng.choice([0.001, 0.01, 0.1])
        plan.epilogue = some() < 0.5
        plan.config = {
            "slots": rng.choice([3, 8, 64]),
            "engine_threads": rng.choice([1, 1, 2]),
            "snapshot_interval_ms": rng.choice([0.0, 50.0, 500.0, 3000.0]),
            "snapshot_bytes_per_second": rng.choice([300.0, 1e6, 1e6]),
            "snapshot_compression": rng.choice(["none", "none", "lz4"]),
            "commit_interval_ms": rng.choice([0.0, 0.0, 30.0]),
            "generate_flush_ms": rng.choice([0.0, 20.0, 200.0]),
            "on_input": rng.choice(["wait", "wait", "interrupt"]),
            "processing_guarantee": rng.choice(["exactly_once"] * 4 + ["at_least_once"]),
            "state_ttl_s": rng.choice([0.0] * 5 + [1.0, 3.0]),
        }
        plan.retentions = rng.choice([0, 2, 5])
        plan.stream_steps = rng.choice([STREAM_STEPS, 1, 2])
        plan.done_bytes = rng.choice([DONE_BYTES_MAX, DONE_BYTES_MAX, 8])
        plan.much = rng.choice([MUCH, 0, 3])
        plan.copies = rng.choice(["", "", "own", "shared"])
        plan.damages = rng.choice([0.0, 0.3])
        if plan.copies:
            plan.config["standbys"] = rng.choice([0, 0, 1, 2])
        if some() < 0.15:
            plan.meddlings = rng.choice([1, 2])
        elif some() < 0.1 and not plan.talks:
            plan.deleted = rng.choice(["input", "changelog"])
            # By name alone nobody can tell a topic from the next one: it is met by the fetch that waits in between.
            plan.faults.only = ALL_BUT_FETCHES
        if plan.meddlings or plan.deleted:
            plan.ends = plan.config["state_ttl_s"] = 0.0  # without any state left, whoever comes may begin anew
        if plan.talks:
            # What a stream has said binds it; of one that was forgotten no history can be told.
            plan.poison = plan.config["state_ttl_s"] = 0.0
        if plan.config["processing_guarantee"] == "at_least_once":
            # Of two answers to one record, given before and after its stream was forgotten, either may be the first.
            plan.config["state_ttl_s"] = 0.0
        return plan


@dataclass
class Life:
    """One process that runs a worker."""

    process: Process
    worker_id: str
    worker: Worker | None = None
    task: asyncio.Task[Any] | None = None
    ending: bool = False


@dataclass
class Result:
    seed: int
    problems: list[str]
    virtual_s: float
    steps: int
    digest: int
    counts: dict[str, int]


class World:
    """See the module. ``run`` once."""

    def __init__(self, plan: Plan, say: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(f"world {plan.seed}")
        self.loop = SimLoop(random.Random(f"loop {plan.seed}"), plan.shuffle)
        self.contract: Contract = model.talking() if plan.talks else model.hashing()
        self.cluster = Cluster(
            self.loop,
            random.Random(f"cluster {plan.seed}"),
            plan.nodes,
            marker_s=self._marker,
            verify_share=plan.verify_share,
            roll_share=plan.roll_share,
        )
        self.cluster.defaults["delete.retention.ms"] = str(int(plan.horizon_s * 1e3))
        plan.faults.until_s = plan.faults_s
        self.network = Network(self.loop, self.cluster, random.Random(f"network {plan.seed}"), plan.faults)
        self._root = tempfile.TemporaryDirectory(prefix="eddy-simulation-")
        self.disks = Disks(Path(self._root.name), random.Random(f"disks {plan.seed}"))
        self.config = replace(CONFIG, **plan.config, state_directory=self._root.name if plan.copies else "")
        self.lives: dict[str, Life] = {}
        self.problems: list[str] = []
        self.counts: dict[str, int] = {}
        self._lost: dict[int, list[Record]] = {p: [] for p in range(plan.partitions)}
        """Records of the input that its retention took."""
        self.gone = ""
        """The topic that was deleted."""
        self.network.watch = self._heard
        self._say = say
        self._process_number = 0
        self._engine_good_s = 0.0
        self._held = False
        """No worker starts."""

    def inputs(self, partition: int) -> list[Record]:
        """All that was ever to be read there, before the input was another one."""
        if self.gone == INPUT:
            return self._lost[partition]
        return self._lost[partition] + self.cluster.logs[INPUT, partition].visible()

    def count(self, what: str, n: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + n

    def say(self, text: str) -> None:
        if self._say is not None:
            self._say(f"{self.loop.time():9.4f} {text}")

    def _marker(self) -> float:
        if self.loop.time() < self.plan.faults_s and self.rng.random() < self.plan.slow_marker:
            return self.rng.random() * 1.5
        return self.rng.random() * self.plan.marker_s

    # ---- the run

    def run(self) -> Result:
        loop, plan = self.loop, self.plan
        kafka_client._away.clear()
        asyncio.set_event_loop(loop)
        try:
            with (
                virtual(loop, self.rng),
                connected(self.network),
                engines(random.Random(f"engine {plan.seed}"), self._engine_fails, plan.engine_s),
                self._root,
                self.disks.spinning(),
                mock.patch.object(pipeline.worker, "STREAM_STEPS", plan.stream_steps),
                mock.patch.object(pipeline.mark, "DONE_BYTES_MAX", plan.done_bytes),
                mock.patch.object(pipeline.inflow, "MUCH", plan.much),
            ):
                try:
                    loop.run_until_complete(self._play())
                except Stuck as stuck:
                    self.problems.append(str(stuck))
                self.problems += [f"nobody awaited: {f}" for f in loop.failures]
                self.problems += invariants.check(self)
                digest = self._digest()
                self.lives.clear()
                loop.end()
        finally:
            asyncio.set_event_loop(None)
        return Result(plan.seed, self.problems, loop.time(), loop.steps, digest, self.counts | self.network.count)

    def _digest(self) -> int:
        """Of everything that was written: equal for equal seeds."""
        parts = [(place, [(b.base, b.data) for b in log.batches]) for place, log in self.cluster.logs.items()]
        return zlib.crc32(repr((self.loop.steps, parts)).encode())

    async def _play(self) -> None:
        plan, loop = self.plan, self.loop
        for topic in (INPUT, OUTPUT):
            self.cluster.create(topic, plan.partitions)
        producing = asyncio.create_task(self._produce(), name="producer")
        for i in range(plan.workers):
            loop.call_later(self.rng.random() * 0.5 * i, self.start_worker, f"w{i}")
        await self._disturb()
        await asyncio.sleep(max(0.0, plan.faults_s - loop.time()))
        await producing
        self._calm()
        if self.gone:
            await self._until(self._given_up, "does not stop by name")
        else:
            await self._put_right()
            if await self._until(self.done, "is not done") and plan.epilogue:
                self._end_all()
                self._last_words()
                self.start_worker("last")
                await self._until(self.done, "is not done")
        # What is repeated comes late.
        await asyncio.sleep(1.0)
        self.count("virtual_s", int(loop.time()))

    async def _until(self, condition: Callable[[], bool], what: str) -> bool:
        end = self.loop.time() + BOUND_S
        while not condition():
            if self.loop.time() > end:
                self.problems.append(f"a partition {what} {BOUND_S:g} s after the last fault: {self._left()}")
                return False
            await asyncio.sleep(0.25)
        return True

    def _stopped(self) -> dict[int, str]:
        """Partitions that stand still by name, and why."""
        workers = [life.worker for life in self.lives.values() if life.worker is not None]
        return {o.partition: o.reason for w in workers for o in w._ownership.owned if o.phase is Phase.STOPPED}

    def _given_up(self) -> bool:
        """All is stopped because a topic is another one."""
        stopped = self._stopped()
        return len(stopped) == self.plan.partitions and all("made anew" in why for why in stopped.values())

    def _end_all(self) -> None:
        for life in list(self.lives.values()):
            self._bury(life)
        self.lives.clear()

    async def _put_right(self) -> None:
        """Whoever takes over what a tool has set stops by name; a human ends all, and sets what the group had."""
        group = self.cluster.groups.group(GROUP)

        def wrong() -> list[tuple[str, int]]:
            return [place for place, c in group.offsets.items() if c.by[0] == "tool"]

        def named() -> bool:
            why = self._stopped()
            return all("another tool" in why.get(p, "") or "does not match" in why.get(p, "") for _, p in wrong())

        def right() -> None:
            every = sorted([*group.history, *group.overtaken], key=lambda entry: entry[1].at)
            own = {place: c for place, c in every if c.by[0] != "tool"}
            group.commit(-1, "", [(place, own[place].offset, own[place].metadata) for place in wrong()], "human")

        if not wrong():
            return
        await self._all_anew()
        self.count("offsets put right", len(wrong()))
        await self._until(named, "that a tool has set does not stop by name")
        await self._all_anew(right)

    async def _all_anew(self, between: Callable[[], Any] = lambda: None) -> None:
        """All workers end, and start when the group has forgotten them."""
        group = self.cluster.groups.group(GROUP)
        names = sorted({*self.lives, *(f"w{i}" for i in range(self.plan.workers))})
        self._held = True
        self._end_all()
        await self._until(lambda: group.state is State.EMPTY and not group.pending, "has members that are dead")
        between()
        self._held = False
        for name in names:
            self.start_worker(name)

    def _calm(self) -> None:
        for number in self.cluster.nodes:
            self.cluster.restart(number)
        for life in list(self.lives.values()):
            self.loop.continue_process(life.process)

    def done(self) -> bool:
        """Whether everything that was produced is committed, and everything committed is saved."""
        group = self.cluster.groups.group(GROUP)
        for p in range(self.plan.partitions):
            c = group.offsets.get((INPUT, p))
            visible = self.inputs(p)
            last = visible[-1].offset + 1 if visible else 0
            if c is None or c.offset < last or group.pending:
                return False
            mark = Mark.decode(c.metadata)
            if mark is None or mark.replay_from != c.offset:
                return False
        if any(log.open for (topic, _), log in self.cluster.logs.items() if topic != INPUT):
            return False
        return not self.plan.talks or self._all_said()

    def _all_said(self) -> bool:
        """A prompt is done when it was applied; what follows from it may take longer."""
        partitions = range(self.plan.partitions)
        asked = sum(bool(r.key and r.value and invariants.spoken(r.value)) for p in partitions for r in self.inputs(p))
        said = [r for p in partitions for r in self.cluster.logs[OUTPUT, p].visible()]
        ended = sum("eddy-finish" in dict(r.headers) for r in said)
        return ended >= asked

    def _left(self) -> str:
        group = self.cluster.groups.group(GROUP)
        at = {p: group.offsets.get((INPUT, p)) for p in range(self.plan.partitions)}
        ends = {p: self.cluster.logs[INPUT, p].end for p in at}
        phases = {
            name: [(o.partition, o.phase.value, o.reason) for o in life.worker._ownership.owned]
            if life.worker
            else None
            for name, life in self.lives.items()
        }
        return f"committed { ({p: c.offset if c else None for p, c in at.items()}) } of {ends}; workers {phases}"

    # ---- what is produced

    async def _produce(self) -> None:
        plan, rng = self.plan, random.Random(f"producer {self.plan.seed}")
        left = plan.records
        transactions: list[tuple[int, int, float]] = []
        producer = 10_000
        while (left > 0 or transactions) and self.gone != INPUT:
            p = rng.randrange(plan.partitions)
            log = self.cluster.logs[INPUT, p]
            if transactions and (left <= 0 or rng.random() < 0.3):
                producer_of, q, _ = transactions.pop(rng.randrange(len(transactions)))
                self.cluster.logs[INPUT, q].mark(producer_of, 0, rng.random() < 0.5, self.cluster.now_ms())
            else:
                n = rng.randrange(1, 5)
                rows = [self._row(rng, p) for _ in range(n)]
                if rng.random() < plan.input_transactions:
                    producer += 1
                    log.write(rows, producer)
                    transactions.append((producer, p, 0.0))
                else:
                    log.write(rows)
                left -= n
            await asyncio.sleep(rng.random() * 4 * plan.produce_s / plan.records)

    def _last_words(self) -> None:
        for p in range(self.plan.partitions):
            for k in range(self.plan.keys):
                value = b"a" if self.plan.talks else struct.pack("<q", 77)
                self.cluster.logs[INPUT, p].write([(b"k%d-%d" % (p, k), value, self.cluster.now_ms(), ())])

    def _row(self, rng: random.Random, p: int) -> tuple[bytes | None, bytes | None, int, Any]:
        plan, now = self.plan, self.cluster.now_ms()
        key = b"k%d-%d" % (p, rng.randrange(plan.keys))
        if rng.random() < plan.ends:
            return key, None, now, ()
        if rng.random() < plan.bad:
            if rng.random() < 0.3:
                return None, b"no key", now, ()
            return key, b"?!" if plan.talks else b"no step", now, ()
        if plan.talks:
            text = "".join(rng.choice(model.LETTERS) for _ in range(rng.randrange(0, 4)))
            headers = [("eddy-max-steps", b"%d" % rng.randrange(1, 7))] if rng.random() < 0.6 else []
            return key, text.encode(), now, tuple(headers)
        steps = [rng.randrange(1000) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
        if steps and rng.random() < plan.poison:
            steps[-1] = model.POISON
        return key, struct.pack(f"<{len(steps)}q", *steps), now, ()

    # ---- workers and what happens to them

    def _engine_fails(self) -> bool:
        now = self.loop.time()
        if now > self.plan.faults_s or now < self._engine_good_s or self.rng.random() >= self.plan.engine_faults:
            return False
        # What fails again when it runs alone is the record's fault: it gets the time to run.
        self._engine_good_s = now + self.plan.engine_good_s
        self.count("engine faults")
        return True

    def start_worker(self, worker_id: str) -> None:
        if worker_id in self.lives or self._held:
            return
        self._process_number += 1
        life = Life(Process(f"{worker_id}#{self._process_number}"), worker_id)
        self.lives[worker_id] = life
        self.say(f"{life.process.name} starts")
        life.task = self.loop.spawn(life.process, lambda: self._live(life), life.process.name)
        life.task.add_done_callback(lambda task: self._ended(life, task))

    async def _live(self, life: Life) -> None:
        config = replace(self.config, worker_id=life.worker_id, state_directory=self._directory(life))
        metrics = Metrics(self.contract.name, self.contract.model_version)
        life.worker = Worker(config, KafkaTransport(config), None, self.contract, metrics)
        await life.worker.run()

    def _machine(self, life: Life) -> str:
        return life.worker_id if self.plan.copies == "own" else self.plan.copies

    def _directory(self, life: Life) -> str:
        return self.disks.of(self._machine(life)) if self.plan.copies else ""

    def _bury(self, life: Life) -> None:
        """Nothing of it ever runs again."""
        self.loop.kill_process(life.process)
        self.disks.died(life.process)

    def _ended(self, life: Life, task: asyncio.Task[Any]) -> None:
        if not life.process.alive:
            return
        self.lives.pop(life.worker_id, None)
        error = None if task.cancelled() else task.exception()
        self.say(f"{life.process.name} ended: {error!r}")
        if isinstance(error, Broken) or (error is not None and not isinstance(error, EddyError)):
            self.problems.append(f"worker {life.process.name} ended with {error!r}")
            if self._say is not None:
                traceback.print_exception(error)
        if error is not None:
            self.count(f"ended {type(error).__name__}")
        self._bury(life)
        # A supervisor starts it again.
        self.loop.call_later(0.2 + self.rng.random(), self.start_worker, life.worker_id)

    def kill(self, life: Life) -> None:
        self.say(f"{life.process.name} is killed")
        self.count("kills")
        self._bury(life)
        self.lives.pop(life.worker_id, None)
        if self.rng.random() < self.plan.damages and self.disks.damage(self._machine(life)):
            self.count("damaged copies")
        self.loop.call_later(0.05 + self.rng.random() * self.rng.choice([0.2, 6.0]), self.start_worker, life.worker_id)

    def stop(self, life: Life, seconds: float) -> None:
        self.say(f"{life.process.name} is stopped for {seconds:.2f} s")
        self.count("stops")
        self.loop.stop_process(life.process)
        self.loop.call_later(seconds, self._continue, life)

    def _continue(self, life: Life) -> None:
        self.say(f"{life.process.name} goes on")
        self.loop.continue_process(life.process)

    async def _disturb(self) -> None:
        plan, rng = self.plan, self.rng
        acts: list[Callable[[], None]] = []
        acts += [self._kill_one] * plan.kills + [self._stop_one] * plan.stops + [self._end_one] * plan.graceful
        acts += [self._crash_one] * plan.crashes + [self._compact] * plan.compactions + [self._join] * plan.joins
        acts += [self._retain] * plan.retentions + [self._meddle] * plan.meddlings
        acts += [self._delete] * bool(plan.deleted)
        rng.shuffle(acts)
        times = sorted(rng.random() * (plan.faults_s - 0.5) + 0.3 for _ in acts)
        for at, act in zip(times, acts):
            await asyncio.sleep(max(0.0, at - self.loop.time()))
            act()

    def _one(self) -> Life | None:
        lives = [life for life in self.lives.values() if not life.process.stopped]
        return self.rng.choice(lives) if lives else None

    def _kill_one(self) -> None:
        if (life := self._one()) is not None:
            self.kill(life)

    def _stop_one(self) -> None:
        if (life := self._one()) is not None:
            seconds = self.plan.stop_s or self.rng.choice([0.1, 1.0, 4.0, 6.0])
            self.stop(life, seconds * (0.5 + self.rng.random()) if self.plan.stop_s is None else seconds)

    def _heard(self, process: str, request: Any) -> None:
        """Who has asked for that stands still at about the moment at which the answer comes."""
        plan = self.plan
        if plan.stop_at != request.API_KEY or self.loop.time() > plan.faults_s or self.rng.random() > STOP_SHARE:
            return
        life = next((life for life in self.lives.values() if life.process.name == process), None)
        if life is not None and plan.stop_s is not None:
            self.loop.call_later(0.001, self.stop, life, plan.stop_s)

    def _end_one(self) -> None:
        if (life := self._one()) is not None and life.worker is not None:
            self.say(f"{life.process.name} is asked to end")
            self.count("graceful")
            life.worker.stop()

    def _crash_one(self) -> None:
        number = self.rng.choice(sorted(self.cluster.nodes))
        self.say(f"node {number} crashes")
        self.count("crashes")
        self.cluster.crash(number)
        self.loop.call_later(self.rng.random() * self.rng.choice([0.3, 3.0]), self._restart, number)

    def _restart(self, number: int) -> None:
        self.say(f"node {number} is back")
        self.cluster.restart(number)

    def _join(self) -> None:
        """Another worker comes for a while."""
        name = "guest"
        self.start_worker(name)
        self.count("joins")

        def go() -> None:
            life = self.lives.get(name)
            if life is not None and life.process.alive:
                self._bury(life)
                self.lives.pop(name)

        self.loop.call_later(1.0 + self.rng.random() * 3, go)

    def _retain(self) -> None:
        """Retention comes up to R (X6) and not beyond."""
        for p in range(self.plan.partitions if self.gone != INPUT else 0):
            stable = self.cluster.groups.group(GROUP).offsets.get((INPUT, p))
            mark = Mark.decode(stable.metadata) if stable is not None else None
            log = self.cluster.logs[INPUT, p]
            if mark is not None and mark.replay_from > log.start:
                self.count("retentions")
                self._lost[p] += [r for r in log.visible() if r.offset < mark.replay_from]
                log.truncate(mark.replay_from)

    def _has_states(self, p: int) -> bool:
        log = self.cluster.logs.get((self.config.changelog, p))
        offsets = self.cluster.groups.group(GROUP).offsets
        return log is not None and (INPUT, p) in offsets and any(r.value is not None for r in log.visible())

    def _meddle(self) -> None:
        """Somebody's tool sets an offset, with or without a metadata of its own."""
        p = self.rng.randrange(self.plan.partitions)
        if self.gone or not self._has_states(p):
            return
        group = self.cluster.groups.group(GROUP)
        now = group.offsets[INPUT, p]
        offset = self.rng.randrange(self.cluster.logs[INPUT, p].end + 1)
        mark = Mark.decode(now.metadata)
        fits = mark is not None and mark.committed == offset  # then it would be set right
        metadata = self.rng.choice(["", "set by hand", "" if fits else now.metadata])
        self.say(f"a tool sets partition {p} from {now.offset} to {offset}")
        self.count("offsets set by a tool")
        group.set_by_tool((INPUT, p), offset, metadata)

    def _delete(self) -> None:
        """A topic goes, and comes again under its name, maybe with more in it than before."""
        partitions = range(self.plan.partitions)
        if not all(self._has_states(p) for p in partitions):
            return
        topic = self.gone = INPUT if self.plan.deleted == "input" else self.config.changelog
        self.say(f"{topic} is deleted")
        self.count("topics deleted")
        if topic == INPUT:
            for p in partitions:
                self._lost[p] += self.cluster.logs[INPUT, p].visible()
        self.cluster.delete(topic)
        # A fetch meets that it is gone in between.
        self.loop.call_later(0.3 + self.rng.random() * self.rng.choice([0.2, 6.0]), self._make_anew, topic)

    def _make_anew(self, topic: str) -> None:
        settings = {"cleanup.policy": "compact"} if topic != INPUT else {}
        self.cluster.create(topic, self.plan.partitions, settings)
        for p in range(self.plan.partitions if topic == INPUT else 0):
            rows = [self._row(self.rng, p) for _ in range(self.rng.randrange(2 * self.plan.records))]
            if rows:
                self.cluster.logs[topic, p].write(rows)

    def _compact(self) -> None:
        self.count("compactions")
        for (topic, _), log in self.cluster.logs.items():
            if topic == self.config.changelog:
                upto = log.end if self.rng.random() < 0.5 else self.rng.randrange(log.end + 1)
                log.compact(upto, self.loop.time(), self.plan.horizon_s)


def simulate(plan: Plan, say: Callable[[str], None] | None = None) -> Result:
    """One run, with the logging of the product silenced unless somebody listens."""
    if say is None:
        logging.disable(logging.CRITICAL)
    try:
        result = World(plan, say).run()
        # What the killed left behind ends now, in a loop that is over: nobody needs to hear of it.
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings(action="ignore"):
                gc.collect()
        finally:
            sys.unraisablehook = hook
        return result
    finally:
        logging.disable(logging.NOTSET)
