"""A partition's memory: what a commit holds, and what it never holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import Membership, Records, Segment
from pipeline.errors import Broken
from pipeline.mark import MARK_VERSION, Mark, Progress, Tags
from pipeline.partition import Done, Memory
from pipeline.streams.slots import CLEAN, Index, Slots
from pipeline.streams.snapshots import Snapshots
from pipeline.streams.tier import Tier

DIGEST = b"12345678"
TAGS = Tags(b"process1")
ASKED_MS = np.array([1_700_000_000_000])
"""Of the records that a poll made done."""


def memory(base: bytes | None = b"t" * 16, committed: int = 0) -> tuple[Memory, Slots]:
    slots = Slots(8, 0, 0)
    tier = Tier(1, 1024, None)
    return Memory(0, Membership("g", 1, "m"), base, committed, committed, Index(slots, 0), slots, tier), slots


def snapshots(live: dict[bytes, tuple[int, int]] | None = None, ended: dict[bytes, tuple[int, int]] | None = None):
    """Key -> (serial, A)."""
    live, ended = live or {}, ended or {}
    return Snapshots(
        np.array([s for s, _ in live.values()], np.int64),
        list(live),
        np.array([a for _, a in live.values()], np.int64),
        np.array([[s] for s, _ in live.values()], np.uint8).reshape(len(live), 1),
        list(ended),
        np.array([a for _, a in ended.values()], np.int64),
    )


def done(next_offset: int, *keys: bytes, snaps: Snapshots | None = None) -> Done:
    outputs = Records(list(keys), np.zeros((len(keys), 3), np.uint8), np.zeros(len(keys), np.int64))
    return Done(Progress(next_offset), outputs, Records.none(), snaps if snaps is not None else snapshots(), ASKED_MS)


def identity(records: Records) -> Records:
    return records


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 2**31)), max_size=20),
)
def test_the_mark_comes_back_as_it_was_written(tag, committed, replay_from, runs):
    at, done = committed, []
    for gap, length in runs:
        done.append((at + 1 + gap, at + 1 + gap + length))
        at = done[-1][1]
    mark = Mark(tag, committed, replay_from, DIGEST, tuple(done))
    assert Mark.decode(mark.encode()) == mark


@pytest.mark.parametrize("text", ["", "consumer-1", "AAAA", "!!!!", "ÿ"])
def test_foreign_metadata_is_no_mark(text):
    assert Mark.decode(text) is None


def test_a_part_holds_all_finished_polls_and_the_last_ones_offset():
    m, _ = memory()
    m.finished(done(3, b"a", b"b", snaps=snapshots({b"a": (1, 1), b"b": (2, 2)})), 0)
    m.finished(done(5, b"a", snaps=snapshots({b"a": (1, 4)})), 0)
    part = m.freeze(TAGS.next(), DIGEST, 99, identity)
    assert part is not None
    assert part.committed == 5
    assert list(part.outputs.keys) == [b"a", b"b", b"a"]
    assert len(part.asked_ms) == 2, "one of each poll"
    assert list(part.snapshots.keys) == [b"b", b"a"], "one snapshot a stream"
    mark = Mark.decode(part.metadata)
    assert mark == Mark(part.tag, 5, 5, DIGEST), "R = C (X6)"
    applied = [int.from_bytes(bytes(v[16:24]), "little") for v in part.snapshots.values]
    assert applied == [2, 4], "the newest of each (X5)"


def test_a_stream_that_ended_and_began_again_has_its_new_row_after_its_end():
    m, _ = memory()
    m.finished(done(3, snaps=snapshots({b"a": (1, 1)})), 0)
    m.finished(done(4, snaps=snapshots(ended={b"a": (1, 3)})), 0)
    m.finished(done(6, snaps=snapshots({b"a": (7, 5)})), 0)
    part = m.freeze(TAGS.next(), DIGEST, 99, identity)
    assert part is not None
    values = part.snapshots.values
    rows = [bytes(v) for v in values if v is not None]
    assert list(part.snapshots.keys) == [b"a", b"a"]
    assert [len(r) for r in rows] == [32, 33], "the end, an empty snapshot, comes first"
    assert rows[1][32] == 7


def test_a_stream_that_ended_leaves_no_row():
    m, _ = memory()
    m.finished(done(3, snaps=snapshots({b"a": (1, 1), b"b": (2, 2)})), 0)
    m.finished(done(4, snaps=snapshots(ended={b"a": (1, 3)})), 0)
    part = m.freeze(TAGS.next(), DIGEST, 99, identity)
    assert part is not None
    assert list(part.snapshots.keys) == [b"a", b"b"]


def test_a_stream_that_left_the_arena_came_back_and_ended_leaves_no_row():
    """It had another slot at its end than when its row was saved, and so another serial."""
    m, _ = memory()
    m.finished(done(3, snaps=snapshots({b"a": (1, 1), b"b": (2, 2)})), 0)
    m.finished(done(5, snaps=snapshots(ended={b"a": (7, 4)})), 0)
    m.finished(done(8, snaps=snapshots({b"b": (8, 6)}, ended={b"b": (8, 7)})), 0)
    part = m.freeze(TAGS.next(), DIGEST, 99, identity)
    assert part is not None
    assert list(part.snapshots.keys) == [b"a", b"b"]
    assert [len(v) for v in part.snapshots.values if v is not None] == [32, 32], "ends alone"


def test_one_part_at_a_time_and_it_stays_as_it_is():
    m, _ = memory()
    m.finished(done(3, b"a"), 0)
    part = m.freeze(TAGS.next(), DIGEST, 0, identity)
    m.finished(done(4, b"a"), 0)
    with pytest.raises(Broken):
        m.freeze(TAGS.next(), DIGEST, 0, identity)
    assert m.frozen is not None
    assert m.frozen.part is part
    assert part is not None
    m.saved(part)
    assert (m.base, m.committed) == (part.tag, 3)
    assert m.freeze(TAGS.next(), DIGEST, 0, identity) is not None


def test_saving_another_part_than_the_frozen_one_is_a_bug_that_shows():
    m, _ = memory()
    m.finished(done(3, b"a"), 0)
    part = m.freeze(TAGS.next(), DIGEST, 0, identity)
    assert part is not None
    m.saved(part)
    with pytest.raises(Broken):
        m.saved(part)


def test_c_never_falls():
    m, _ = memory(committed=10)
    m.finished(done(9), 0)
    with pytest.raises(Broken, match="C would fall from 10 to 9"):
        m.freeze(TAGS.next(), DIGEST, 0, identity)


def test_nothing_new_makes_no_part_but_a_new_group_commits_its_start():
    m, _ = memory(committed=4)
    m.finished(done(4), 0)
    assert m.freeze(TAGS.next(), DIGEST, 0, identity) is None
    new, _ = memory(base=None, committed=4)
    new.finished(done(4), 0)
    part = new.freeze(TAGS.next(), DIGEST, 0, identity)
    assert part is not None
    assert part.committed == 4


def test_what_d_has_no_room_for_waits_until_the_gaps_below_it_are_filled():
    m, _ = memory()
    gaps = tuple((o, o + 1) for o in range(0, 6000, 2))
    too_much = replace(done(6000, b"a"), progress=Progress(6000, gaps))
    m.finished(too_much, 0)
    assert m.freeze(TAGS.next(), DIGEST, 0, identity) is None
    m.finished(replace(done(6000, b"b"), progress=Progress(6000, gaps[-10:])), 0)
    part = m.freeze(TAGS.next(), DIGEST, 0, identity)
    assert part is not None
    assert list(part.outputs.keys) == [b"a", b"b"]
    mark = Mark.decode(part.metadata)
    assert mark is not None
    assert len(mark.done_above) == 10
    assert part.committed == 5980


def test_tags_are_unique_and_carry_the_process():
    tags = Tags(b"incarnat")
    seen = {tags.next() for _ in range(1000)}
    assert len(seen) == 1000
    assert all(t.startswith(b"incarnat") and len(t) == 16 for t in seen)


def test_bytes_are_counted_in_and_out():
    m, _ = memory()
    segment = Segment(0, [b"a"] * 10, [b"xyz"] * 10, np.arange(10), np.zeros(10, np.int64), 10, None, 30)
    m.offer(segment)
    assert m.backlog_bytes > 30
    first = m.take(6, 1, 100)
    assert first is not None
    assert len(first) == 2, "three steps a record, six steps wanted"
    m.give_back(first)
    while (taken := m.take(1000, 1, 4)) is not None:
        assert len(taken) <= 4
    assert m.backlog_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=8), st.integers(1, 40), st.integers(1, 12))
def test_what_is_taken_goes_over_segments_up_to_the_budget_and_loses_nothing(stretches, budget, records_max):
    m, _ = memory()
    at, sizes = 0, []
    for n, size in stretches:
        values = [b"x" * size] * n
        m.offer(
            Segment(
                0,
                [b"%d" % i for i in range(at, at + n)],
                values,
                np.arange(at, at + n),
                np.arange(at, at + n),
                at + n + 1,
                None,
                n * size,
            )
        )
        at += n + 1
        sizes += [size] * n
    seen: list[bytes] = []
    while (taken := m.take(budget, 1, records_max)) is not None:
        n = len(taken)
        assert n <= records_max
        assert sum(sizes[len(seen) : len(seen) + n]) <= budget or n == 1, "more than one record only within the budget"
        assert taken.value_bytes == sum(map(len, taken.values))
        assert taken.keys == [b"%d" % o for o in taken.offsets]
        assert taken.offsets.tolist() == taken.timestamps.tolist()
        assert not n or taken.next_offset > taken.offsets[-1]
        seen += taken.keys
    assert len(seen) == len(sizes)
    assert m.backlog_bytes == 0


def test_slots_of_dropped_memory_come_free_with_the_last_run_that_has_them():
    m, slots = memory()
    slots.lookup(m.index, [b"a", b"b"])
    m.in_flight = 1
    m.close()
    assert slots.used == 2
    m.in_flight = 0
    m.release_if_idle()
    assert slots.used == 0


def test_the_metadata_has_a_version():
    assert Mark(b"t" * 16, 1, 1, DIGEST).version == MARK_VERSION


# ---- forgetting (X12)


class Life:
    """One partition's streams, each record a poll of its own; every part is committed at once."""

    def __init__(self) -> None:
        self.m, self.slots = memory()
        self.offset = 0

    def record(self, key: bytes) -> None:
        """Applied, and in no snapshot yet."""
        slot = self.slots.lookup(self.m.index, [key])
        self.slots.applied[slot] = self.offset
        self.m.dirty.mark(slot, np.array([self.offset]), 0.0)
        self.offset += 1
        self.m.finished(done(self.offset), 0)

    def snapshot(self, key: bytes) -> None:
        slot = self.m.index[key]
        self.slots.dirty[slot] = CLEAN
        row = snapshots({key: (int(self.slots.serial[slot]), int(self.slots.applied[slot]))})
        self.m.finished(replace(self.m.nothing_done(), snapshots=row), 0)

    def admit_end(self, key: bytes) -> int:
        """The record that ends it is in flight."""
        slot = self.m.index.pop(key)
        self.slots.ending[slot] = True
        self.offset += 1
        return slot

    def end(self, key: bytes) -> None:
        self.finish_end(key, self.admit_end(key))

    def finish_end(self, key: bytes, slot: int) -> None:
        self.slots.dirty[slot] = CLEAN
        gone = snapshots(ended={key: (int(self.slots.serial[slot]), self.offset - 1)})
        self.m.finished(done(self.offset, snaps=gone), 0)
        self.slots.release([slot])

    def commit(self) -> tuple[int, dict[bytes, bytes | None]]:
        """R, and what the part leaves in the changelog."""
        part = self.m.freeze(TAGS.next(), DIGEST, 0, identity)
        if part is None:
            return self.m.replay_from, {}
        self.m.saved(part)
        mark = Mark.decode(part.metadata)
        assert mark is not None
        values = part.snapshots.values
        return mark.replay_from, {k: None if v is None else bytes(v) for k, v in zip(part.snapshots.keys, values)}


def test_an_ended_stream_is_forgotten_in_the_first_part_that_no_replay_of_it_can_follow():
    life = Life()
    life.record(b"slow")
    life.record(b"a")
    life.end(b"a")
    _, left = life.commit()
    assert len(left[b"a"]) == 32, "an empty snapshot, A being its end"
    life.record(b"b")
    assert life.commit() == (0, {}), "a replay would come to a's records"
    life.snapshot(b"slow")
    r, left = life.commit()
    assert r == 3
    assert left[b"a"] is None
    life.snapshot(b"b")
    assert b"a" not in life.commit()[1], "once"
    assert life.m.ended == {}


def test_a_stream_that_began_again_is_not_forgotten_also_not_while_it_ends_again():
    life = Life()
    life.record(b"slow")
    life.record(b"a")
    life.end(b"a")
    life.commit()
    life.record(b"a")
    life.snapshot(b"a")
    life.commit()
    slot = life.admit_end(b"a")
    life.snapshot(b"slow")
    r, left = life.commit()
    assert r == 4, "it has passed the first end"
    assert b"a" not in left, "the changelog's newest is the row of its second life"
    life.finish_end(b"a", slot)
    _, left = life.commit()
    assert len(left[b"a"]) == 32
    life.record(b"b")
    assert life.commit()[1] == {b"a": None}


def test_a_stream_that_began_again_before_its_end_was_saved_is_not_forgotten():
    life = Life()
    life.record(b"a")
    life.end(b"a")
    life.record(b"a")
    life.snapshot(b"a")
    _, left = life.commit()
    assert len(left[b"a"]) == 33
    assert life.m.ended == {}
    life.record(b"b")
    life.snapshot(b"b")
    assert b"a" not in life.commit()[1]


@pytest.mark.parametrize("where", ["arena", "tier"])
def test_a_stream_that_goes_on_is_not_forgotten_for_its_last_end(where):
    life = Life()
    life.record(b"slow")
    life.record(b"a")
    life.end(b"a")
    life.commit()
    life.record(b"a")
    if where == "tier":
        slot = life.m.index.pop(b"a")
        life.m.tier.put(0, [b"a"], np.array([3]), np.zeros((1, 1), np.uint8), np.array([0]))
        life.slots.release([slot])
    life.snapshot(b"slow")
    r, left = life.commit()
    assert r > 2, "no replay comes to that end"
    assert b"a" not in left


def test_an_expired_stream_is_forgotten_once_r_has_passed_it_and_stays_on_the_list_until_that_is_saved():
    life = Life()
    life.record(b"slow")
    life.record(b"a")
    life.snapshot(b"a")
    life.commit()
    slot = life.m.index.pop(b"a")
    life.m.expiring[b"a"] = 1
    life.slots.release([slot])
    life.record(b"b")
    assert life.commit() == (0, {})
    life.snapshot(b"slow")
    part = life.m.freeze(TAGS.next(), DIGEST, 0, identity)
    assert part is not None
    assert part.snapshots.values[part.snapshots.keys.index(b"a")] is None
    assert life.m.expiring == {b"a": 1}, "its next record waits for the outcome"
    life.m.saved(part)
    assert life.m.expiring == {}


def test_what_a_takeover_finds_ended_is_forgotten_too():
    m, slots = memory(committed=10)
    m = Memory(0, m.membership, m.base, 10, 10, m.index, slots, m.tier, ended={b"a": 3, b"b": 12})
    m.finished(done(11, b"x"), 0)
    part = m.freeze(TAGS.next(), DIGEST, 0, identity)
    assert part is not None
    assert dict(zip(part.snapshots.keys, part.snapshots.values)) == {b"a": None}
    m.saved(part)
    m.finished(done(13, b"x"), 0)
    part = m.freeze(TAGS.next(), DIGEST, 0, identity)
    assert part is not None
    assert dict(zip(part.snapshots.keys, part.snapshots.values)) == {b"b": None}
