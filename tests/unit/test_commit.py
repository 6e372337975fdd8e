"""A commit that fails costs nothing: the same part again, or found to be visible, or another's by now (X3, X4, X11)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest

from pipeline.columns import Committed, Membership, Part
from pipeline.commit import ALONE_AFTER
from pipeline.errors import OutcomeUnknown
from pipeline.mark import Mark
from pipeline.transport.base import Written
from tests.models import rolling_hash_reference
from tests.unit.test_replay import Traffic, value
from tests.unit.test_worker import PARTITIONS, counted, hash_model, new_broker, outputs, running, until
from tests.unit.watched import Log, Watched, killed, made_watched

__all__ = ["hash_model"]


class Scripted(Watched):
    """Transactions with outputs fail as the script has it, one entry each; then they succeed."""

    script: list[str]

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.script = []
        self.tried: list[list[Part]] = []
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        if not any(len(p.outputs) for p in parts):
            return await super().commit(membership, parts)
        self.tried.append(list(parts))
        step = self.script.pop(0) if self.script else "succeeds"
        if step == "is lost":
            self._settled = False
            raise OutcomeUnknown("the request was lost")
        if step == "waits":
            self.reached.set()
            await self.gate.wait()
        written = await super().commit(membership, parts)
        if step == "is done, its answer lost":
            self._settled = False
            raise OutcomeUnknown("the answer was lost")
        return written


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr("pipeline.committer.FAILED_S", (0.0,))
    monkeypatch.setattr("pipeline.commit.SETTLE_RETRY_S", (0.0,))
    monkeypatch.setattr("pipeline.ownership.RETRY_S", (0.0,))


def takeovers(worker) -> int:
    text = generate_latest(worker._metrics.registry).decode()
    [line] = [line for line in text.splitlines() if line.startswith("eddy_takeovers_total{")]
    return int(float(line.split()[-1]))


async def ready(worker) -> None:
    async with asyncio.timeout(10):
        while not worker.ready:
            await asyncio.sleep(0)


async def begun(broker, task) -> None:
    """A new group's starts are committed: what comes then is in parts of its own."""
    await until(broker, task, lambda: len(broker.groups["g"].offsets) == PARTITIONS)


def exact(broker, key: bytes, steps: list[int]) -> None:
    assert outputs(broker)[key] == rolling_hash_reference(np.array(steps)).tolist()


async def test_a_failed_transaction_is_sent_again_as_it_was_and_memory_stays(hash_model):
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Scripted)
    transport.script = ["is lost"] * 2
    async with running(worker) as task:
        await begun(broker, task)
        broker.produce("in", 0, b"a", value(1))
        await until(broker, task, lambda: counted(broker) == 1)
        memory = worker._ownership.memory(0)
        broker.produce("in", 0, b"a", value(2))
        await until(broker, task, lambda: counted(broker) == 2)
        assert worker._ownership.memory(0) is memory
        assert takeovers(worker) == 4, "one for each partition, at the start"
    first, second, third = (parts for parts in transport.tried[:3])
    assert first[0] is second[0] is third[0], "the same part, the same tag"
    exact(broker, b"a", [1, 2])


async def test_what_is_finished_while_the_transaction_opens_goes_along(hash_model):
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Scripted)
    async with running(worker) as task:
        await begun(broker, task)
        opening, opened = asyncio.Event(), asyncio.Event()

        async def slow(outputs: Collection[int], snapshots: Collection[int]) -> None:
            opening.set()
            await opened.wait()

        transport.open = slow
        broker.produce("in", 0, b"a", value(1))
        await opening.wait()
        broker.produce("in", 0, b"a", value(2))
        async with asyncio.timeout(10):
            while sum(len(d.outputs) for d in worker._ownership.memory(0).pending) < 2:
                await asyncio.sleep(0)
        assert not transport.tried
        opened.set()
        await until(broker, task, lambda: counted(broker) == 2)
    assert len(transport.tried[0][0].outputs) == 2
    exact(broker, b"a", [1, 2])


async def test_a_transaction_that_cannot_be_opened_costs_nothing(hash_model):
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Scripted)
    async with running(worker) as task:
        await begun(broker, task)
        plain, failed = transport.open, []

        async def fails(*places: Any) -> None:
            if len(failed) < ALONE_AFTER + 1:
                failed.append(places)
                transport._settled = False
                raise OutcomeUnknown("the answer was lost")
            await plain(*places)

        transport.open = fails
        memory = worker._ownership.memory(0)
        for i in range(1, 9):
            broker.produce("in", 0, b"a", value(i))
            await until(broker, task, lambda i=i: counted(broker) == i)
        assert len(failed) == ALONE_AFTER + 1
        assert worker._ownership.memory(0) is memory
        assert takeovers(worker) == 4, "one for each partition, at the start"
    exact(broker, b"a", list(range(1, 9)))


async def test_what_is_finished_meanwhile_goes_into_the_next_part(hash_model):
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Scripted)
    transport.script = ["waits", "is lost"]
    async with running(worker) as task:
        await begun(broker, task)
        broker.produce("in", 0, b"a", value(1))
        await transport.reached.wait()
        broker.produce("in", 0, b"a", value(2))
        async with asyncio.timeout(10):
            while not worker._ownership.memory(0).pending:
                await asyncio.sleep(0)
        transport.gate.set()
        await until(broker, task, lambda: counted(broker) == 2)
    one, lost, again = transport.tried
    assert lost[0] is again[0]
    assert (one[0].committed, lost[0].committed) == (1, 2)


async def test_a_transaction_that_was_done_after_all_is_found_out_and_not_sent_again(hash_model):
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Scripted)
    transport.script = ["is done, its answer lost"]
    async with running(worker) as task:
        await begun(broker, task)
        broker.produce("in", 0, b"a", value(1))
        await until(broker, task, lambda: counted(broker) == 1)
        broker.produce("in", 0, b"a", value(2))
        await until(broker, task, lambda: counted(broker) == 2)
        assert takeovers(worker) == 4
        memory = worker._ownership.memory(0)
        mark = Mark.decode(broker.groups["g"].offsets[0].metadata)
        assert mark is not None
        assert memory.base == mark.tag == transport.tried[-1][0].tag
    assert [len(parts) for parts in transport.tried] == [1, 1]
    exact(broker, b"a", [1, 2])


async def test_a_partition_that_was_anothers_meanwhile_is_taken_over_and_the_others_are_kept(hash_model):
    """Another's tag stands there after the failure; its part made the same records done."""
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Scripted)
    async with running(worker) as task:
        await begun(broker, task)
        for p in (0, 1):
            broker.produce("in", p, b"k%d" % p, value(1))
        await until(broker, task, lambda: counted(broker) == 2)
        kept = worker._ownership.memory(1)
        transport.script = ["waits"]
        before = len(transport.tried)
        for p in (0, 1):
            broker.produce("in", p, b"k%d" % p, value(2))
        await transport.reached.wait()
        mark = Mark.decode(broker.groups["g"].offsets[0].metadata)
        assert mark is not None
        another = Mark(b"another's tag 16", mark.committed, mark.replay_from, mark.digest, mark.done_above)
        broker.groups["g"].offsets[0] = Committed(mark.committed, another.encode())
        transport._settled = False  # what waits finds it so, and fails
        transport.gate.set()
        await until(broker, task, lambda: counted(broker) == 4)
        assert worker._ownership.memory(1) is kept
        assert takeovers(worker) == 5
    lost, again = ({part.partition: part for part in parts} for parts in transport.tried[before : before + 2])
    assert set(lost) == {0, 1}
    assert set(again) == {1}, "what was frozen of the other is dropped with its memory"
    assert again[1] is lost[1]
    for p in (0, 1):
        exact(broker, b"k%d" % p, [1, 2])


async def test_a_transaction_that_is_refused_after_the_next_assignment_keeps_nobody_waiting(hash_model, monkeypatch):
    """The revocation did not wait for it any longer: what it says of the old membership means nothing for the new."""
    monkeypatch.setattr("pipeline.ownership.REVOKE_S", 0.0)
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Scripted)
    transport.script = ["waits"]
    async with running(worker) as task:
        await begun(broker, task)
        broker.produce("in", 0, b"a", value(1))
        await transport.reached.wait()
        await broker.rebalance(broker.groups["g"])
        transport.gate.set()
        await until(broker, task, lambda: counted(broker) == 1)
        await ready(worker)
        transport.script = ["is lost"]
        broker.produce("in", 0, b"a", value(2))
        await until(broker, task, lambda: counted(broker) == 2)
        assert takeovers(worker) == 4
    exact(broker, b"a", [1, 2])


class Poisoned(Watched):
    """No transaction with partition 0 ever succeeds, and no error says why."""

    async def commit(self, membership, parts):
        if any(p.partition == 0 and len(p.outputs) for p in parts):
            self._settled = False
            raise OutcomeUnknown("something")
        return await super().commit(membership, parts)


async def test_partitions_beside_one_that_can_never_be_sent_go_on_one_by_one(hash_model):
    broker = new_broker()
    worker, _ = made_watched(Log(broker), hash_model, kind=Poisoned, drain_timeout_s=0.1)
    async with running(worker) as task:
        await begun(broker, task)
        broker.produce("in", 0, b"bad", value(1))
        for i in range(3 * ALONE_AFTER):
            for p in (1, 2):
                broker.produce("in", p, b"k%d" % p, value(i))
            await until(broker, task, lambda n=2 * i + 2: counted(broker) == n)
        assert takeovers(worker) == 4
    for p in (1, 2):
        exact(broker, b"k%d" % p, list(range(3 * ALONE_AFTER)))


class Unpublished(Watched):
    """What is published fails at times, before or after it is visible; parts wait for a gate."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.publishes, self.parts = itertools.repeat("done"), itertools.repeat("done")
        """What becomes of each."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.failed = {"publish lost": 0, "answer lost": 0, "part lost": 0}

    async def publish(self, parts: Sequence[Part]) -> None:
        outcome = next(self.publishes)
        if outcome == "lost":
            self.failed["publish lost"] += 1
            raise OutcomeUnknown("lost")
        await super().publish(parts)
        if outcome == "answer lost":
            self.failed["answer lost"] += 1
            raise OutcomeUnknown("lost")

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        assert not any(len(p.outputs) for p in parts), "they are out already (X13)"
        if any(len(p.asked_ms) for p in parts):
            await self.gate.wait()
            if next(self.parts) == "lost":
                self.failed["part lost"] += 1
                self._settled = False
                raise OutcomeUnknown("lost")
        return await super().commit(membership, parts)


def without_repeats(broker) -> dict[bytes, list[int]]:
    """Outputs by stream, each record's once; what was shown twice must be the same both times."""
    shown: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    for p, _, e in broker.records("out"):
        source = (p, int.from_bytes(dict(e.headers)["eddy-source"][4:], "big"))
        assert shown.setdefault(source, (e.key, e.value)) == (e.key, e.value), "the same state each time"
    got: dict[bytes, list[int]] = {}
    for _, (key, y) in sorted(shown.items()):
        got.setdefault(key, []).append(int.from_bytes(y, "little"))
    return got


async def test_at_least_once_shows_outputs_before_the_part_and_counts_each_record_once(hash_model):
    broker = new_broker()
    log = Log(broker)
    log.exactly_once = False
    worker, transport = made_watched(log, hash_model, kind=Unpublished, processing_guarantee="at_least_once")
    async with running(worker) as task:
        await begun(broker, task)
        transport.gate.clear()
        broker.produce("in", 0, b"a", value(1))
        await until(broker, task, lambda: counted(broker) >= 1)
        assert broker.groups["g"].offsets[0].offset == 0, "the part that makes it done waits"
        transport.gate.set()
        broker.produce("in", 0, b"a", value(2))
        await until(broker, task, lambda: broker.groups["g"].offsets[0].offset == 2)
    assert without_repeats(broker) == {b"a": rolling_hash_reference(np.array([1, 2])).tolist()}


async def test_at_least_once_shows_again_only_what_another_worker_does_again(hash_model):
    """A transaction that fails costs no second publishing: the part is sent again without what is out."""
    broker = new_broker()
    log = Log(broker)
    log.exactly_once = False
    worker, transport = made_watched(log, hash_model, kind=PartsLost, processing_guarantee="at_least_once")
    async with running(worker) as task:
        await begun(broker, task)
        broker.produce("in", 0, b"a", value(1))
        await until(broker, task, lambda: broker.groups["g"].offsets[0].offset == 1)
    assert transport.lost == 2
    assert counted(broker) == 1


class PartsLost(Watched):
    """The first two transactions that make something done are lost."""

    lost = 0

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        if self.lost < 2 and any(len(p.asked_ms) for p in parts):
            self.lost += 1
            self._settled = False
            raise OutcomeUnknown("lost")
        return await super().commit(membership, parts)


async def test_at_least_once_through_failures_and_deaths(hash_model):
    broker, rng = new_broker(), np.random.default_rng(8)
    log, traffic = Log(broker), Traffic(rng, 40)
    log.exactly_once = False
    traffic.produce(broker, 1500)
    failed: dict[str, int] = {}
    publishes = itertools.cycle(["lost", "done", "answer lost", "done", "done"])
    parts = itertools.cycle(["lost", *["done"] * 6])

    def committed() -> int:
        return sum(c.offset for c in broker.groups["g"].offsets.values())

    def settings(life: int) -> dict:
        return {
            "worker_id": f"w{life}",
            "processing_guarantee": "at_least_once",
            "max_steps": 50,
            "snapshot_interval_ms": float(rng.choice([0, 10, 10_000])),
        }

    for life in range(6):
        worker, transport = made_watched(log, hash_model, kind=Unpublished, **settings(life))
        transport.publishes, transport.parts = publishes, parts
        task = asyncio.create_task(worker.run())
        enough = counted(broker) + 200
        await until(broker, task, lambda n=enough: counted(broker) >= n or committed() == 1500)
        await killed(task)
        failed = {name: n + failed.get(name, 0) for name, n in transport.failed.items()}
    worker, _ = made_watched(log, hash_model, kind=Unpublished, **settings(9))
    async with running(worker) as task:
        await until(broker, task, lambda: committed() == 1500)
    assert all(failed.values()), failed
    assert counted(broker) > 1500, "some were shown again"
    got = without_repeats(broker)
    for key, [steps] in traffic.lives.items():
        assert got[key] == rolling_hash_reference(np.array(steps)).tolist(), key
