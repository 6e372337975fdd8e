"""The whole road over the transport in memory: what goes in comes out once, in order, from the right state."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

from pipeline.beside import Beside
from pipeline.config import Config
from pipeline.metrics import Metrics
from pipeline.model_file import load_graph, read_contract
from pipeline.transport.memory import FETCH_RECORDS, MemoryBroker, MemoryTransport
from pipeline.worker import Worker
from tests.models import rolling_hash, rolling_hash_reference

PARTITIONS = 4


@pytest.fixture(scope="module")
def hash_model(tmp_path_factory) -> Path:
    return rolling_hash(tmp_path_factory.mktemp("hash") / "1")


def made(broker: MemoryBroker, file: Path, worker_id: str = "w", **settings) -> tuple[Worker, Metrics]:
    config = Config(
        model=str(file),
        input="in",
        output="out",
        group="g",
        worker_id=worker_id,
        bootstrap_servers="memory",
        **settings,
    )
    model = load_graph(file)
    contract = read_contract(model, str(file))
    metrics = Metrics(contract.name, contract.model_version)
    return Worker(config, MemoryTransport(broker, config), model, contract, metrics, Beside(file.parent)), metrics


@contextlib.asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """Drained at the end; a failure of the worker is the test's."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        await asyncio.wait_for(task, 20)


async def until(broker: MemoryBroker, task: asyncio.Task[None], done) -> None:
    """Waits for something to become visible."""
    event = broker.listen()
    async with asyncio.timeout(30):
        while not done():
            event.clear()
            waiting = asyncio.create_task(event.wait())
            await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if task.done():
                task.result()
                assert done(), "the worker ended before"
    broker.unlisten(event)


def new_broker() -> MemoryBroker:
    broker = MemoryBroker()
    for topic in ("in", "out"):
        broker.create(topic, PARTITIONS)
    return broker


def partition_of(key: bytes) -> int:
    return sum(key) % PARTITIONS


def counted(broker: MemoryBroker, topic: str = "out") -> int:
    return len(broker.records(topic))


def produce_steps(broker: MemoryBroker, rng, streams: int, records: int) -> dict[bytes, list[int]]:
    """Random records of one to three steps; returns each stream's steps."""
    sent: dict[bytes, list[int]] = defaultdict(list)
    for _ in range(records):
        key = b"stream-%d" % rng.integers(streams)
        steps = rng.integers(0, 2**40, rng.integers(1, 4))
        broker.produce("in", partition_of(key), key, steps.astype("<i8").tobytes())
        sent[key] += steps.tolist()
    return sent


def outputs(broker: MemoryBroker) -> dict[bytes, list[int]]:
    got: dict[bytes, list[int]] = defaultdict(list)
    for _, _, entry in broker.records("out"):
        got[entry.key] += np.frombuffer(entry.value, "<i8").tolist()
    return got


def check(broker: MemoryBroker, sent: dict[bytes, list[int]]) -> None:
    assert all(p == partition_of(e.key) for p, _, e in broker.records("out")), "an output goes to its input's partition"
    got = outputs(broker)
    assert got.keys() == sent.keys()
    for key, steps in sent.items():
        assert got[key] == rolling_hash_reference(np.array(steps)).tolist(), key


@pytest.mark.parametrize("threads", [1, 2])
async def test_every_stream_comes_out_once_in_order_from_its_own_state(hash_model, threads):
    broker, rng = new_broker(), np.random.default_rng(threads)
    sent = produce_steps(broker, rng, 100, 2000)
    worker, metrics = made(broker, hash_model, engine_threads=threads)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 2000)
        more = produce_steps(broker, rng, 150, 500)
        await until(broker, task, lambda: counted(broker) == 2500)
    check(broker, {k: sent.get(k, []) + more.get(k, []) for k in sent | more})
    text = generate_latest(metrics.registry).decode()
    assert 'eddy_records_total{model="rolling-hash",version="1"} 2500.0' in text
    assert 'eddy_output_records_total{model="rolling-hash",version="1"} 2500.0' in text


async def test_outputs_carry_source_model_and_timestamp(hash_model):
    broker = new_broker()
    broker.produce("in", 2, b"b", (1).to_bytes(8, "little"), [("traceparent", b"00-ab"), ("x", b"y")], timestamp=123)
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 1)
    [(partition, _, entry)] = broker.records("out")
    assert (partition, entry.key, entry.timestamp) == (2, b"b", 123)
    assert dict(entry.headers) == {
        "eddy-model": b"rolling-hash/1",
        "eddy-source": (2).to_bytes(4, "big") + (0).to_bytes(8, "big"),
        "traceparent": b"00-ab",
    }


async def test_a_restarted_worker_goes_on_from_its_snapshots_and_applies_nothing_twice(hash_model):
    broker, rng = new_broker(), np.random.default_rng(5)
    sent: dict[bytes, list[int]] = defaultdict(list)
    for life in range(5):
        for key, steps in produce_steps(broker, rng, 40, 300).items():
            sent[key] += steps
        worker, metrics = made(broker, hash_model)
        async with running(worker) as task:
            await until(broker, task, lambda life=life: counted(broker) == 300 * (life + 1))
    check(broker, sent)
    text = generate_latest(metrics.registry).decode()
    assert 'eddy_replayed_records_total{model="rolling-hash",version="1"} 0.0' in text
    assert f'eddy_restored_snapshots_total{{model="rolling-hash",version="1"}} {len(sent)}.0' in text
    assert 'eddy_records_total{model="rolling-hash",version="1"} 300.0' in text


async def test_workers_that_die_at_any_moment_lose_and_repeat_nothing(hash_model):
    broker, rng = new_broker(), np.random.default_rng(6)
    sent = produce_steps(broker, rng, 60, 3000)
    for life in range(15):
        worker, _ = made(broker, hash_model, worker_id=f"w{life}", max_steps=200)
        task = asyncio.create_task(worker.run())
        for _ in range(int(rng.integers(1, 120))):
            await asyncio.sleep(0)
        task.cancel()  # no drain, no leave: as dead as it gets inside one process
        await asyncio.wait([task])
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) >= 3000)
    check(broker, sent)


async def test_a_second_worker_joins_and_leaves(hash_model):
    broker, rng = new_broker(), np.random.default_rng(8)
    sent = produce_steps(broker, rng, 60, 1000)
    first, _ = made(broker, hash_model, worker_id="a", max_steps=100)
    second, _ = made(broker, hash_model, worker_id="b", max_steps=100)
    async with running(first) as task:
        await until(broker, task, lambda: counted(broker) > 100)
        async with running(second) as other:
            for key, steps in produce_steps(broker, rng, 60, 1000).items():
                sent[key] += steps
            await until(broker, other, lambda: counted(broker) > 1200)
        for key, steps in produce_steps(broker, rng, 60, 500).items():
            sent[key] += steps
        await until(broker, task, lambda: counted(broker) >= 2500)
    check(broker, sent)


async def test_after_a_null_value_the_key_begins_anew_also_after_a_restart(hash_model):
    broker = new_broker()
    value = (77).to_bytes(8, "little")
    once = rolling_hash_reference(np.array([77])).tolist()
    twice = rolling_hash_reference(np.array([77, 77])).tolist()
    for v in (value, value, None, None, value):
        broker.produce("in", 0, b"k", v)
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 3)
        broker.produce("in", 0, b"k", None)
        await until(broker, task, lambda: broker.groups["g"].offsets[0].offset == 6)
    broker.produce("in", 0, b"k", value)
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 4)
    assert outputs(broker) == {b"k": [*twice, *once, *once]}


async def test_what_cannot_be_served_is_a_dead_letter_and_its_stream_goes_on(hash_model):
    broker = new_broker()
    good = (5).to_bytes(8, "little")
    cases = [(b"k", good), (b"k", b"short"), (None, good), (b"k", b"x" * 800), (b"new", b"bad"), (b"k", good)]
    for key, value in cases:
        broker.produce("in", 1, key, value, [("h", b"1")], timestamp=9)
    worker, metrics = made(broker, hash_model, max_record_bytes=500)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 2 and counted(broker, "in.dlq") == 4)
    assert outputs(broker) == {b"k": rolling_hash_reference(np.array([5, 5])).tolist()}
    dead = broker.records("in.dlq")
    assert [(p, e.key, e.value) for p, _, e in dead] == [(1, *c) for c in (cases[1], cases[2], cases[3], cases[4])]
    headers = [dict(e.headers) for _, _, e in dead]
    assert [h["eddy-error"] for h in headers] == [b"length", b"no-key", b"too-large", b"length"]
    assert [int.from_bytes(h["eddy-source"][4:], "big") for h in headers] == [1, 2, 3, 4]
    assert all(h["h"] == b"1" and h["eddy-message"] for h in headers)
    assert 'reason="too-large"' in generate_latest(metrics.registry).decode()


async def test_a_stream_that_has_only_a_dead_letter_begins_from_the_initial_state(hash_model):
    """Its slot had a tenant before."""
    broker = new_broker()
    good = (5).to_bytes(8, "little")
    for key, value in ((b"a", good), (b"a", None)):
        broker.produce("in", 0, key, value)
    worker, _ = made(broker, hash_model, slots=1)
    async with running(worker) as task:
        await until(
            broker, task, lambda: broker.groups["g"].offsets.get(0) and broker.groups["g"].offsets[0].offset == 2
        )
        broker.produce("in", 0, b"d", b"bad")
        await until(broker, task, lambda: counted(broker, "in.dlq") == 1)
    broker.produce("in", 0, b"d", good)
    worker, _ = made(broker, hash_model, slots=1)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 2)
    assert outputs(broker)[b"d"] == rolling_hash_reference(np.array([5])).tolist()


async def test_new_streams_wait_for_slots_and_say_which_setting_to_raise(hash_model, caplog):
    broker = new_broker()
    value = (5).to_bytes(8, "little")
    for key in (b"a", b"b", b"c", b"a", b"b"):
        broker.produce("in", 0, key, value)
    broker.produce("in", 1, b"other", value)
    worker, _ = made(broker, hash_model, slots=3)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 6 or "raise slots" in caplog.text)
        await until(broker, task, lambda: counted(broker) >= 3)
        before = counted(broker)
        broker.produce("in", 1, b"other", None)
        if before < 6:
            await until(broker, task, lambda: counted(broker) == 6)
    assert "raise slots (--slots, EDDY_SLOTS)" in caplog.text
    got = outputs(broker)
    assert got[b"a"] == got[b"b"] == rolling_hash_reference(np.array([5, 5])).tolist()
    assert got[b"c"] == got[b"other"] == rolling_hash_reference(np.array([5])).tolist()


async def test_the_queue_is_bounded_and_never_drops(hash_model):
    broker, rng = new_broker(), np.random.default_rng(9)
    sent = produce_steps(broker, rng, 20, 6000)
    bound = 4 * 65_536
    worker, _ = made(broker, hash_model, queue_bytes=bound, max_steps=50)
    backlogs, waiting = [0], [0]

    def done() -> bool:
        memories = worker._ownership.memories()
        backlogs.append(max((m.backlog_bytes for m in memories), default=0))
        waiting.append(max((m.uncommitted_bytes for m in memories), default=0))
        return counted(broker) == 6000

    async with running(worker) as task:
        await until(broker, task, done)
    check(broker, sent)
    fetch, poll = FETCH_RECORDS * 200, 50 * 400
    assert max(backlogs) <= 65_536 + fetch, "at most one fetch more"
    assert max(waiting) <= 65_536 + poll, "at most one poll more"


async def test_stop_drains_what_is_in_flight(hash_model):
    broker, rng = new_broker(), np.random.default_rng(10)
    sent = produce_steps(broker, rng, 20, 4000)
    worker, _ = made(broker, hash_model, max_steps=300)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) > 0)
    somewhere = counted(broker)
    assert 0 < somewhere <= 4000
    assert not broker.groups["g"].members, "it left the group"
    offsets = broker.groups["g"].offsets
    assert sum(c.offset for c in offsets.values()) == somewhere, "every output belongs to a committed record"
    worker, _ = made(broker, hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) >= 4000)
    check(broker, sent)


async def test_max_delay_lets_a_small_poll_wait_for_company(hash_model):
    broker = new_broker()
    value = (5).to_bytes(8, "little")
    worker, metrics = made(broker, hash_model, max_delay_ms=500.0)
    async with running(worker) as task:
        await until(broker, task, lambda: len(broker.groups["g"].offsets) == PARTITIONS)  # the starts are committed
        broker.produce("in", 0, b"a", value)
        for _ in range(10):
            await asyncio.sleep(0)
        assert sum(len(m.backlog) for m in worker._ownership.memories()) == 1, "it was fetched and waits"
        broker.produce("in", 1, b"b", value)
        await until(broker, task, lambda: counted(broker) == 2)
    assert 'eddy_polls_total{model="rolling-hash",version="1"} 1.0' in generate_latest(metrics.registry).decode()
