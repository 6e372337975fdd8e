"""Rebalances: what is kept goes on as it was, what was another's meanwhile is taken over (X1, X4)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.columns import Membership, Part
from pipeline.errors import OutcomeUnknown
from pipeline.mark import Mark
from pipeline.transport.base import Written
from tests.models import rolling_hash_reference
from tests.unit.test_commit import begun, ready, takeovers
from tests.unit.test_replay import Traffic, value
from tests.unit.test_worker import PARTITIONS, counted, hash_model, new_broker, outputs, running, until
from tests.unit.watched import Log, Watched, killed, made_watched

__all__ = ["hash_model"]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr("pipeline.committer.FAILED_S", (0.0,))
    monkeypatch.setattr("pipeline.commit.SETTLE_RETRY_S", (0.0,))
    monkeypatch.setattr("pipeline.ownership.RETRY_S", (0.0,))


class Fetched(Watched):
    """Remembers what was fetched: offsets by partition, and where it had to go back to."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.fetched: dict[int, list[int]] = {p: [] for p in range(PARTITIONS)}

    async def fetch(self, timeout_s: float, **how):
        segments = await super().fetch(timeout_s, **how)
        for segment in segments:
            self.fetched[segment.partition] += segment.offsets.tolist()
        return segments


async def test_partitions_that_are_kept_go_on_without_takeover_gap_or_repetition(hash_model):
    broker = new_broker()
    log, traffic = Log(broker), Traffic(np.random.default_rng(1), 40)
    first, transport = made_watched(log, hash_model, "a", Fetched, snapshot_interval_ms=1e9)
    async with running(first) as task:
        await ready(first)
        traffic.produce(broker, 500)
        await until(broker, task, lambda: counted(broker) == 500)
        memories = {m.partition: m for m in first._ownership.memories()}
        slots_used = first._slots.used
        for turn in range(4):  # nobody comes or goes
            await broker.rebalance(broker.groups["g"])
            traffic.produce(broker, 50)
            await until(broker, task, lambda n=turn: counted(broker) == 550 + 50 * n)
        assert takeovers(first) == PARTITIONS
        assert {m.partition: m for m in first._ownership.memories()} == memories
        assert all(first._ownership.memory(p) is memory for p, memory in memories.items())
        assert first._slots.used >= slots_used
        assert all(marks[-1].replay_from == 0 for marks in log.marks.values()), "nothing had to be saved for it"
    for p, offsets in transport.fetched.items():
        assert offsets == list(range(len(broker.topics["in"][p])))
    traffic.check(broker)


async def test_only_what_was_anothers_meanwhile_is_taken_over(hash_model):
    broker = new_broker()
    log, traffic = Log(broker), Traffic(np.random.default_rng(2), 40)
    traffic.produce(broker, 1000)
    first, _ = made_watched(log, hash_model, "a", snapshot_interval_ms=1e9, max_steps=100)
    async with running(first) as task:
        await until(broker, task, lambda: counted(broker) > 100)
        second, _ = made_watched(log, hash_model, "b", snapshot_interval_ms=1e9, max_steps=100)
        kept = first._ownership.memory(0)
        async with running(second) as other:
            await ready(second)
            traffic.produce(broker, 500)
            await until(broker, other, lambda: counted(broker) == 1500)
            assert [m.partition for m in first._ownership.memories()] == [0, 2]
            assert first._ownership.memory(0) is kept
            assert (takeovers(first), takeovers(second)) == (4, 2)
            assert any(m.replay_from < m.committed for p in (1, 3) for m in log.marks[p])
        await ready(first)
        traffic.produce(broker, 300)
        await until(broker, task, lambda: counted(broker) == 1800)
        assert takeovers(first) == 6
        assert first._ownership.memory(0) is kept
    traffic.check(broker)


class Failing(Watched):
    """Its transactions fail now and then: before anything is visible, or after all of it is."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.rng = np.random.default_rng(0)

    async def commit(self, membership: Membership, parts: Sequence[Part]) -> dict[int, Written]:
        dice = self.rng.random()
        if dice < 0.15:
            self._settled = False
            raise OutcomeUnknown("the request was lost")
        for _ in range(int(self.rng.integers(0, 6))):  # a rebalance may come between
            await asyncio.sleep(0)
        written = await super().commit(membership, parts)
        if dice > 0.85:
            self._settled = False
            raise OutcomeUnknown("the answer was lost")
        return written


@pytest.mark.parametrize("seed", range(3))
async def test_rebalances_failures_and_deaths_all_at_once(hash_model, monkeypatch, seed):
    monkeypatch.setattr("pipeline.ownership.REVOKE_S", 0.001)
    monkeypatch.setattr("pipeline.worker.STREAM_STEPS", 16)
    broker, rng = new_broker(), np.random.default_rng(seed)
    log, traffic = Log(broker, every=5), Traffic(rng, 60, hot=2, ends=0.03)
    traffic.produce(broker, 2000)

    def start(name: str):
        settings = {
            "max_steps": 100,
            "slots": int(rng.choice([30, 4096])),
            "snapshot_interval_ms": float(rng.choice([0, 5, 10_000])),
        }
        worker, transport = made_watched(log, hash_model, name, Failing, **settings)
        transport.rng = np.random.default_rng(rng.integers(2**32))
        return worker, asyncio.create_task(worker.run())

    first, task = start("first")
    for turn in range(15):
        _, other = start(f"w{turn}")
        for _ in range(int(rng.integers(1, 150))):
            await asyncio.sleep(0)
        traffic.produce(broker, 50)
        if rng.random() < 0.3:
            await broker.rebalance(broker.groups["g"])
        # It is dead, and its session is over.
        await killed(other)
    await until(broker, task, lambda: counted(broker) >= traffic.records)
    first.stop()
    await asyncio.wait_for(task, 20)
    traffic.check(broker)
    assert all(marks[-1].replay_from == marks[-1].committed for marks in log.marks.values())


async def test_what_no_assignment_names_any_more_gives_its_slots_back(hash_model):
    broker = new_broker()
    for p in range(PARTITIONS):
        broker.produce("in", p, b"k%d" % p, value(1))
    first, _ = made_watched(Log(broker), hash_model, "a", slots=4)
    async with running(first) as task:
        await until(broker, task, lambda: counted(broker) == 4)
        second, _ = made_watched(Log(broker), hash_model, "b")
        async with running(second):
            await ready(second)
            assert first._slots.used == 2
            assert sorted(first._slots.partition[first._slots.partition >= 0]) == [0, 2]


async def test_a_new_group_commits_its_start_before_anything_comes(hash_model):
    broker = new_broker()
    broker.produce("in", 1, b"old", value(1))
    worker, _ = made_watched(Log(broker), hash_model, auto_offset_reset="latest")
    task = asyncio.create_task(worker.run())
    await until(broker, task, lambda: len(broker.groups["g"].offsets) == PARTITIONS)
    await killed(task)
    assert {p: c.offset for p, c in broker.groups["g"].offsets.items()} == {0: 0, 1: 1, 2: 0, 3: 0}
    broker.produce("in", 1, b"new", value(2))
    worker, _ = made_watched(Log(broker), hash_model, auto_offset_reset="latest")
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 1)
    assert outputs(broker) == {b"new": rolling_hash_reference(np.array([2])).tolist()}
    assert Mark.decode(broker.groups["g"].offsets[1].metadata) is not None


async def test_after_a_revocation_nothing_is_sent_until_the_next_assignment(hash_model):
    broker = new_broker()
    worker, _ = made_watched(Log(broker), hash_model)
    async with running(worker) as task:
        await begun(broker, task)
        await worker.on_revoked(range(PARTITIONS))
        assert not worker.ready
        broker.produce("in", 0, b"a", value(1))
        async with asyncio.timeout(10):
            while not worker._ownership.memory(0).pending:
                await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert counted(broker) == 0
        await broker.rebalance(broker.groups["g"])
        await until(broker, task, lambda: counted(broker) == 1)
        await ready(worker)
        assert takeovers(worker) == PARTITIONS


class Overlapping(Watched):
    """Gives records again that it gave before, as what was fetched before a rebalance moved the position may be."""

    async def fetch(self, timeout_s: float, **how):
        segments = []
        for segment in await super().fetch(timeout_s, **how):
            log = self._broker.topics["in"][segment.partition]
            first = max(0, int(segment.offsets[0]) - 3)
            segments.append(self._segment(segment.partition, first, log[first : segment.next_offset]))
            segments.append(self._segment(segment.partition, first, log[first : segment.next_offset - 1]))
        return segments


async def test_what_was_fetched_before_is_known(hash_model):
    broker = new_broker()
    log, traffic = Log(broker), Traffic(np.random.default_rng(3), 10)
    worker, _ = made_watched(log, hash_model, kind=Overlapping)
    async with running(worker) as task:
        for turn in range(10):
            traffic.produce(broker, 20)
            await until(broker, task, lambda n=turn: counted(broker) == 20 * n + 20)
    traffic.check(broker)
