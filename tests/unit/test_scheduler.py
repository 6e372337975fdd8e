"""What runs next: every promise of the scheduler, over any backlog."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.scheduler import Limits, plan, share

slots_of = st.lists(st.integers(2, 12), max_size=200).map(lambda s: np.array(s, np.int64))
limits_of = st.builds(Limits, batch=st.integers(1, 8), steps=st.integers(1, 40), time=st.integers(1, 9))


@given(slots_of, limits_of, st.integers(1, 3))
def test_every_step_runs_once_in_its_streams_order_on_one_thread(slots, limits, threads):
    calls = plan(slots, limits, threads)
    assert len(calls) == threads
    ran: list[int] = []
    for thread, rectangles in enumerate(calls):
        for r in rectangles:
            assert (r.slots % threads == thread).all(), "a slot runs on one thread only (S1)"
            assert (np.diff(r.slots) > 0).all(), "a slot stands once in a call, ascending (S1)"
            assert (slots[r.positions] == r.slots[None]).all(), "a column of a call is one stream"
            ran += r.positions.T.reshape(-1).tolist()
    assert sorted(ran) == list(range(len(slots))), "nothing lost, nothing twice"
    for slot in set(slots.tolist()):
        mine = [p for p in ran if slots[p] == slot]
        assert mine == sorted(mine), "a stream's steps run in order"


@given(slots_of, limits_of)
@example(np.array([2, 2, 2]), Limits(batch=8, steps=2, time=9))
def test_no_call_is_larger_than_its_limits(slots, limits):
    for r in plan(slots, limits)[0]:
        t, b = r.positions.shape
        assert t <= limits.time
        assert b <= limits.batch
        assert t * b <= limits.steps


@given(slots_of, limits_of)
def test_streams_of_one_call_have_backlogs_within_twice_of_each_other(slots, limits):
    left = {s: int((slots == s).sum()) for s in set(slots.tolist())}
    for r in plan(slots, limits)[0]:
        t = r.positions.shape[0]
        capped = [min(left[s], limits.time, limits.steps) for s in r.slots.tolist()]
        assert max(capped) <= 2 * t, "T is the least backlog, and no stream of the call had more than twice it"
        for s in r.slots.tolist():
            left[s] -= t


def test_equal_backlogs_make_one_call():
    slots = np.tile(np.arange(2, 102), 8)
    calls = plan(slots, Limits(batch=256, steps=2048, time=64))[0]
    assert [c.positions.shape for c in calls] == [(8, 100)]


@given(st.lists(st.integers(1, 1000), max_size=20), st.integers(0, 5000))
def test_shares_fit_the_budget_and_starve_nobody(backlogs, budget):
    granted = share(backlogs, budget)
    assert sum(granted) <= budget
    assert all(0 <= g <= b for g, b in zip(granted, backlogs))
    assert sum(granted) == min(budget, sum(backlogs)), "nothing of the budget is wasted while somebody waits"
    for g, b in zip(granted, backlogs):
        if g < b:
            assert g >= max(granted) - 1, "who wants more has as much as anybody (S3)"


@pytest.mark.parametrize("backlogs", [[], [5]])
def test_share_of_nobody_and_of_one(backlogs):
    assert share(backlogs, 3) == [3] * len(backlogs)
