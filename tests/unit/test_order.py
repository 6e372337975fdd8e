"""Which records go and which wait, and what C, D and R say of it, against sets of offsets and a queue a stream."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import Membership, Records, Segment
from pipeline.mark import Mark, Progress, runs_of
from pipeline.order import Order, Turn
from pipeline.partition import Done, Memory
from pipeline.streams.slots import CLEAN, Index, Slots
from pipeline.streams.snapshots import Snapshots
from pipeline.streams.tier import Tier

KEYS = [b"%d" % i for i in range(5)]
DIGEST = b"12345678"
EACH = 3
STEP_BYTES = 8


def segment(offsets: list[int], keys: list[bytes], next_offset: int) -> Segment:
    column = np.array(offsets, np.int64)
    return Segment(0, list(keys), [bytes(STEP_BYTES)] * len(keys), column, column, next_offset, None, 8 * len(keys))


class Partition:
    """A partition's memory with its order, polls that finish some time later, and what is true of it."""

    def __init__(self, each: int = EACH, *, generates: bool = False, interrupts: bool = False) -> None:
        self.slots = Slots(16, 0, 0)
        tier = Tier(1, 1024, None)
        self.memory = Memory(0, Membership("g", 1, "m"), b"t" * 16, 0, 0, Index(self.slots, 0), self.slots, tier)
        self.each, self.order = each, Order(self.slots, each, generates=generates, interrupts=interrupts)
        self.offset = 0
        self.waiting: dict[bytes, deque[int]] = defaultdict(deque)
        """Stream -> offsets of its records that no poll has taken."""
        self.records: dict[int, bytes] = {}
        self.polls: deque[tuple[list[tuple[int, bytes]], Done]] = deque()
        self.done: set[int] = set()
        self.saved: dict[bytes, int] = {}
        self.tags = 0

    def offer(self, keys: list[bytes], *, dense: bool = False, markers: bool = False) -> None:
        offsets = []
        for i, key in enumerate(keys):
            # Now and then an offset holds no record; behind each where every record has a transaction of its own.
            self.offset += 1 + (markers or (i % 5 == 4 and not dense))
            offsets.append(self.offset - 1)
            self.records[self.offset - 1] = key
            self.waiting[key].append(self.offset - 1)
        self.memory.offer(segment(offsets, keys, self.offset))

    def take(self, steps: int, records_max: int, slots_for: int = 10**9) -> bool:
        """A poll, of which only so many records of the stretch find a slot."""
        turn = self.order.take(self.memory, steps, STEP_BYTES, records_max)
        if turn is None:
            return False
        taken = [*self._of(turn, slots_for)]
        for offset, key in taken:
            assert self.waiting[key].popleft() == offset, "a stream's own order"
        counts = {key: sum(k == key for _, k in taken) for _, key in taken}
        assert len(taken) <= records_max
        if self.memory.aside:
            assert max(counts.values(), default=0) <= 2 * self.each
        progress = self._progress()
        assert progress.fits, "D has room for what has passed (X2)"
        nothing = Records.none()
        slots = self.slots.lookup(self.memory.index, [key for _, key in taken])
        self.slots.applied[slots] = [offset for offset, _ in taken]
        done = Done(progress, nothing, nothing, Snapshots.none(), np.empty(0, np.int64))
        self.polls.append((taken, done))
        return True

    def _of(self, turn: Turn, slots_for: int) -> list[tuple[int, bytes]]:
        found = [o for _, s in turn.aside for o in s.offsets.tolist()]
        chosen = turn.chosen()
        n = min(slots_for, len(chosen)) if chosen is not None else 0
        if chosen is not None:
            found += chosen.offsets[:n].tolist()
        turn.settle(n)
        return [(o, self.records[o]) for o in found]

    def _progress(self) -> Progress:
        return Progress(self.memory.admitted, self.memory.aside.runs)

    def finish(self) -> None:
        if not self.polls:
            return
        taken, done = self.polls.popleft()
        self.memory.blocked = None
        if taken:
            slots = self.slots.lookup(self.memory.index, [key for _, key in taken])
            self.memory.dirty.mark(slots, np.array([o for o, _ in taken]), 0.0)
        self.done |= {o for o, _ in taken}
        self.memory.finished(done, 0)

    def save(self, key: bytes) -> None:
        """Its row, between two runs."""
        mine = [o for o in self.done if self.records[o] == key]
        if mine:
            self.saved[key] = max(mine)
            self.slots.dirty[self.memory.index[key]] = CLEAN

    def commit(self) -> None:
        self.tags += 1
        part = self.memory.freeze(self.tags.to_bytes(16, "big"), DIGEST, 0, lambda records: records)
        if part is None:
            return
        mark = Mark.decode(part.metadata)
        assert mark is not None
        end = self.memory.progress.next
        done = {o for o in range(end) if (record := self._record_at(o)) is None or record in self.done}
        first = min({*range(end + 1)} - done)
        assert part.committed == mark.committed == first, "C"
        assert mark.done_above == runs_of(np.array(sorted(o for o in done if o > first), np.int64)), "D"
        unsaved = [o for o in self.done if o > self.saved.get(self.records[o], -1)]
        assert mark.replay_from == min([first, *unsaved]), "R (X6)"
        self.memory.saved(part)

    def _record_at(self, offset: int) -> int | None:
        """The record there, or the last one before an offset that holds none: that is told with it."""
        return next((o for o in range(offset, -1, -1) if o in self.records), None)

    @property
    def left(self) -> int:
        return sum(map(len, self.waiting.values())) + len(self.polls)


STEP = st.tuples(
    st.one_of(
        st.lists(st.sampled_from(KEYS), max_size=20),
        st.sampled_from([KEYS[:1] * 40, KEYS[:2] * 15, KEYS[1:3] * 12]),  # hot streams
    ),
    st.integers(1, 20),
    st.integers(1, 12),
    st.integers(0, 3),
    st.sampled_from(KEYS),
    st.booleans(),
    st.integers(0, 25),
    st.booleans(),
)


@pytest.fixture
def small_d(monkeypatch):
    """D has room for eight runs, as if a thousand."""
    monkeypatch.setattr("pipeline.mark.DONE_BYTES_MAX", 16)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_streams_keep_their_order_and_c_d_r_are_those_of_sets(steps):
    run(Partition(), steps)


def test_the_same_with_little_room_in_d(small_d):
    @settings(max_examples=150, deadline=None)
    @given(st.lists(STEP, max_size=25))
    def same(steps):
        run(Partition(), steps)

    same()


def run(p: Partition, steps) -> None:
    for keys, budget, records_max, finished, key, commit, slots_for, p.memory.reading_on in steps:
        if keys:
            p.offer(keys)
        p.take(budget, records_max, slots_for)
        for _ in range(finished):
            p.finish()
        p.save(key)
        if commit:
            p.commit()
    p.memory.reading_on = False
    for _ in range(2000):
        if not p.left:
            break
        p.take(20, 12)
        p.finish()
        p.commit()
    assert not p.left, "everything gets its turn"
    for key in KEYS:
        p.save(key)
    p.commit()
    if p.records:
        assert p.memory.progress.low == p.offset
        assert not p.memory.busy


def test_hot_streams_between_each_other_never_need_more_than_d_has_room_for():
    """One is far behind already when another's records come to lie between its own."""
    p = Partition(1024)
    p.offer([b"0"] * 20_000, dense=True)
    p.take(20_000, 20_000)
    p.offer([b"0", b"1"] * 3000 + [b"0", b"2", b"1", b"2"] * 1000, dense=True)
    p.offer([b"3"] * 10)
    for _ in range(200):
        p.take(5000, 5000)
        p.finish()
        p.commit()
    assert not p.left


@pytest.mark.parametrize(("n", "goes"), [(100, 50), (1000, 256), (40, 32), (1, 1)])
def test_of_a_fetch_that_is_read_on_a_stream_has_no_more_than_half_at_once(n, goes):
    p = Partition(256)
    p.memory.reading_on = True
    p.offer([b"0"] * n, dense=True)
    turn = p.order.take(p.memory, 32_768, STEP_BYTES, 32_768)
    assert len(turn.chosen()) == goes
    p = Partition(256)
    p.offer([b"0"] * n, dense=True)
    assert len(p.order.take(p.memory, 32_768, STEP_BYTES, 32_768).chosen()) == min(n, 256)


def test_a_hot_streams_neighbours_pass_it():
    p = Partition(1024)
    p.offer([b"0"] * 20_000, dense=True)
    p.offer([b"1", b"2"] * 10)
    while p.waiting[b"1"] or p.waiting[b"2"]:
        assert p.take(32_768, 32_768)
        p.finish()
    assert len(p.waiting[b"0"]) > 15_000
    p.commit()
    assert p.memory.committed < 5000


def test_what_is_set_aside_waits_while_its_partition_is_read_on():
    p = Partition()
    p.offer([b"0"] * 10 + [b"1"])
    p.memory.reading_on = True
    p.take(100, 100)
    assert [key for _, key in p.polls[0][0]] == [b"0", b"0", b"0", b"1"]
    assert not p.order.waits(p.memory)
    assert not p.take(100, 100)
    p.offer([b"0", b"2"])
    p.take(100, 100)
    assert [key for _, key in p.polls[1][0]] == [b"2"]
    p.memory.reading_on = False
    assert p.order.waits(p.memory)
    p.take(100, 100)
    assert [key for _, key in p.polls[2][0]] == [b"0"] * 3


def test_what_is_set_aside_goes_where_reading_waits_for_it(small_d):
    p = Partition()
    p.offer([b"0"] * 20)
    p.memory.reading_on = True
    p.take(100, 100)
    p.offer([b"0", b"1", b"0", b"2", b"0", b"3", b"0", b"4"] * 10)
    for _ in range(60):
        while p.take(100, 100):
            pass
        p.finish()
    assert not p.memory.backlog, "all is read"


def test_the_markers_of_the_inputs_transactions_take_no_room_in_d(small_d):
    p = Partition()
    p.offer([b"0"] * 200, markers=True)
    p.offer([b"1"], markers=True)
    while p.waiting[b"1"]:
        assert p.take(100, 100)
        p.finish()
    p.commit()
    assert len(p.waiting[b"0"]) > 150
    assert len(p.memory.progress.done_above) <= 2


# ---- streams that generate


def test_a_stream_that_generates_keeps_its_own_records_waiting_and_nobody_elses():
    p = Partition(generates=True)
    p.offer([b"0", b"0", b"1", b"0", b"2", b"1"])
    p.take(100, 100)
    assert [key for _, key in p.polls[0][0]] == [b"0", b"1", b"2"], "one of each"
    p.slots.busy[[p.memory.index[k] for k in (b"0", b"1")]] = True
    p.finish()
    assert not p.take(100, 100)
    assert not p.order.waits(p.memory)
    p.slots.busy[p.memory.index[b"1"]] = False
    assert p.order.waits(p.memory)
    p.take(100, 100)
    assert p.polls[0][0] == [(6, b"1")]
    p.slots.busy[p.memory.index[b"0"]] = False
    p.take(100, 100)
    p.take(100, 100)
    assert [taken for taken, _ in p.polls][1:] == [[(1, b"0")], [(3, b"0")]]


def test_a_record_that_interrupts_waits_only_for_the_step_in_flight():
    p = Partition(generates=True, interrupts=True)
    p.offer([b"0"])
    p.take(1, 1)
    p.finish()
    slot = p.memory.index[b"0"]
    p.slots.busy[slot] = True
    p.slots.poll[slot], p.slots.finished = 3, 2
    p.offer([b"0", b"1"])
    p.take(9, 9)
    assert [key for _, key in p.polls[0][0]] == [b"1"]
    p.slots.finished = 3
    p.take(9, 9)
    assert [key for _, key in p.polls[1][0]] == [b"0"]


def test_a_stream_that_is_being_forgotten_waits_and_its_neighbours_pass():
    p = Partition()
    p.memory.expiring[b"0"] = 5
    p.offer([b"0", b"1", b"0"])
    p.take(9, 9)
    assert [key for _, key in p.polls[0][0]] == [b"1"]
    assert not p.order.waits(p.memory)
    p.memory.expiring.clear()
    p.take(9, 9)
    assert [key for _, key in p.polls[1][0]] == [b"0", b"0"]
