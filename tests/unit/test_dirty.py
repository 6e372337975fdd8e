"""Which streams wait for a snapshot, against a dictionary of each stream's first record that none includes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dirty import Dirty
from pipeline.streams.slots import CLEAN, Slots

STREAMS = 6


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


class Model:
    """Streams in slots, some dirty; a stream may leave and another take its slot."""

    def __init__(self) -> None:
        self.slots = Slots(STREAMS, 0, 0)
        self.dirty = Dirty(self.slots)
        self.stream = [self.slots.take(0, b"%d" % i) for i in range(STREAMS)]
        self.want: dict[int, tuple[int, float]] = {}
        """Slot -> its first dirty record, and since when."""
        self.next = 0
        self.now_s = 0.0

    def poll(self, streams: list[int]) -> None:
        self.now_s += 1
        slots = array(*(self.stream[i] for i in streams))
        offsets = np.arange(self.next, self.next + len(streams))
        self.next += len(streams)
        self.dirty.mark(slots, offsets, self.now_s)
        for slot, offset in zip(slots.tolist(), offsets.tolist()):
            self.want.setdefault(slot, (offset, self.now_s))

    def save(self, streams: list[int]) -> None:
        for i in streams:
            self.slots.dirty[self.stream[i]] = CLEAN
            self.want.pop(self.stream[i], None)

    def leave(self, streams: list[int]) -> None:
        for i in set(streams):
            slot = self.stream[i]
            self.slots.release([slot])
            self.want.pop(slot, None)
            self.stream[i] = self.slots.take(0, b"another")

    def check(self, most: int, age: float) -> None:
        first = min((offset for offset, _ in self.want.values()), default=None)
        assert self.dirty.lowest() == first, "what holds R"
        since, bound = min((since for _, since in self.want.values()), default=None), self.dirty.not_before_s()
        assert since is None or (bound is not None and bound <= since)
        assert self.dirty.since_s() == since
        before_s = self.now_s - age
        due = sorted(since for _, since in self.want.values() if since <= before_s)
        found = self.dirty.oldest(before_s, most).tolist()
        assert len(set(found)) == len(found), "each once"
        assert [self.want[slot][1] for slot in found] == due[:most], "those that wait for longest"


OPERATIONS = st.tuples(
    st.sampled_from(["poll", "poll", "save", "leave"]), st.lists(st.integers(0, STREAMS - 1), min_size=1, max_size=8)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(OPERATIONS, st.integers(0, 5), st.integers(0, 4)), max_size=30))
def test_what_is_dirty_and_since_when(steps):
    model = Model()
    for (operation, streams), most, age in steps:
        getattr(model, operation)(streams)
        model.check(most, float(age))


def test_only_the_first_record_after_a_snapshot_counts():
    model = Model()
    model.poll([0, 0, 1, 0])
    assert model.dirty.lowest() == 0
    model.save([0])
    assert model.dirty.lowest() == 2
    model.poll([0])
    assert model.dirty.lowest() == 2
    model.save([1])
    assert model.dirty.lowest() == 4


def test_who_ends_or_is_being_saved_is_not_taken_but_holds_r():
    model = Model()
    model.poll([0, 1, 2])
    model.slots.saving[model.stream[0]] = True
    model.slots.ending[model.stream[1]] = True
    assert model.dirty.oldest(9.0, 9).tolist() == [model.stream[2]]
    assert model.dirty.lowest() == 0
    assert model.dirty.since_s() == 1.0


def test_a_stream_that_is_written_to_all_the_time_keeps_nobody_else_from_being_saved():
    """Records of hot streams lie behind their neighbours': they hold R, and are saved often."""
    model = Model()
    model.next = 1000
    model.poll([5])  # dirty since 1.0
    waits = model.stream[5]
    for turn in range(10):
        model.next = 2 * turn
        hot = turn % 2
        model.save([hot])
        model.poll([hot])
        due = model.dirty.oldest(model.now_s - 3, 10).tolist()
        assert (waits in due) == (model.now_s >= 4)


def test_a_slot_that_went_to_another_partitions_stream_is_that_ones():
    """Its first dirty record may even have the same offset there."""
    slots = Slots(1, 0, 0)
    mine, other = Dirty(slots), Dirty(slots)
    slot = slots.take(0, b"mine")
    mine.mark(array(slot), array(5), 1.0)
    slots.release([slot])
    assert slots.take(1, b"other") == slot
    other.mark(array(slot), array(5), 2.0)
    assert mine.lowest() is None
    assert mine.since_s() is None
    assert len(mine.oldest(9.0, 9)) == 0
    assert (other.lowest(), other.since_s()) == (5, 2.0)
