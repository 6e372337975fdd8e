"""Whatever drops a partition's memory, the others go on and its own bounds hold again afterwards."""

from __future__ import annotations

import asyncio

import numpy as np

from pipeline.columns import as_list
from pipeline.config import Config
from pipeline.errors import OutcomeUnknown, TakeoverError
from pipeline.inflow import MUCH
from pipeline.metrics import Metrics
from pipeline.model_file import load_graph, read_contract
from pipeline.pump import STREAM_STEPS
from pipeline.transport.memory import MemoryBroker, MemoryTransport
from pipeline.worker import Worker
from tests.models import rolling_hash_reference
from tests.unit.test_worker import (
    counted,
    hash_model,
    made,
    new_broker,
    outputs,
    running,
    until,
)
from tests.unit.test_worker_failures import POISON, brittle, value

__all__ = ["brittle", "hash_model"]


def made_over(transport_of, broker, file, **settings):
    config = Config(model=str(file), input="in", output="out", group="g", worker_id="w", **settings)
    model = load_graph(file)
    contract = read_contract(model, str(file))
    transport = transport_of(broker, config)
    return Worker(config, transport, model, contract, Metrics(contract.name, contract.model_version)), transport


class Failing(MemoryTransport):
    """The first commit with outputs fails before anything of it is visible."""

    failed = False

    async def commit(self, membership, parts):
        if not self.failed and any(len(p.outputs) for p in parts):
            self.failed = True
            self._settled = False
            raise OutcomeUnknown("the request was lost")
        return await super().commit(membership, parts)


async def test_a_full_backlog_holds_its_partition_back_also_after_a_takeover(hash_model, monkeypatch):
    monkeypatch.setattr("pipeline.transport.memory.FETCH_RECORDS", 1000)
    broker, rng = new_broker(), np.random.default_rng(3)
    for _ in range(20_000):
        broker.produce("in", 0, b"k%d" % rng.integers(50), value(int(rng.integers(1000))))
    worker, transport = made_over(Failing, broker, hash_model, queue_bytes=65_536, max_steps=20)
    largest = 0

    def done() -> bool:
        nonlocal largest
        if transport.failed:
            largest = max(largest, *(m.backlog_bytes for m in worker._ownership.memories()), 0)
        return counted(broker) == 20_000

    async with running(worker) as task:
        await until(broker, task, done)
    assert transport.failed
    assert 0 < largest <= 65_536 + 1000 * 168, "at most one fetch more"


class Asked(MemoryTransport):
    """Notes, of every fetch, whether it may wait and how much there is to read."""

    def __init__(self, broker, config):
        super().__init__(broker, config)
        self.asked: list[tuple[bool, int]] = []

    async def fetch(self, timeout_s, *, unhurried=False):
        self.asked.append((unhurried, self.lag([0])[0]))
        return await super().fetch(timeout_s, unhurried=unhurried)


async def test_no_fetch_waits_while_there_is_much_to_read(hash_model, monkeypatch):
    """A hot stream's records are set aside, which is little work; its neighbours are behind them."""
    monkeypatch.setattr("pipeline.transport.memory.FETCH_RECORDS", 1000)
    broker = new_broker()
    broker.produce("in", 0, b"first", value(0))
    worker, transport = made_over(Asked, broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 1 and transport.asked[-1][0])
        for i in range(10_000):
            broker.produce("in", 0, b"hot", value(i))
        await until(broker, task, lambda: counted(broker) == 10_001 and transport.asked[-1][0])
    behind = [unhurried for unhurried, lag in transport.asked if MUCH < lag < 10_000]
    assert len(behind) > 5
    assert not any(behind)


async def test_of_a_slow_model_a_stream_has_less_in_one_poll(hash_model, monkeypatch):
    broker = new_broker()
    for i in range(1000):
        broker.produce("in", 0, b"hot", value(i))
    worker, _ = made_over(MemoryTransport, broker, hash_model)
    engine, steps = worker._engine, []
    monkeypatch.setattr(engine.costs, "stream_steps", lambda most: most // 8)
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda run, done: (steps.append(run.steps), submit(run, done)))
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 1000)
    assert max(steps) == STREAM_STEPS // 8


async def soon(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


class Gated(MemoryTransport):
    """Commits with a state in them wait for the gate."""

    def __init__(self, broker: MemoryBroker, config: Config) -> None:
        super().__init__(broker, config)
        self.gate = asyncio.Event()

    async def commit(self, membership, parts):
        if any(value is not None for p in parts for value in as_list(p.snapshots.values)):
            await self.gate.wait()
        return await super().commit(membership, parts)


async def test_a_partition_that_stops_gives_up_its_slots_and_its_place_in_the_host_tier(hash_model, caplog):
    broker = new_broker()
    broker.record_bytes_max = 1000
    broker.produce("in", 0, b"away", value(1))
    worker, transport = made_over(Gated, broker, hash_model, slots=1)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 1)
        broker.produce("in", 0, b"big", b"".join(value(i) for i in range(200)))
        await soon(lambda: worker._residency.tier.count(0) == 1)
        transport.gate.set()
        await soon(lambda: "partition 0 stops" in caplog.text)
        assert worker._slots.used == 0
        assert worker._residency.tier.count(0) == 0
        broker.produce("in", 1, b"small", value(1))
        await until(broker, task, lambda: counted(broker) == 2)
    assert set(outputs(broker)) == {b"away", b"small"}


class Slow(MemoryTransport):
    """A commit takes a while, as a broker's does."""

    async def commit(self, membership, parts):
        for _ in range(50):
            await asyncio.sleep(0)
        return await super().commit(membership, parts)


async def test_any_number_of_records_that_the_model_cannot_run_are_dead_letters_one_after_the_other(brittle):
    broker = new_broker()
    for _ in range(20):
        broker.produce("in", 0, b"bad", value(POISON))
    broker.produce("in", 0, b"good", value(1))
    for i in range(2000):
        broker.produce("in", 1, b"k%d" % (i % 10), value(1 + i % 9))
    worker, _ = made_over(Slow, broker, brittle, max_steps=8)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker, "in.dlq") == 20 and counted(broker) == 2001)
        assert worker.ready


async def test_records_that_run_alone_do_not_keep_other_partitions_waiting(brittle):
    broker = new_broker()
    for _ in range(200):
        broker.produce("in", 0, b"a", value(1))
    broker.produce("in", 0, b"a", value(POISON))
    worker, _ = made(broker, brittle)
    async with running(worker) as task:
        await soon(lambda: worker._pump._suspects)
        broker.produce("in", 1, b"b", value(1))
        await until(broker, task, lambda: b"b" in outputs(broker))
        assert len(outputs(broker)[b"a"]) < 100
        await until(broker, task, lambda: counted(broker) == 201 and counted(broker, "in.dlq") == 1)


async def test_an_engine_error_without_a_message_is_an_error_of_its_records_only(hash_model, monkeypatch):
    broker = new_broker()
    worker, _ = made(broker, hash_model)

    def no_memory(run, call) -> None:
        if run.steps == 3:
            raise MemoryError

    monkeypatch.setattr(worker._engine, "_collect", no_memory)
    broker.produce("in", 0, b"a", value(1) + value(2) + value(3))
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker, "in.dlq") == 1)
    [(_, _, dead)] = broker.records("in.dlq")
    assert b"MemoryError" in dict(dead.headers)["eddy-message"]


class LateRestore(MemoryTransport):
    """The changelog of partition 0 is read once the gate is open."""

    def __init__(self, broker: MemoryBroker, config: Config) -> None:
        super().__init__(broker, config)
        self.gate = asyncio.Event()

    async def changelog(self, partition, start=0):
        if partition == 0:
            await self.gate.wait()
        async for stretch in super().changelog(partition, start):
            yield stretch


async def test_a_takeover_of_more_streams_than_slots_keeps_the_rest_in_the_host_tier(hash_model):
    """One partition's new stream has a slot that another's streams had before a restart."""
    broker = new_broker()
    for i in range(2):
        broker.produce("in", 0, b"old%d" % i, value(1))
    worker, _ = made(broker, hash_model, slots=2)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 2)
    broker.produce("in", 1, b"new", value(1))
    worker, transport = made_over(LateRestore, broker, hash_model, slots=2)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 3)
        transport.gate.set()
        await soon(lambda: worker.ready)
        for i in range(2):
            broker.produce("in", 0, b"old%d" % i, value(2))
        broker.produce("in", 1, b"new", value(2))
        await until(broker, task, lambda: counted(broker) == 6)
    want = rolling_hash_reference(np.array([1, 2])).tolist()
    assert outputs(broker) == {b"old0": want, b"old1": want, b"new": want}


async def test_a_partition_that_no_worker_can_have_is_named_in_the_log(hash_model, caplog):
    broker = new_broker()
    worker, _ = made_over(MemoryTransport, broker, hash_model)
    async with running(worker):
        await soon(lambda: worker.ready)
        worker.on_trouble(9, TakeoverError(9, "the input has grown"))
        assert "partition 9: the input has grown" in caplog.text
        assert worker.ready


async def test_a_hot_streams_neighbours_are_read_before_its_backlog_is_worked_off(hash_model, monkeypatch):
    monkeypatch.setattr("pipeline.transport.memory.FETCH_RECORDS", 250)
    broker = new_broker()
    for _ in range(20_000):
        broker.produce("in", 0, b"hot", value(1))
    for i in range(3):
        broker.produce("in", 0, b"neighbour-%d" % i, value(2))
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 20_003)
    keys = [entry.key for _, _, entry in broker.records("out")]
    before = [keys[: keys.index(b"neighbour-%d" % i)].count(b"hot") for i in range(3)]
    # A poll takes 256 of a stream, and one may go with each of the last fetches, of which there are 80.
    assert max(before) <= 12 * 256


class Optimistic(MemoryTransport):
    """Says that there is much more to read than ever comes: all else is in a transaction that stays open."""

    def lag(self, partitions):
        return dict.fromkeys(partitions, 1_000_000)


async def test_what_is_set_aside_does_not_wait_for_what_cannot_be_read(hash_model):
    broker = new_broker()
    for _ in range(5_000):
        broker.produce("in", 0, b"hot", value(1))
    worker, _ = made_over(Optimistic, broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 5_000)
