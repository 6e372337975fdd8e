"""More streams than slots: every stream finds its own row again, whoever had its slot meanwhile."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import I64, Membership
from pipeline.contract import CodecSpec, Contract, HeadSpec, Output, State, StepInput
from pipeline.engine import Arena
from pipeline.partition import Memory
from pipeline.residency import ROOM, Residency
from pipeline.streams.slots import CLEAN, Index, Slots
from pipeline.streams.snapshots import Restored
from pipeline.streams.tier import Tier
from pipeline.takeover import Found, Start, install
from pipeline.transport.base import LogRange
from tests.models import rolling_hash_reference, stepper
from tests.unit.test_worker import (
    check,
    counted,
    hash_model,
    made,
    new_broker,
    outputs,
    partition_of,
    produce_steps,
    running,
    until,
)
from tests.unit.test_worker_generate import PROMPTS, finished, prompt, talking_hash, texts, undisturbed
from tests.waves import wav

__all__ = ["hash_model", "talking_hash"]

CODEC_BYTES, HEAD_BYTES = 3, 2
CONTRACT = Contract(
    "rows",
    "1",
    (StepInput("x", "int64"),),
    (State("h", "h2", "int64", (1, 1), 0), State("c", "c2", "float32", (1, 3), 0)),
    (Output("y", "int64", ()),),
    CodecSpec("tensor"),
    HeadSpec("tensor"),
    batch_axis=0,
    time_axis=None,
)


class Rows:
    """A residency over a real arena and host tier, and what its streams' rows should be."""

    def __init__(self, slots: int, partitions: int = 1, tier_rows: int = 1000) -> None:
        self.slots = Slots(slots, CODEC_BYTES, HEAD_BYTES)
        self.arena = Arena(CONTRACT, slots)
        row_bytes = self.arena.row_bytes + CODEC_BYTES + HEAD_BYTES
        self.tier = Tier(row_bytes, max(1024, tier_rows * row_bytes), None)
        self.residency = Residency(self.slots, self.arena, self.tier)
        self.memories = [self.own(p) for p in range(partitions)]
        self.want: dict[tuple[int, bytes], tuple[bytes, int]] = {}
        """(partition, key) -> row, A."""
        self.polls = 0
        self.rng = np.random.default_rng(0)

    def own(self, partition: int) -> Memory:
        memory = Memory(
            partition, Membership("g", 1, "m"), b"t" * 16, 0, 0, Index(self.slots, partition), self.slots, self.tier
        )
        self.residency.own(memory)
        return memory

    def row(self, slot: int) -> bytes:
        rows = self.arena.read(np.array([slot]))
        return rows.tobytes() + self.slots.codec[slot].tobytes() + self.slots.head[slot].tobytes()

    def poll(self, partition: int, keys: list[bytes], offset: int, *, finish: bool = True) -> I64:
        """Each of these streams finds its row, and a run changes it."""
        self.polls += 1
        memory, slots = self.memories[partition], self.slots
        where = self.residency.lookup(memory, keys, self.polls)
        for key, slot in zip(keys, where.tolist()):
            before = self.want.get((partition, key))
            assert slots.fresh[slot] == (before is None), key
            assert (slots.keys[slot], slots.partition[slot]) == (key, partition)
            if before is not None:
                assert (self.row(slot), slots.applied[slot]) == before, key
            self.arena.write(np.array([slot]), self.rng.integers(0, 256, (1, self.arena.row_bytes)).astype(np.uint8))
            slots.codec[slot] = self.rng.integers(0, 256, CODEC_BYTES)
            slots.head[slot] = self.rng.integers(0, 256, HEAD_BYTES)
            slots.applied[slot], slots.touched_ms[slot], slots.fresh[slot] = offset, offset, False
            self.want[partition, key] = self.row(slot), offset
        memory.dirty.mark(where, np.full(len(where), offset), float(offset))
        if finish:
            slots.finished = self.polls
        return where


PLANS = st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 30), min_size=1, max_size=14)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_every_stream_finds_its_row_again(plan):
    rows = Rows(8, partitions=2)
    saved: dict[tuple[int, bytes], int] = {}
    for offset, (partition, numbers) in enumerate(plan):
        keys = list(dict.fromkeys(b"%d" % n for n in numbers))
        assert len(rows.poll(partition, keys, offset)) == min(8, len(keys)), "8 slots, and nobody is at work"
    for memory in rows.memories:
        p = memory.partition
        for done in memory.pending:
            for key, a, row in zip(done.snapshots.keys, done.snapshots.applied.tolist(), done.snapshots.rows):
                assert saved.get((p, key), -1) < a, "a clean stream is not saved again"
                saved[p, key] = a
                if rows.want[p, key][1] == a:
                    assert row.tobytes() == rows.want[p, key][0]
    for (p, key), (_, a) in rows.want.items():
        resident = key in rows.memories[p].index
        assert resident != ((p, key) in rows.tier), "in one place"
        if not resident:
            assert saved[p, key] == a, "what is in the tier is saved"
    # Whoever is dirty is in the arena: nothing is due of a slot that was given up.
    for memory in rows.memories:
        due = memory.dirty.oldest(1e9, 1000).tolist()
        assert sorted(due) == sorted(memory.index.values())
    assert rows.slots.used == sum(len(m.index) for m in rows.memories)


def test_those_that_were_idle_for_longest_leave_and_a_few_more_than_must():
    rows = Rows(2 * ROOM)
    for i in range(2 * ROOM):
        rows.poll(0, [b"%d" % i], i)
    rows.poll(0, [b"0"], 100)
    rows.poll(0, [b"new"], 101)
    assert sorted(rows.tier.keys(0)) == [b"1", b"2"], "a 32nd of 64"
    assert rows.residency.evicted == 2
    assert rows.slots.free == 1
    memory = rows.memories[0]
    due = memory.dirty.oldest(1e9, 1000).tolist()
    assert sorted(due) == sorted(memory.index.values()), "none of an empty slot"


@pytest.mark.parametrize("flag", ["busy", "ending", "saving", "in flight"])
def test_who_is_at_work_stays(flag):
    rows = Rows(1)
    [slot] = rows.poll(0, [b"a"], 0, finish=flag != "in flight").tolist()
    if flag != "in flight":
        getattr(rows.slots, flag)[slot] = True
    assert not len(rows.residency.lookup(rows.memories[0], [b"b"], 2)), "there is no room"
    assert rows.memories[0].index == {b"a": slot}
    if flag != "in flight":
        getattr(rows.slots, flag)[slot] = False
    rows.slots.finished = 2
    assert rows.residency.lookup(rows.memories[0], [b"b"], 3).tolist() == [slot]
    assert list(rows.tier.keys(0)) == [b"a"]


def test_those_of_the_same_poll_do_not_drive_each_other_out():
    rows = Rows(3)
    rows.poll(0, [b"a", b"b", b"c"], 0)
    where = rows.residency.lookup(rows.memories[0], [b"c", b"d", b"a", b"e"], 2)
    assert len(where) == 3, "a, c and d; e finds no room"
    assert set(rows.memories[0].index) == {b"a", b"c", b"d"}
    assert not len(rows.residency.lookup(rows.memories[0], [b"f"], 2))


def test_a_new_stream_finds_room_among_those_that_come_behind_it():
    rows = Rows(2)
    rows.poll(0, [b"a", b"b"], 0)
    assert len(rows.poll(0, [b"new", b"a", b"b"], 1)) == 2, "b waits for the next poll"
    assert set(rows.memories[0].index) == {b"new", b"a"}


def test_a_full_tier_keeps_the_streams_where_they_are_and_is_said_once(caplog):
    rows = Rows(8, tier_rows=1)
    room = 1024 // (rows.arena.row_bytes + CODEC_BYTES + HEAD_BYTES)
    for i in range(8 + room):
        rows.poll(0, [b"%d" % i], i)
    for i in range(3):
        assert not len(rows.residency.lookup(rows.memories[0], [b"more"], 100 + i))
    assert rows.slots.free == 0
    assert rows.tier.count(0) == room
    assert ["host_bytes" in record.message for record in caplog.records] == [True]
    for (p, key), (row, _) in rows.want.items():
        slot = rows.memories[p].index.get(key)
        assert (rows.tier.read(p, [key]).rows.tobytes() if slot is None else rows.row(slot)) == row


def test_a_dropped_partition_leaves_nothing_and_its_successor_keeps_its_own():
    rows = Rows(2, partitions=2)
    for key in (b"a", b"b", b"c"):
        rows.poll(1, [key], 0)
    old = rows.memories[1]
    assert rows.tier.count(1) == 1
    new = rows.own(1)
    rows.residency.disown(old)
    assert rows.tier.count(1) == 1, "that is its successor's by now"
    rows.residency.disown(new)
    assert rows.tier.count(1) == 0


def test_a_takeover_brings_those_first_that_were_at_work_last_and_whoever_generates():
    rows = Rows(4)
    n = 10
    memory_rows = rows.rng.integers(0, 256, (n, rows.residency.row_bytes)).astype(np.uint8)
    memory_rows[:, -1] = 0
    memory_rows[3, -1] = 1  # it generates
    written_ms = np.arange(n) * 10
    keys = [b"%d" % i for i in range(n)]
    found = Found(0, None, None, LogRange(0, 99), Restored(keys, np.arange(n), written_ms, memory_rows, {}))
    memory, live = install(
        found, Start(50, 50, b"x"), Membership("g", 2, "m"), rows.slots, rows.residency, lambda r: r[:, -1] == 1
    )
    assert set(memory.index) == {b"3", b"9", b"8", b"7"}
    assert sorted(live.tolist()) == sorted(memory.index.values())
    for i, key in enumerate(keys):
        slot = memory.index.get(key)
        if slot is None:
            back = rows.tier.read(0, [key])
            assert (back.rows.tobytes(), back.applied.tolist()) == (memory_rows[i].tobytes(), [i])
        else:
            assert (rows.row(slot), rows.slots.applied[slot]) == (memory_rows[i].tobytes(), i)
            assert rows.slots.touched_ms[slot] == written_ms[i]
            assert rows.slots.dirty[slot] == CLEAN
            assert not rows.slots.fresh[slot]


# ---- forgetting


def test_only_idle_clean_streams_without_a_record_since_then_expire():
    rows = Rows(8)
    memory, slots = rows.memories[0], rows.slots
    for i, key in enumerate([b"old", b"young", b"dirty", b"busy", b"saving", b"flying"]):
        rows.poll(0, [key], 10 * i)
        slots.dirty[memory.index[key]] = CLEAN
    for key in (b"dirty", b"busy", b"saving", b"flying"):
        slots.touched_ms[memory.index[key]] = 0
    slots.dirty[memory.index[b"dirty"]] = 20
    slots.busy[memory.index[b"busy"]] = slots.saving[memory.index[b"saving"]] = True
    slots.poll[memory.index[b"flying"]] = slots.finished + 1
    rows.tier.put(
        0, [b"away", b"away, young"], np.array([3, 4]), np.zeros((2, rows.tier.row_bytes), np.uint8), np.array([5, 99])
    )
    rows.residency.expire(memory, 10, 100)
    assert memory.expiring == {b"old": 0, b"away": 3}
    assert set(memory.index) == {b"young", b"dirty", b"busy", b"saving", b"flying"}
    assert rows.tier.keys(0) == [b"away, young"]
    assert slots.used == 5


def test_no_more_expire_at_a_time_than_may():
    rows = Rows(8)
    for i in range(8):
        rows.poll(0, [b"%d" % i], i)
    rows.slots.dirty[:] = CLEAN
    rows.residency.expire(rows.memories[0], 1000, 3)
    assert len(rows.memories[0].expiring) == 3
    away = [b"away %d" % i for i in range(8)]
    rows.tier.put(0, away, np.arange(8), np.zeros((8, rows.tier.row_bytes), np.uint8), np.arange(8))
    rows.residency.expire(rows.memories[0], 1000, 7)
    assert len(rows.memories[0].expiring) == 10
    rows.residency.expire(rows.memories[0], 1000, 100)
    assert len(rows.memories[0].expiring) == 16


# ---- over the whole road


@pytest.mark.parametrize("interval_ms", [0, 5, 10_000])
async def test_a_thousand_streams_on_64_slots_are_the_same_as_on_a_thousand(hash_model, interval_ms):
    broker, rng = new_broker(), np.random.default_rng(interval_ms)
    sent = produce_steps(broker, rng, 1000, 6000)
    for enough in (1500, 4000, 6000):
        worker, _ = made(broker, hash_model, slots=64, max_steps=500, snapshot_interval_ms=interval_ms)
        async with running(worker) as task:
            await until(broker, task, lambda n=enough: counted(broker) >= n)
        assert worker._residency.evicted > 500
    check(broker, sent)
    newest = {e.key: e.value for _, _, e in broker.records("g-in-changelog") if e.value is not None}
    offsets = defaultdict(int)
    for _, o, e in broker.records("in"):
        offsets[e.key] = o
    assert {k: int.from_bytes(v[16:24], "little") for k, v in newest.items()} == offsets, "drained: all are saved"


async def test_streams_that_end_and_begin_again_while_they_have_no_slot(hash_model):
    """Ends meet streams in the arena, in the tier, and on their way; half of the workers are killed."""
    broker, rng = new_broker(), np.random.default_rng(77)
    lives: dict[bytes, list[list[int]]] = defaultdict(lambda: [[]])
    records = 0
    for _ in range(4000):
        key = b"s%d" % rng.integers(300)
        if rng.random() < 0.15:
            broker.produce("in", partition_of(key), key, None)
            lives[key].append([])
            continue
        x = int(rng.integers(1000))
        broker.produce("in", partition_of(key), key, x.to_bytes(8, "little"))
        lives[key][-1].append(x)
        records += 1
    for life, enough in enumerate((500, 1200, 2000, 2600, records)):
        interval_ms = (20, 10_000)[life % 2]
        worker, _ = made(
            broker, hash_model, worker_id=f"w{life}", slots=48, max_steps=100, snapshot_interval_ms=interval_ms
        )
        task = asyncio.create_task(worker.run())
        await until(broker, task, lambda n=enough: counted(broker) >= n)
        if life % 2:
            worker.stop()
        else:
            task.cancel()
        await asyncio.wait([task])
    got = outputs(broker)
    for key, several in lives.items():
        want = [y for steps in several for y in rolling_hash_reference(np.array(steps, np.int64)).tolist()]
        assert got.get(key, []) == want, key


CODECS = {
    "half a character": (StepInput("x", "int64"), CodecSpec("text", settings={"unit": "bytes"})),
    "half a hop": (StepInput("x", "int16", (40,)), CodecSpec("audio", settings={"rate": 16000})),
    "a file at another rate": (
        StepInput("x", "int16", (16,)),
        CodecSpec("audio", settings={"rate": 8000, "overlap": 4}),
    ),
}


@pytest.mark.parametrize("case", CODECS)
async def test_what_waits_in_a_codecs_row_leaves_and_comes_back_with_it(tmp_path, case):
    file = stepper(tmp_path, *CODECS[case])
    rng = np.random.default_rng(5)
    waiting = {b"s%d" % i: rng.integers(0, 256, 300).astype(np.uint8).tobytes() for i in range(60)}
    if case == "half a character":
        waiting = {key: "".join(map(chr, rng.integers(200, 3000, 90))).encode() for key in waiting}
    if case == "a file at another rate":
        waiting = {key: wav(sound, 11025, 1) for key, sound in waiting.items()}
    records = []
    while waiting:
        key = list(waiting)[rng.integers(len(waiting))]
        size = int(rng.integers(1, 60))
        records.append((key, waiting[key][:size]))
        if not (rest := waiting.pop(key)[size:]):
            continue
        waiting[key] = rest
    got = []
    for slots, lives in ((60, 1), (6, 3)):
        broker = new_broker()
        for key, piece in records:
            broker.produce("in", partition_of(key), key, piece)
        for life in range(lives):
            worker, _ = made(broker, file, slots=slots, max_steps=64, snapshot_interval_ms=50)
            enough = len(records) * (life + 1) // lives
            async with running(worker) as task:
                offsets = broker.groups["g"].offsets
                await until(broker, task, lambda n=enough, o=offsets: sum(c.offset for c in o.values()) >= n)
        streams: dict[bytes, bytes] = defaultdict(bytes)
        for _, _, e in broker.records("out"):
            streams[e.key] += e.value
        got.append(streams)
    assert got[0] == got[1]
    assert len(got[0]) == 60


async def test_streams_that_generate_stay_and_the_others_make_room(talking_hash):
    want = await undisturbed(talking_hash)
    broker = new_broker()
    for key, text in PROMPTS:
        prompt(broker, key, text, ("eddy-seed", b"11"))
    worker, _ = made(broker, talking_hash, slots=4)  # of nine streams
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == len(PROMPTS))
        assert worker._residency.evicted > 5
    assert texts(broker) == want


async def test_an_end_waits_for_a_slot_as_any_record_does(talking_hash):
    broker = new_broker()
    greedy = (("eddy-max-steps", b"5"), ("eddy-temperature", b"0"))
    prompt(broker, b"a", "hello", *greedy)
    worker, _ = made(broker, talking_hash, slots=1)
    async with running(worker) as task:
        await until(broker, task, lambda: finished(broker) == 1)
        prompt(broker, b"b", "x", ("eddy-max-steps", b"300"))
        await until(broker, task, lambda: b"b" in {e.key for _, _, e in broker.records("out")})
        broker.produce("in", partition_of(b"a"), b"a", None)
        prompt(broker, b"a", "hello", *greedy)
        await until(broker, task, lambda: finished(broker) == 3)
    first, second = (text for (key, _), text in texts(broker).items() if key == b"a")
    assert first == second, "the stream began anew"
