"""Images on the road, over the transport in memory: decoded on threads, exactly once, and in nobody's way."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

import pipeline.codecs.video
from pipeline.ahead import Ahead
from pipeline.codecs import AheadCodec, make_codec
from pipeline.columns import Membership, Segment
from pipeline.contract import CodecSpec, StepInput
from pipeline.metrics import Metrics
from pipeline.partition import Memory
from pipeline.streams.slots import Index, Slots
from pipeline.streams.tier import Tier
from pipeline.transport.memory import MemoryBroker
from tests.contracts import video_contract
from tests.models import stepper, stepper_reference
from tests.pictures import picture
from tests.unit.test_tokens_ahead import counting
from tests.unit.test_worker import PARTITIONS, counted, made, new_broker, outputs, partition_of, running, until
from tests.unit.test_worker_liveness import soon

SIDE = 4
SLOW = 64
"""Images of this size are those that a test holds up."""


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    step = StepInput("x", "uint8", (SIDE, SIDE))
    codec = CodecSpec("video", settings={"max_pixels": 10_000})
    return stepper(tmp_path_factory.mktemp("watcher"), step, codec)


def frame(seed: int, side: int = SIDE) -> tuple[bytes, int]:
    """A picture of one level, and the level."""
    level = seed % 256
    return picture(np.full((side, side, 1), level, np.uint8), "PNG"), level


def chain(levels: list[int]) -> list[int]:
    return stepper_reference(np.array([np.full((SIDE, SIDE), level) for level in levels]))


class Gate:
    """Holds up, on its thread, the decoding of every image of SLOW pixels' width."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.held = 0
        self.threads: set[int] = set()
        real = pipeline.codecs.video.decode
        width = SLOW.to_bytes(4, "big")

        def decode(value, target):  # type: ignore[no-untyped-def]
            self.threads.add(threading.get_ident())
            if value[16:20] == width:
                self.held += 1
                assert self.open.wait(20)
            return real(value, target)

        monkeypatch.setattr("pipeline.codecs.video.decode", decode)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def keys_of(partition: int, n: int) -> list[bytes]:
    return [k for k in (b"%d" % i for i in range(1000)) if partition_of(k) == partition][:n]


def produce_frames(
    broker: MemoryBroker, rng: np.random.Generator, streams: int, records: int
) -> dict[bytes, list[int]]:
    """Returns each stream's levels. One in ten is broken, one in thirty ends its stream."""
    sent: dict[bytes, list[int]] = defaultdict(list)
    for _ in range(records):
        key = b"stream-%d" % rng.integers(streams)
        value, x = frame(int(rng.integers(256)), int(rng.integers(1, 30)))
        if rng.random() < 0.1:
            broker.produce("in", partition_of(key), key, value[:40])
            continue
        broker.produce("in", partition_of(key), key, value)
        sent[key].append(x)
    return sent


def check(broker: MemoryBroker, sent: dict[bytes, list[int]]) -> None:
    assert outputs(broker) == {key: chain(levels) for key, levels in sent.items()}


def total(sent: dict[bytes, list[int]]) -> int:
    return sum(map(len, sent.values()))


@pytest.mark.parametrize("threads", [1, 3])
async def test_every_frame_comes_out_once_and_in_order_and_what_is_none_is_a_dead_letter(watcher, threads, gate):
    broker, rng = new_broker(), np.random.default_rng(threads)
    sent = produce_frames(broker, rng, 40, 600)
    worker, metrics = made(broker, watcher, decode_threads=threads)
    async with running(worker) as task:
        await until(
            broker, task, lambda: counted(broker) == total(sent) and counted(broker, "in.dlq") == 600 - total(sent)
        )
    check(broker, sent)
    assert {dict(e.headers)["eddy-error"] for _, _, e in broker.records("in.dlq")} == {b"image"}
    assert threading.get_ident() not in gate.threads
    page = generate_latest(metrics.registry).decode()
    assert 'eddy_decoded_records_total{model="stepper",version="1"} 600.0' in page


async def test_null_values_and_records_that_are_refused_keep_their_places(watcher):
    broker = new_broker()
    good, x = frame(3)
    cases = [(b"k", good), (b"k", None), (None, good), (b"k", bytes(5000)), (b"k", b""), (b"k", good), (b"k", good)]
    for key, value in cases:
        broker.produce("in", 0, key, value)
    worker, _ = made(broker, watcher, max_record_bytes=4000)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 3 and counted(broker, "in.dlq") == 3)
    assert outputs(broker) == {b"k": [*chain([x]), *chain([x, x])]}
    dead = [e for _, _, e in broker.records("in.dlq")]
    assert [dict(e.headers)["eddy-error"] for e in dead] == [b"no-key", b"too-large", b"empty"]
    assert [e.value for e in dead] == [good, bytes(5000), b""]


async def test_huge_images_hold_up_neither_the_loop_nor_other_partitions(watcher, gate):
    broker = new_broker()
    slow, quick = keys_of(0, 1)[0], keys_of(1, 2)
    huge, x_huge = frame(9, SLOW)
    for _ in range(6):
        broker.produce("in", 0, slow, huge)
    worker, _ = made(broker, watcher)
    async with running(worker) as task:
        await soon(lambda: gate.held == 2)  # all threads that one partition may have
        want: dict[bytes, list[int]] = defaultdict(list)
        for seed in range(50):
            value, x = frame(seed)
            for key in quick:
                broker.produce("in", 1, key, value)
                want[key].append(x)
        await until(broker, task, lambda: counted(broker) == 100)
        check(broker, want)
        await until(broker, task, lambda: broker.groups["g"].offsets[1].offset == 100)  # and are committed
        assert broker.groups["g"].offsets[0].offset == 0
        assert gate.held == 2
        gate.open.set()
        await until(broker, task, lambda: counted(broker) == 106)
    check(broker, want | {slow: [x_huge] * 6})


async def test_frames_of_one_partition_are_decoded_side_by_side(watcher, monkeypatch):
    """Each of two waits for the other."""
    both = threading.Barrier(2)
    real = pipeline.codecs.video.decode

    def decode(value, target):  # type: ignore[no-untyped-def]
        both.wait(20)
        return real(value, target)

    monkeypatch.setattr("pipeline.codecs.video.decode", decode)
    broker = new_broker()
    value, x = frame(5)
    for _ in range(10):
        broker.produce("in", 0, b"k", value)
    worker, _ = made(broker, watcher)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 10)
    check(broker, {b"k": [x] * 10})


async def test_a_partition_that_moves_while_its_frames_are_decoded_loses_and_repeats_nothing(watcher, gate):
    broker = new_broker()
    want: dict[bytes, list[int]] = defaultdict(list)
    for seed in range(40):
        for p in range(PARTITIONS):
            value, x = frame(seed, SLOW if seed == 20 else SIDE)
            key = keys_of(p, 3)[seed % 3]
            broker.produce("in", p, key, value)
            want[key].append(x)
    first, _ = made(broker, watcher, worker_id="a")
    second, _ = made(broker, watcher, worker_id="b")
    async with running(first) as task:
        await soon(lambda: gate.held >= 2)
        async with running(second) as other:
            await soon(lambda: first.ready and second.ready and len(broker.groups["g"].members) == 2)
            gate.open.set()
            await until(broker, other, lambda: counted(broker) >= 160)
        await until(broker, task, lambda: counted(broker) >= 160)
    check(broker, want)


async def test_workers_that_die_while_frames_are_decoded_lose_and_repeat_nothing(watcher):
    broker, rng = new_broker(), np.random.default_rng(6)
    sent = produce_frames(broker, rng, 30, 1500)
    for life in range(12):
        worker, _ = made(broker, watcher, worker_id=f"w{life}", max_steps=100)
        task = asyncio.create_task(worker.run())
        await soon(lambda worker=worker: worker.ready)
        for _ in range(int(rng.integers(1, 150))):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    worker, _ = made(broker, watcher)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) >= total(sent))
    check(broker, sent)


async def test_a_worker_ends_as_soon_as_the_image_in_hand_is_decoded(watcher, gate):
    broker = new_broker()
    huge, x = frame(9, SLOW)
    for _ in range(20):
        broker.produce("in", 0, b"k", huge)
    worker, _ = made(broker, watcher)
    task = asyncio.create_task(worker.run())
    await soon(lambda: gate.held == 2)
    worker.stop()
    for _ in range(50):
        await asyncio.sleep(0)
    gate.open.set()
    await asyncio.wait_for(task, 20)
    assert gate.held == 2
    worker, _ = made(broker, watcher)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 20)
    check(broker, {b"k": [x] * 20})


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, bytes], bool]) -> None:
    """Memory is short at some calls, which are counted from 1."""
    real, calls = pipeline.codecs.video.decode, [0]

    def decode(value, target):  # type: ignore[no-untyped-def]
        calls[0] += 1
        if fails(calls[0], value):
            raise MemoryError
        return real(value, target)

    monkeypatch.setattr("pipeline.codecs.video.decode", decode)


async def test_memory_that_is_short_for_a_moment_costs_no_record(watcher, monkeypatch, caplog):
    broker, rng = new_broker(), np.random.default_rng(8)
    sent = produce_frames(broker, rng, 10, 200)
    failing(monkeypatch, lambda call, value: call in (7, 8, 120))
    worker, _ = made(broker, watcher)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == total(sent))
    check(broker, sent)
    assert "decoding failed (MemoryError); its records are tried again alone" in caplog.text


async def test_a_record_that_takes_all_memory_also_alone_is_a_dead_letter_and_all_others_are_exact(
    watcher, monkeypatch
):
    broker, rng = new_broker(), np.random.default_rng(9)
    greedy, _ = frame(200, SLOW)
    sent = produce_frames(broker, rng, 10, 100)
    for p in (0, 1, 0):
        broker.produce("in", p, keys_of(p, 1)[0], greedy)
    more = produce_frames(broker, rng, 10, 100)
    failing(monkeypatch, lambda call, value: value == greedy)
    worker, _ = made(broker, watcher)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) + counted(broker, "in.dlq") == 203)
        assert worker.ready
    check(broker, {key: sent.get(key, []) + more.get(key, []) for key in sent | more})
    dead = [e for _, _, e in broker.records("in.dlq") if dict(e.headers)["eddy-error"] == b"decode"]
    assert [e.value for e in dead] == [greedy] * 3
    assert dict(dead[0].headers)["eddy-message"] == b"decoding failed on this record alone: MemoryError"


async def test_a_partition_that_moves_while_records_are_to_be_tried_again_is_forgotten(watcher, monkeypatch, gate):
    """What failed waits for a thread that is held up; the partition is lost and comes back meanwhile."""
    broker = new_broker()
    slow, quick = keys_of(0, 1)[0], keys_of(1, 1)[0]
    huge, x_huge = frame(9, SLOW)
    value, x = frame(3)
    failing(monkeypatch, lambda call, record: record == value and call == 2)
    broker.produce("in", 0, slow, huge)
    worker, _ = made(broker, watcher)
    async with running(worker) as task:
        await soon(lambda: gate.held == 1)
        broker.produce("in", 1, quick, value)
        await soon(lambda: worker._ahead is not None and worker._ahead._again)
        await broker.rebalance(broker.groups["g"])
        gate.open.set()
        await until(broker, task, lambda: counted(broker) == 2)
    check(broker, {slow: [x_huge], quick: [x]})


async def test_frames_that_wait_decoded_are_bounded(watcher, monkeypatch):
    """A step of these frames is larger than its record; what is decoded ahead counts as what it takes."""
    monkeypatch.setattr("pipeline.pump.fair_bound", lambda total, partitions: 3000)
    broker, rng = new_broker(), np.random.default_rng(9)
    sent: dict[bytes, list[int]] = {b"k": []}
    for seed in rng.integers(0, 256, 300).tolist():
        value, x = frame(seed)
        broker.produce("in", 0, b"k", value)
        sent[b"k"].append(x)
    worker, _ = made(broker, watcher, max_steps=3)
    largest = 0

    def done() -> bool:
        nonlocal largest
        largest = max(largest, *(m.backlog_bytes for m in worker._ownership.memories()), 0)
        return counted(broker) == 300

    async with running(worker) as task:
        await until(broker, task, done)
    check(broker, sent)
    assert 0 < largest <= 3000 + 16 * len(frame(0)[0])


@pytest.mark.parametrize("full", [False, True], ids=["threads are busy", "backlogs are full"])
async def test_what_a_fetch_costs_does_not_grow_with_the_square_of_its_partitions(full, gate):
    """Every partition is looked at a few times at most."""
    looks = []
    value, _ = frame(1, SLOW)
    for partitions in (100, 400):
        codec = make_codec(video_contract((SIDE, SIDE)))
        assert isinstance(codec, AheadCodec)
        threads = partitions if full else 2
        ahead = Ahead(codec, threads, 10**6, Metrics("m", "1"), lambda: 0 if full else 10**9, lambda: None)
        ahead.start()
        slots, tier = Slots(1, 0, 0), Tier(1, 1024, None)
        who = Membership("g", 1, "m")
        memories = [Memory(p, who, None, 0, 0, Index(slots, p), slots, tier) for p in range(partitions)]
        offsets = np.arange(40)

        def fetch(ahead=ahead, memories=memories, offsets=offsets) -> None:
            for memory in memories:
                values = [value] * 40
                ahead.offer(
                    memory, Segment(memory.partition, [b"k"] * 40, values, offsets, offsets, 40, value_bytes=10**5)
                )
            ahead.go()

        try:
            _, called = counting({"_room", "_give", "_has_dear", "_release", "_forget"}, fetch)
        finally:
            gate.open.set()
            await ahead.close()
            gate.open.clear()
        looks.append(sum(called.values()))
    assert looks[1] < 6 * looks[0]
