"""Who does not get on is named; a worker that gets nothing done ends."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from prometheus_client import generate_latest

from pipeline.columns import Membership, Segment
from pipeline.errors import Stalled
from pipeline.partition import Memory
from pipeline.streams.slots import Index, Slots
from pipeline.streams.tier import Tier
from pipeline.watch import Held, Watch
from tests.unit.test_commit import ready
from tests.unit.test_replay import value
from tests.unit.test_worker import counted, hash_model, new_broker, running, until
from tests.unit.watched import Log, Watched, killed, made_watched

__all__ = ["hash_model"]


def partition(number: int = 0, committed: int = 5) -> Memory:
    slots = Slots(4, 0, 0)
    index = Index(slots, number)
    return Memory(number, Membership("g", 1, "m"), b"t" * 16, committed, committed, index, slots, Tier(1, 1024, None))


def records(first: int, *keys: bytes) -> Segment:
    n = len(keys)
    return Segment(0, [*keys], [b"x"] * n, np.arange(first, first + n), np.zeros(n, np.int64), first + n, None, n)


def busy(memory: Memory) -> Memory:
    segment = records(memory.committed, b"slow", b"other", b"slow")
    memory.fetched = segment.next_offset
    memory.aside.add(segment, {b"slow": [0, 2]})
    return memory


def test_a_partition_whose_c_stands_still_is_named_with_its_stream():
    watch, memory = Watch(10.0), busy(partition())
    assert watch.held([memory], 0.0) == []
    assert watch.held([memory], 9.9) == []
    [held] = watch.held([memory], 10.5)
    assert held == Held(0, 5, 10.5, b"slow")
    assert str(held) == "partition 0: C stands at 5 for 10 s, held by stream b'slow'"
    memory.committed = 6
    assert watch.held([memory], 11.0) == [], "it has come on"
    [held] = watch.held([memory], 21.0)
    assert "held by a record that is in flight" in str(held)


def test_a_partition_without_work_holds_nothing():
    watch, idle = Watch(10.0), partition()
    assert watch.held([idle], 0.0) == watch.held([idle], 100.0) == []
    assert watch.held([busy(idle)], 101.0) == [], "it has work from now on"
    assert len(watch.held([idle], 111.0)) == 1


def test_new_memory_begins_anew():
    watch = Watch(10.0)
    watch.held([busy(partition())], 0.0)
    assert watch.held([busy(partition())], 20.0) == []


def test_a_worker_that_gets_nothing_committed_though_there_is_work_is_stalled():
    watch, memory, idle = Watch(10.0), busy(partition()), partition(1)
    assert not watch.stalled([memory, idle], 0, 0.0)
    assert not watch.stalled([memory, idle], 0, 9.9)
    assert watch.stalled([memory, idle], 0, 10.0)
    memory.base = b"another part was ours"
    assert not watch.stalled([memory, idle], 0, 11.0)
    assert watch.stalled([memory, idle], 0, 21.0)


def test_a_worker_without_work_is_not_stalled_and_one_that_cannot_take_over_is():
    watch, idle = Watch(10.0), partition()
    assert not any(watch.stalled([idle], 0, now_s) for now_s in (0.0, 10.0, 1000.0))
    assert not watch.stalled([idle], 1, 1009.0)
    assert watch.stalled([idle], 1, 1010.0)
    assert not watch.stalled([idle, partition(1)], 0, 1011.0), "that was taken over"
    assert not watch.stalled([], 0, 5000.0)


class Stuck(Watched):
    """From some time on no transaction is ever answered."""

    stuck = False

    async def commit(self, membership, parts):
        if self.stuck:
            await asyncio.Event().wait()
        return await super().commit(membership, parts)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("pipeline.watching.WATCH_S", 0.02)


async def test_a_stalled_worker_is_not_live_and_ends_by_name(hash_model):
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Stuck, max_stall_s=1.0)
    task = asyncio.create_task(worker.run())
    await ready(worker)
    broker.produce("in", 0, b"a", value(1))
    await until(broker, task, lambda: counted(broker) == 1)
    transport.stuck = True
    broker.produce("in", 0, b"a", value(2))
    with pytest.raises(Stalled, match=r"nothing was committed for 1 s \(max_stall_s\)"):
        await asyncio.wait_for(task, 10)
    assert not worker.live
    # The next one does what is left.
    worker, _ = made_watched(Log(broker), hash_model, "w2")
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 2)
        assert worker.live


async def test_a_held_partition_is_counted_and_said_once(hash_model, caplog, monkeypatch):
    broker = new_broker()
    worker, transport = made_watched(Log(broker), hash_model, kind=Stuck, max_stall_s=1.0)
    looks: list[float] = []
    monkeypatch.setattr("pipeline.watch.Watch.stalled", lambda *args: looks.append(args[-1]))
    task = asyncio.create_task(worker.run())
    await ready(worker)
    transport.stuck = True
    broker.produce("in", 2, b"a", value(1))
    async with asyncio.timeout(10):
        while b'eddy_held_partitions{model="rolling-hash",version="1"} 1.0' not in shown(worker):
            await asyncio.sleep(0.02)
        enough = len(looks) + 3  # it goes on looking, and says no more
        while len(looks) < enough:
            await asyncio.sleep(0.02)
    await killed(task)
    assert caplog.text.count("partition 2: C stands at 0 for 1 s") == 1


def shown(worker) -> bytes:
    return generate_latest(worker._metrics.registry)
