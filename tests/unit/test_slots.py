"""Slots: a new tenant finds nothing of the last one."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engine.graph import FIRST
from pipeline.errors import SlotsExhausted
from pipeline.streams.slots import CLEAN, Index, Slots


def test_a_slot_is_clean_for_its_next_stream():
    slots = Slots(1, 4, 3)
    slot = slots.take(0, b"a")
    serial = slots.serial[slot]
    slots.codec[slot], slots.head[slot], slots.applied[slot] = 1, 2, 3
    slots.fresh[slot], slots.busy[slot] = False, True
    slots.ending[slot], slots.saving[slot], slots.dirty[slot], slots.poll[slot] = True, True, 4, 5
    slots.release([slot])
    assert slots.take(5, b"b") == slot
    assert not slots.codec[slot].any()
    assert not slots.head[slot].any()
    assert (slots.applied[slot], slots.partition[slot], slots.keys[slot]) == (-1, 5, b"b")
    assert slots.fresh[slot]
    assert not any(column[slot] for column in (slots.busy, slots.ending, slots.saving))
    assert (slots.dirty[slot], slots.poll[slot]) == (CLEAN, 0)
    assert slots.serial[slot] > serial, "tenants are told apart"


def test_the_engines_own_slots_are_never_given():
    slots = Slots(3, 0, 0)
    assert sorted(slots.take(0, b"%d" % i) for i in range(3)) == [FIRST, FIRST + 1, FIRST + 2]
    with pytest.raises(SlotsExhausted, match="all 3 slots are taken; raise slots"):
        slots.take(0, b"more")


def test_a_look_up_gives_what_fits_from_the_front():
    slots = Slots(2, 0, 0)
    index = Index(slots, 0)
    found = slots.lookup(index, [b"a", b"b", b"a", b"c", b"a"])
    assert found.tolist() == [index[b"a"], index[b"b"], index[b"a"]]
    assert b"c" not in index


def test_many_streams_at_once_take_the_same_slots_as_one_by_one():
    one, all_ = Slots(9, 4, 3), Slots(9, 4, 3)
    keys = [b"%d" % i for i in range(5)]
    indexes = [Index(one, 1), Index(all_, 1)]
    for slots in (one, all_):
        old = [slots.take(0, b"old-%d" % i) for i in range(7)]
        for column in (slots.codec, slots.head, slots.applied, slots.poll, slots.dirty):
            column[:] = 7
        for column in (slots.busy, slots.ending, slots.saving):
            column[:] = True
        slots.fresh[:] = False
        slots.release(old[2:6])
    expected = one.lookup(indexes[0], keys)
    found = all_.take_all(indexes[1], 1, keys)
    assert found.tolist() == expected.tolist()
    assert dict(indexes[1]) == dict(indexes[0])
    kept, other = vars(one), vars(all_)
    for name, column in kept.items():
        same = (column == other[name]).all() if isinstance(column, np.ndarray) else column == other[name]
        assert same, name
    assert all_.take_all(indexes[1], 1, []).tolist() == []
    assert all_.free == one.free == 1
