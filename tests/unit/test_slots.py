"""Slots: a new tenant finds nothing of the last one."""

from __future__ import annotations

import pytest

from pipeline.engine.graph import FIRST
from pipeline.errors import SlotsExhausted
from pipeline.streams.slots import Index, Slots


def test_a_slot_is_clean_for_its_next_stream():
    slots = Slots(1, 4, 3)
    slot = slots.take(0, b"a")
    serial = slots.serial[slot]
    slots.codec[slot], slots.head[slot], slots.applied[slot] = 1, 2, 3
    slots.fresh[slot], slots.busy[slot] = False, True
    slots.release([slot])
    assert slots.take(5, b"b") == slot
    assert not slots.codec[slot].any()
    assert not slots.head[slot].any()
    assert (slots.applied[slot], slots.partition[slot], slots.keys[slot]) == (-1, 5, b"b")
    assert slots.fresh[slot]
    assert not slots.busy[slot]
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
