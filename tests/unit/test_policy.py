"""Which streams are saved when nothing makes them: none dirty for longer than the interval, unless the cap wins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import Membership
from pipeline.partition import Memory
from pipeline.policy import BURST_S, LOOK_S, ROWS_MIN, SnapshotPolicy
from pipeline.streams.slots import CLEAN, Index, Slots
from pipeline.streams.tier import Tier

ROW_BYTES = 100


class Streams:
    """Partitions whose streams become dirty, and are clean as soon as they are due."""

    def __init__(self, interval_s: float, bytes_per_s: float, streams: int = 400, partitions: int = 2) -> None:
        self.slots = Slots(streams * partitions, 0, 0)
        tier = Tier(1, 1024, None)
        self.memories = [
            Memory(p, Membership("g", 1, "m"), b"t" * 16, 0, 0, Index(self.slots, p), self.slots, tier)
            for p in range(partitions)
        ]
        self.policy = SnapshotPolicy(interval_s, bytes_per_s, ROW_BYTES)
        self.offset = 0
        self.since: dict[int, float] = {}
        """Slot -> since when it is dirty."""

    def record(self, partition: int, stream: int, now_s: float) -> None:
        memory = self.memories[partition]
        slot = self.slots.lookup(memory.index, [b"%d" % stream])
        memory.dirty.mark(slot, np.array([self.offset]), now_s)
        self.offset += 1
        self.since.setdefault(int(slot[0]), now_s)

    def look(self, now_s: float, *, everything: bool = False) -> list[float]:
        """Since when those that are due were dirty; they are saved."""
        found = []
        for memory, slots in self.policy.due(self.memories, now_s, everything=everything):
            assert (self.slots.partition[slots] == memory.partition).all()
            found += [self.since.pop(slot) for slot in slots.tolist()]
            self.slots.dirty[slots] = CLEAN
        return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20), st.floats(0.0, 3.0)), max_size=40),
    st.floats(0.5, 5.0),
)
def test_no_stream_stays_dirty_for_longer_than_the_interval(records, interval_s):
    streams = Streams(interval_s, 1e9)
    now_s = 100.0
    for partition, stream, pause in records:
        streams.record(partition, stream, now_s)
        end = now_s + pause
        while now_s < end:
            now_s += 2 * LOOK_S
            for since in streams.look(now_s):
                assert interval_s <= now_s - since <= interval_s + 3 * LOOK_S, "as late as may be, and no later"
        assert all(now_s - since <= interval_s + 3 * LOOK_S for since in streams.since.values())


def test_the_cap_wins_over_the_interval_and_those_that_are_dirty_for_longest_go_first():
    rate = 50 * ROW_BYTES
    streams = Streams(1.0, rate)
    for i in range(300):
        streams.record(i % 2, i, 100.0 + i / 1000)
    now_s, found = 102.0, []
    while streams.since:
        before = len(found)
        found += streams.look(now_s)
        assert len(found) <= ROWS_MIN + (now_s - 102.0) * 50 + 1, "a burst, and then the rate"
        if len(found) > before + 1:
            assert before == 0, "what is saved up is a burst"
        now_s += 0.02
        assert now_s < 120.0
    assert now_s - 102.0 == pytest.approx((300 - ROWS_MIN) / 50, rel=0.05)
    for p in range(2):
        mine = [since for since in found if round((since - 100) * 1000) % 2 == p]
        assert mine == sorted(mine)


def test_an_idle_hour_saves_up_no_more_than_a_burst():
    streams = Streams(1.0, 1000 * ROW_BYTES)
    streams.look(0.0)
    for i in range(300):
        streams.record(i % 2, i, 3600.0)
    assert len(streams.look(3602.0)) == BURST_S * 1000


def test_before_an_orderly_end_everything_is_saved_at_once_whatever_the_cap():
    streams = Streams(1e6, 1.0)
    for i in range(300):
        streams.record(i % 2, i, 100.0)
    assert streams.look(100.0) == []
    looks = 0
    while streams.since:
        assert streams.look(100.0, everything=True)
        looks += 1
    assert looks <= 300 // ROWS_MIN + 1


def test_nothing_is_ever_due_where_every_poll_saves_all():
    streams = Streams(0.0, 1e9)
    streams.record(0, 1, 0.0)
    assert streams.look(1e6) == []
    assert streams.look(1e6, everything=True) == []
    assert streams.policy.next_s(streams.memories) is None


def test_it_says_when_to_look_again():
    streams = Streams(5.0, 1e9)
    assert streams.policy.next_s(streams.memories) is None
    streams.record(1, 7, 100.0)
    streams.record(0, 8, 101.0)
    assert streams.policy.next_s(streams.memories) == 105.0
    assert streams.look(104.9) == []
    assert streams.look(105.0) == [100.0]
    assert streams.policy.next_s(streams.memories) == 106.0
    streams.slots.saving[streams.memories[0].index[b"8"]] = True
    assert streams.look(107.0) == []
    assert streams.policy.next_s(streams.memories) == 107.0 + LOOK_S, "not at once: it would not come to rest"
