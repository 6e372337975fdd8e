"""Snapshots rarer than commits, outputs ahead of slow neighbours, and workers that die: every record counts once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from pipeline.columns import Committed, Part, Records, Segment, as_list
from pipeline.mark import FOR_EVER, Mark, Progress, Run, Tags, contains, runs_of
from pipeline.order import Order
from pipeline.partition import Done, Memory
from pipeline.streams.slots import CLEAN
from pipeline.streams.snapshots import APPLIED, HEADER, Restored, Snapshots
from pipeline.takeover import MANY, Found, check, install
from pipeline.transport.base import LogRange
from pipeline.transport.memory import MemoryBroker
from tests.models import rolling_hash_reference
from tests.unit.test_residency import Rows
from tests.unit.test_worker import counted, hash_model, new_broker, outputs, partition_of, running, until
from tests.unit.test_worker_generate import PROMPTS, finished, talking_hash, texts
from tests.unit.watched import Log, Watched, killed, made_watched

__all__ = ["hash_model", "talking_hash"]

DIGEST = b"12345678"


def value(x: int) -> bytes:
    return x.to_bytes(8, "little")


class Traffic:
    """Random records of streams, some of them hot, with ends in between."""

    def __init__(self, rng: np.random.Generator, streams: int, hot: int = 0, ends: float = 0.0) -> None:
        self.rng, self.streams, self.hot, self.ends = rng, streams, hot, ends
        self.lives: dict[bytes, list[list[int]]] = defaultdict(lambda: [[]])
        self.records = 0

    def produce(self, broker, n: int, partitions=partition_of) -> None:
        for _ in range(n):
            hot = self.hot and self.rng.random() < 0.6
            key = b"hot%d" % self.rng.integers(self.hot) if hot else b"s%d" % self.rng.integers(self.streams)
            if self.rng.random() < self.ends:
                broker.produce("in", partitions(key), key, None)
                self.lives[key].append([])
                continue
            x = int(self.rng.integers(1000))
            broker.produce("in", partitions(key), key, value(x))
            self.lives[key][-1].append(x)
            self.records += 1

    def check(self, broker) -> None:
        got = outputs(broker)
        for key, several in self.lives.items():
            want = [y for steps in several for y in rolling_hash_reference(np.array(steps, np.int64)).tolist()]
            assert got.get(key, []) == want, key


@pytest.mark.parametrize("seed", range(4))
async def test_workers_that_die_at_any_moment_with_all_that_there_is(hash_model, monkeypatch, seed):
    """Hot streams, few slots, ends, snapshots at all paces, and little room in D."""
    monkeypatch.setattr("pipeline.worker.STREAM_STEPS", 16)
    monkeypatch.setattr("pipeline.mark.DONE_BYTES_MAX", (40, 400)[seed % 2])
    monkeypatch.setattr("pipeline.policy.LOOK_S", 0.0)
    broker, rng = new_broker(), np.random.default_rng(seed)
    traffic, log = Traffic(rng, 60, hot=3, ends=0.05), Log(broker)
    traffic.produce(broker, 2500)
    for life in range(12):
        worker, _ = made_watched(
            log,
            hash_model,
            worker_id=f"w{life}",
            max_steps=200,
            slots=(24, 4096)[life % 2],
            snapshot_interval_ms=float(rng.choice([0, 1, 20, 10_000])),
        )
        task = asyncio.create_task(worker.run())
        enough = counted(broker) + int(rng.integers(1, 250))
        await until(broker, task, lambda n=enough: counted(broker) >= min(n, traffic.records))
        for _ in range(int(rng.integers(0, 30))):
            await asyncio.sleep(0)
        await killed(task)
        traffic.produce(broker, 60)
    worker, _ = made_watched(log, hash_model, slots=24, snapshot_interval_ms=5)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) >= traffic.records)
    traffic.check(broker)
    for p, marks in log.marks.items():
        assert marks[-1].replay_from == marks[-1].committed == len(broker.topics["in"][p]), "drained: nothing to replay"
        assert marks[-1].done_above == ()
    assert any(m.done_above for marks in log.marks.values() for m in marks), "something was ahead"
    assert any(m.replay_from < m.committed for marks in log.marks.values() for m in marks), "something was replayed"
    assert log.tombstones


# ---- the worked example of the design, moment by moment


def test_the_worked_example():
    """Records 0:a 1:b 2:a 3:b 4:a of one partition, stream b slow."""
    rows = Rows(4)
    memory, slots = rows.memories[0], rows.slots
    records = {0: b"a", 1: b"b", 2: b"a", 3: b"b", 4: b"a"}
    changelog: dict[bytes, int] = {}

    def ran(memory: Memory, offsets: list[int], next_offset: int, waiting: list[int], hidden: bool = False) -> None:
        where = rows.residency.lookup(memory, [records[o] for o in offsets], 1)
        slots.applied[where], slots.fresh[where] = offsets, False
        memory.dirty.mark(where, np.array(offsets), 0.0)
        keys = [] if hidden else [records[o] for o in offsets]
        outputs = Records(keys, [b"y"] * len(keys), np.zeros(len(keys), np.int64))
        progress = Progress(next_offset, runs_of(np.array(waiting, np.int64)))
        memory.finished(Done(progress, outputs, Records.none(), Snapshots.none(), np.empty(0, np.int64)), 0)

    def saved(memory: Memory, key: bytes) -> None:
        where = np.array([memory.index[key]])
        slots.dirty[where] = CLEAN
        row = Snapshots.of(
            slots.serial[where], [key], slots.applied[where], np.zeros((1, rows.tier.row_bytes), np.uint8)
        )
        memory.finished(replace(memory.nothing_done(), snapshots=row), 0)

    tags = Tags(b"incarnat")

    def part(memory: Memory) -> tuple[int, list[Run], int, int]:
        """C, D, R and how many outputs."""
        frozen = memory.freeze(tags.next(), DIGEST, 0, lambda outputs: outputs)
        assert frozen is not None
        mark = Mark.decode(frozen.metadata)
        assert mark is not None
        changelog.update(
            {
                k: int.from_bytes(v[APPLIED], "little")
                for k, v in zip(frozen.snapshots.keys, as_list(frozen.snapshots.values))
            }
        )
        memory.saved(frozen)
        return mark.committed, list(mark.done_above), mark.replay_from, len(frozen.outputs)

    ran(memory, [0, 2, 4], 5, waiting=[1, 3])
    assert part(memory) == (1, [(2, 3), (4, 5)], 0, 3)
    assert changelog == {}
    saved(memory, b"a")
    assert part(memory) == (1, [(2, 3), (4, 5)], 1, 0)
    assert changelog == {b"a": 4}
    ran(memory, [1], 5, waiting=[3])
    assert part(memory) == (3, [(4, 5)], 1, 1)
    # A crash; another worker reads the offset with its metadata and the changelog.
    rows = Rows(4)
    slots = rows.slots
    order = Order(slots, 1024, generates=False, interrupts=False)
    row = np.zeros((1, rows.tier.row_bytes), np.uint8)
    mark = Mark(memory.base or b"", 3, 1, DIGEST, ((4, 5),))
    found = Found(
        0,
        Committed(3, mark.encode()),
        Mark.decode(mark.encode()),
        LogRange(0, 5),
        Restored([b"a"], np.array([4]), np.array([0]), row, {}),
    )
    start = check(found, DIGEST)
    assert start is not None
    assert (start.committed, start.replay_from, list(start.replay)) == (3, 1, [(-FOR_EVER, 3), (4, 5)])
    again, _ = install(found, start, memory.membership, slots, rows.residency, lambda r: np.zeros(len(r), np.bool_))
    assert again.fetched == 1
    keys = [records[o] for o in range(1, 5)]
    again.offer(Segment(0, [*keys], [b"x"] * 4, np.arange(1, 5), np.zeros(4, np.int64), 5, None, 4))
    turn = order.take(again, 100, 1, 100)
    assert turn is not None
    chosen = turn.chosen()
    assert chosen is not None
    assert chosen.offsets.tolist() == [1, 3], "2 and 4 are in a's snapshot"
    turn.settle(2)
    assert contains(again.replay, chosen.offsets).tolist() == [True, False], "1 is applied and hidden, 3 is shown"
    ran(again, [1], 2, waiting=[], hidden=True)
    assert part_of(again) is None, "nothing that the group does not know"
    ran(again, [3], 5, waiting=[])
    saved(again, b"b")
    assert part(again) == (5, [], 5, 1)
    assert changelog == {b"a": 4, b"b": 3}
    assert again.replay == ()


def part_of(memory: Memory) -> Part | None:
    return memory.freeze(b"n" * 16, DIGEST, 0, lambda outputs: outputs)


# ---- outputs ahead of a stream that has much to do


def to_one(key: bytes) -> int:
    return 0


@pytest.mark.parametrize("interval_ms", [10_000.0, 20.0])
async def test_outputs_pass_a_hot_stream_and_survive_a_death_in_the_middle(hash_model, interval_ms):
    broker = new_broker()
    log = Log(broker, every=20)
    hot = list(range(60_000))
    for x in hot:
        broker.produce("in", 0, b"hot", value(x))
    neighbours = Traffic(np.random.default_rng(1), 50)
    neighbours.produce(broker, 500, to_one)
    settings = {"snapshot_interval_ms": interval_ms, "queue_bytes": 200_000_000}

    def theirs() -> int:
        return sum(e.key != b"hot" for _, _, e in broker.records("out"))

    worker, _ = made_watched(log, hash_model, **settings)
    task = asyncio.create_task(worker.run())
    await until(broker, task, lambda: theirs() == 500)
    shown = counted(broker) - 500
    assert shown < 50_000, "the hot stream has much to do yet"
    mark = log.marks[0][-1]
    assert mark.done_above[-1][1] == 60_500, "D: what has passed it"
    assert mark.committed == shown
    await killed(task)
    assert counted(broker) < 60_500
    worker, _ = made_watched(log, hash_model, "w2", **settings)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 60_500)
    neighbours.lives[b"hot"] = [hot]
    neighbours.check(broker)
    assert log.marks[0][-1].replay_from == 60_500


async def test_hot_streams_between_each_other_keep_the_metadata_small(hash_model):
    """One is far behind when two more come, their records between its own and each other's."""
    broker = new_broker()
    log, rng = Log(broker, every=10**9), np.random.default_rng(3)
    lives: dict[bytes, list[int]] = defaultdict(list)
    for i in range(30_000):
        key = b"first" if i < 15_000 or i % 3 == 0 else (b"second", b"third")[int(rng.random() < 0.3)]
        broker.produce("in", 0, key, value(i))
        lives[key].append(i)
    worker, _ = made_watched(log, hash_model, max_steps=5000)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 30_000)
    got = outputs(broker)
    for key, steps in lives.items():
        assert got[key] == rolling_hash_reference(np.array(steps)).tolist()
    assert max(len(m.done_above) for m in log.marks[0]) > 300, "D was put to use"


# ---- an orderly end, forgetting, and what cannot be read


async def test_an_orderly_end_saves_all_that_is_dirty(hash_model):
    broker = new_broker()
    log, traffic = Log(broker), Traffic(np.random.default_rng(2), 300)
    traffic.produce(broker, 2000)
    worker, _ = made_watched(log, hash_model, snapshot_interval_ms=1e9, snapshot_bytes_per_second=1.0)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 2000)
        assert not any(log.applied.values()), "nothing is due yet"
        assert all(marks[-1].replay_from == 0 for marks in log.marks.values())
    for p, marks in log.marks.items():
        assert marks[-1].replay_from == marks[-1].committed == len(broker.topics["in"][p])
    assert sum(map(len, log.applied.values())) == len(traffic.lives)


@pytest.fixture
def often(monkeypatch):
    """It is looked for streams to forget all the time."""
    monkeypatch.setattr("pipeline.watching.WATCH_S", 0.005)


async def test_a_stream_without_records_for_long_is_forgotten_and_begins_anew(hash_model, often):
    broker = new_broker()
    log = Log(broker)
    worker, _ = made_watched(log, hash_model, state_ttl_s=0.1, snapshot_interval_ms=5)
    async with running(worker) as task:
        for turn in range(3):
            broker.produce("in", 0, b"a", value(1))
            broker.produce("in", 0, b"a", value(2))
            await until(broker, task, lambda n=turn: len(log.tombstones) == n + 1)
            assert worker._slots.used == 0
    assert outputs(broker) == {b"a": rolling_hash_reference(np.array([1, 2])).tolist() * 3}
    assert log.tombstones == [(0, b"a")] * 3


class Gated(Watched):
    """A part with a tombstone waits, and may never be written."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def commit(self, membership, parts):
        if any(v is None and k for p in parts for k, v in zip(p.snapshots.keys, as_list(p.snapshots.values))):
            self.reached.set()
            await self.gate.wait()
        return await super().commit(membership, parts)


@pytest.mark.parametrize("dies", [False, True])
async def test_the_next_record_of_a_stream_waits_until_it_is_forgotten(hash_model, often, dies):
    broker = new_broker()
    log = Log(broker)
    worker, transport = made_watched(log, hash_model, kind=Gated, state_ttl_s=0.1, snapshot_interval_ms=5)
    task = asyncio.create_task(worker.run())
    broker.produce("in", 0, b"a", value(1))
    await asyncio.wait_for(transport.reached.wait(), 10)
    broker.produce("in", 0, b"a", value(2))
    async with asyncio.timeout(10):
        while not worker._ownership.memory(0).aside:
            await asyncio.sleep(0)
    if dies:
        await killed(task)
        worker, _ = made_watched(log, hash_model, "w2")  # it forgets nobody
        task = asyncio.create_task(worker.run())
    else:
        transport.gate.set()
    await until(broker, task, lambda: counted(broker) == 2)
    await killed(task)
    anew = rolling_hash_reference(np.array([1])).tolist() + rolling_hash_reference(np.array([2])).tolist()
    assert outputs(broker)[b"a"] == (rolling_hash_reference(np.array([1, 2])).tolist() if dies else anew)
    assert log.tombstones == ([] if dies else [(0, b"a")])


@pytest.mark.parametrize("many", [0, MANY], ids=["on a thread", "at once"])
@pytest.mark.parametrize("damage", ["a bit", "another model", "short"])
async def test_a_snapshot_that_cannot_be_read_stops_its_partition_or_its_stream_begins_anew(
    hash_model, caplog, damage, many, monkeypatch
):
    monkeypatch.setattr("pipeline.takeover.MANY", many)
    broker = new_broker()
    for key in (b"bad", b"good"):
        broker.produce("in", 0, key, value(1))
    broker.produce("in", 1, b"other", value(1))
    worker, _ = made_watched(Log(broker), hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 3)
    for entry in broker.topics["g-in-changelog"][0]:
        if entry.key == b"bad":
            raw = bytearray(entry.value)
            if damage == "a bit":
                raw[-1] ^= 1
            if damage == "another model":
                raw = bytearray(restamped(bytes(raw)))
            entry.value = bytes(raw[:10] if damage == "short" else raw)
    for p, key in ((0, b"bad"), (0, b"good"), (1, b"other")):
        broker.produce("in", p, key, value(2))
    worker, _ = made_watched(Log(broker), hash_model)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 4)
        async with asyncio.timeout(10):
            while "stream b'bad'" not in caplog.text:  # said after a second takeover
                await asyncio.sleep(0)
        assert not worker.ready
    assert "bad_snapshot: reset" in caplog.text
    worker, _ = made_watched(Log(broker), hash_model, bad_snapshot="reset")
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 6)
        await ready(worker)
    both, anew = rolling_hash_reference(np.array([1, 2])).tolist(), rolling_hash_reference(np.array([2])).tolist()
    assert outputs(broker) == {b"good": both, b"other": both, b"bad": [both[0], *anew]}
    # Its new snapshot stands in the old one's place: nothing is left to be said.
    worker, _ = made_watched(Log(broker), hash_model)
    async with running(worker) as task:
        await ready(worker)


def restamped(raw: bytes) -> bytes:
    """As another model's, whole."""
    record = Snapshots.of(np.array([0]), [b"k"], np.array([0]), np.frombuffer(raw[HEADER:], np.uint8)[None])
    [other] = as_list(record.records(b"another!", 0).values)
    assert other is not None
    return other


async def ready(worker) -> None:
    async with asyncio.timeout(10):
        while not worker.ready:
            await asyncio.sleep(0)


async def test_streams_that_generate_between_each_other_with_little_room_in_d(talking_hash, monkeypatch):
    """Each record that waits for its stream's generation is a gap that its neighbours pass, as far as there is room."""

    async def served(broker: MemoryBroker, log: Log, lives: int) -> dict[tuple[bytes, bytes], str]:
        for i, (key, text) in enumerate(PROMPTS):
            steps = b"%d" % (9 + i * 37 % 80)
            broker.produce("in", 0, key, text.encode(), [("eddy-seed", b"11"), ("eddy-max-steps", steps)])
        for life in range(lives):
            worker, _ = made_watched(log, talking_hash, f"w{life}")
            task = asyncio.create_task(worker.run())
            enough = counted(broker) + 40
            await until(broker, task, lambda n=enough: counted(broker) >= n or finished(broker) == len(PROMPTS))
            await killed(task)
        worker, _ = made_watched(log, talking_hash)
        async with running(worker) as task:
            await until(broker, task, lambda: finished(broker) == len(PROMPTS))
        return texts(broker)

    logs, told = [], []
    for lives, room in ((0, 2000), (3, 2)):
        monkeypatch.setattr("pipeline.mark.DONE_BYTES_MAX", room)
        broker = new_broker()
        logs.append(Log(broker))
        logs[-1].exactly_once = False  # a record is done once its prompt is saved, and is shown piece by piece
        told.append(await served(broker, logs[-1], lives))
    assert told[0] == told[1]
    ahead = [max(len(m.done_above) for m in log.marks[0]) for log in logs]
    assert ahead[0] > 1
    assert ahead[1] == 1


async def test_a_choice_is_not_made_again_where_the_changelog_has_lost_its_snapshot(hash_model, caplog):
    """A dead letter carries its stream's snapshot; a replay that meets the record nevertheless is an error (X8)."""
    broker = new_broker()
    for key, raw in ((b"slow", value(1)), (b"a", b"bad"), (b"a", value(2))):
        broker.produce("in", 0, key, raw)
    broker.produce("in", 1, b"other", value(1))
    log = Log(broker)
    worker, _ = made_watched(log, hash_model)
    task = asyncio.create_task(worker.run())
    await until(broker, task, lambda: counted(broker) == 3)
    await killed(task)
    assert log.marks[0][-1].replay_from == 0
    assert log.applied[0] == {b"a": 2}
    broker.produce("in", 1, b"other", value(2))
    whole = [*broker.topics["g-in-changelog"][0]]
    broker.topics["g-in-changelog"][0] = [e for e in whole if e.key != b"a"]
    worker, _ = made_watched(log, hash_model, "w2")
    task = asyncio.create_task(worker.run())
    await until(broker, task, lambda: counted(broker) == 4)
    async with asyncio.timeout(10):
        while "partition 0 stops" not in caplog.text:
            await asyncio.sleep(0)
    await killed(task)
    assert "record 1 was done before, and what was shown of it was a choice" in caplog.text
    assert counted(broker, "in.dlq") == 1
    broker.topics["g-in-changelog"][0] = whole
    broker.produce("in", 0, b"a", value(3))
    worker, _ = made_watched(log, hash_model, "w3")
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) == 5)
    assert outputs(broker)[b"a"] == rolling_hash_reference(np.array([2, 3])).tolist()
    assert counted(broker, "in.dlq") == 1
