"""Offsets that are done, as runs: against Python's sets. And what stands beside a committed offset."""

from __future__ import annotations

import base64
import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import Committed
from pipeline.errors import Broken
from pipeline.mark import (
    DONE_BYTES_MAX,
    FOR_EVER,
    MARK_BYTES_MAX,
    Mark,
    Progress,
    Run,
    Topics,
    Verdict,
    contains,
    own_rule,
    runs_of,
    stable_tag,
    without,
)

TAG, DIGEST = b"t" * 16, b"12345678"
OFFSETS = st.sets(st.integers(0, 40))
"""Few and small: runs touch, overlap and contain each other."""


def runs(offsets: set[int]) -> tuple[Run, ...]:
    return runs_of(np.array(sorted(offsets), np.int64))


def offsets_of(some: list[Run] | tuple[Run, ...], until: int = 100) -> set[int]:
    for (_, end), (first, _) in itertools.pairwise(some):
        assert end < first, "apart from each other, ascending"
    assert all(first < end for first, end in some), "none is empty"
    return {o for first, end in some for o in range(max(0, first), min(end, until))}


def sets_of(progress: Progress, until: int) -> set[int]:
    """What is done, as a set."""
    waiting = {o for first, end in progress.gaps for o in range(first, end)}
    return {o for o in range(min(progress.next, until)) if o not in waiting}


@given(OFFSETS)
def test_runs_are_the_offsets(offsets):
    assert offsets_of(runs(offsets)) == offsets


@given(OFFSETS, OFFSETS)
def test_runs_less_others_are_the_difference(one, other):
    assert offsets_of(without(runs(one), runs(other))) == one - other


@given(OFFSETS, OFFSETS)
def test_what_is_within_runs(some, asked):
    order = np.array(sorted(asked, key=lambda o: o * 7 % 11), np.int64)
    assert set(order[contains(runs(some), order)].tolist()) == some & asked


@given(st.integers(0, 40), OFFSETS, st.integers(0, 40), OFFSETS)
def test_c_and_d_are_those_of_sets(next_offset, waiting, committed, above):
    """Progress since a takeover, with what was done before it."""
    waiting = {o for o in waiting if o < next_offset}
    progress = Progress(next_offset, runs(waiting))
    done = set(range(next_offset)) - waiting
    first = min(set(range(101)) - done)
    assert progress.low == first
    assert offsets_of(progress.done_above) == {o for o in done if o > first}
    # What the takeover read: all below C, and D above it.
    before = set(range(committed)) | {o for o in above if o > committed}
    mark = Mark(TAG, committed, 0, DIGEST, runs({o for o in before if o > committed}))
    both = progress.and_done(mark.done)
    all_done = done | before
    first = min(set(range(101)) - all_done)
    assert both.low == first, "C"
    assert offsets_of(both.done_above) == {o for o in all_done if o > first}, "D"
    assert sets_of(both, 100) == all_done


@given(st.sets(st.integers(0, 3000), max_size=1600), st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_what_fits_can_be_written_and_comes_back(waiting, start):
    gaps = tuple((a + start, b + start) for a, b in runs(waiting))
    progress = Progress(3001 + start, gaps)
    mark = Mark(TAG, progress.low, 0, DIGEST, progress.done_above)
    if progress.fits:
        text = mark.encode()
        assert len(text) <= MARK_BYTES_MAX
        assert Mark.decode(text) == mark
    else:
        with pytest.raises(Broken):
            mark.encode()


def test_as_much_of_d_fits_as_there_is_room_for():
    """Each run above C takes two bytes: a distance and a length, both below 128."""
    most = DONE_BYTES_MAX // 2
    every_other = tuple((o, o + 1) for o in range(0, 2 * most + 2, 2))
    assert Progress(2 * most + 1, every_other[:-1]).fits
    assert not Progress(2 * most + 3, every_other).fits
    full = Progress(2 * most + 1, every_other[:-1])
    assert len(full.done_above) == most
    assert MARK_BYTES_MAX - 8 < len(Mark(TAG, full.low, 0, DIGEST, full.done_above).encode()) <= MARK_BYTES_MAX


@pytest.mark.parametrize("cut", [0, 1, 5, 40, 43, 52, 58, 61])
def test_metadata_that_is_cut_off_is_no_mark(cut):
    raw = base64.b64decode(Mark(TAG, 5, 5, DIGEST, ((7, 300), (900, 901))).encode())
    assert Mark.decode(base64.b64encode(raw[:cut]).decode()) is None


def test_a_mark_of_the_version_before_says_all_but_of_which_input_it_is():
    raw = struct.pack("<B16sqqH8s8s", 2, TAG, 5, 4, 1, DIGEST, b"snapshot") + bytes([2, 3])
    topics = Topics(b"snapshot", bytes(8))
    assert Mark.decode(base64.b64encode(raw).decode()) == Mark(TAG, 5, 4, DIGEST, ((7, 10),), 2, topics)
    assert not topics.others(Topics(b"snapshot", b"whatever"))


def test_of_a_newer_version_only_the_version_is_believed():
    raw = bytearray(base64.b64decode(Mark(TAG, 5, 5, DIGEST).encode()))
    raw[0] = 99
    newer = Mark.decode(base64.b64encode(bytes(raw) + b"whatever").decode())
    assert newer is not None
    assert (newer.version, newer.done_above) == (99, ())


def test_all_that_is_done_begins_before_every_offset():
    mark = Mark(TAG, 5, 5, DIGEST, ((7, 9),))
    assert contains(mark.done, np.array([-1, 0, 4, 5, 6, 7, 8, 9])).tolist() == [
        *(True, True, True),
        *(False, False),
        *(True, True),
        False,
    ]
    assert mark.done[0][0] == -FOR_EVER


# ---- the own rule

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


@pytest.mark.parametrize(
    ("base", "frozen", "stable", "verdict"),
    [
        (A, None, A, Verdict.KEEP),
        (A, B, A, Verdict.KEEP),
        (A, B, B, Verdict.PROMOTE),
        (A, None, B, Verdict.DROP),
        (A, B, C, Verdict.DROP),
        (A, B, None, Verdict.DROP),
        (A, None, None, Verdict.DROP),
        (None, None, None, Verdict.KEEP),
        (None, B, None, Verdict.KEEP),
        (None, B, B, Verdict.PROMOTE),
        (None, None, A, Verdict.DROP),
        (None, B, A, Verdict.DROP),
    ],
)
def test_memory_is_valid_iff_the_stable_tag_is_its_base_or_its_frozen_parts(base, frozen, stable, verdict):
    assert own_rule(base, frozen, stable) is verdict


def test_an_offset_that_another_tool_has_set_is_nobodys():
    assert stable_tag(None) is None
    assert stable_tag(Committed(5, Mark(TAG, 5, 5, DIGEST).encode())) == TAG
    moved, blank = stable_tag(Committed(5, "")), stable_tag(Committed(6, ""))
    assert moved is not None
    assert moved not in (TAG, blank)
    assert own_rule(moved, None, moved) is Verdict.KEEP
    assert own_rule(moved, None, blank) is Verdict.DROP
