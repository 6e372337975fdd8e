"""What runs next, over columns. Pure: no clock, no I/O, no state.

- S1. One call of a stream in flight at a time: inside a poll a slot's steps stand in calls that run one after another
  on the same engine thread (slot modulo threads), and polls of a thread run in order.
- S2. A poll leaves when the engine is free; that is the worker's to hold. Here: ``max_batch`` caps a call.
- S3. Polls finish in the order they came; ``share`` gives every partition its part of a poll, the rest goes round.
- S4. Several steps of one stream run as one call over the time axis where the contract has one.
- S5. A generating stream feeds itself: its step comes as one more step of the poll, after those of the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.columns import I64, Rectangle


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may be: B at most ``batch``, T times B at most ``steps``, T at most ``time`` (1: no time axis)."""

    batch: int = 256
    steps: int = 2048
    time: int = 64


def plan(slots: I64, limits: Limits, threads: int = 1) -> list[list[Rectangle]]:
    """Steps of a poll -> the calls of each engine thread, in the order they must run.

    ``slots`` int64 ``[n]``: the slot of each step; a slot's steps stand in their own order. Every step is in exactly
    one rectangle, nothing is padded, slots ascend inside a call (kinder to the TLB).
    """
    if not len(slots):
        return [[] for _ in range(threads)]
    order, distinct, start, count = _by_slot(slots)
    if threads == 1:
        return [_rectangles(order, distinct, start, count, limits)]
    lanes = distinct % threads
    out = []
    for thread in range(threads):
        mine = lanes == thread
        out.append(_rectangles(order, distinct[mine], start[mine], count[mine], limits))
    return out


def _by_slot(slots: I64) -> tuple[I64, I64, I64, I64]:
    """Positions sorted by slot (stable); per distinct slot its start in them and its number of steps."""
    order = np.argsort(slots, kind="stable").astype(np.int64, copy=False)
    ordered = slots[order]
    start = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))).astype(np.int64)
    return order, ordered[start], start, np.diff(np.append(start, len(slots)))


def _rectangles(order: I64, slots: I64, start: I64, count: I64, limits: Limits) -> list[Rectangle]:
    """Streams whose backlog is within twice of each other run together, T the least of them; the rest goes round."""
    out: list[Rectangle] = []
    if count.max(initial=0) == 1:  # the usual small poll: nothing to sort
        size = min(limits.batch, limits.steps)
        for i in range(0, len(slots), size):
            out.append(Rectangle(slots[i : i + size], order[start[i : i + size]][None]))
        return out
    start, count = start.copy(), count.copy()
    live = np.arange(len(slots))
    longest_call = min(limits.time, limits.steps)
    while len(live):
        live = live[np.argsort(-count[live], kind="stable")]
        backlog = count[live]
        i, n = 0, len(live)
        while i < n:
            longest = min(int(backlog[i]), longest_call)
            j = min(i + min(limits.batch, max(1, limits.steps // longest)), n)
            if backlog[j - 1] * 2 < longest:
                near = np.searchsorted(-backlog[i:j], -((longest + 1) // 2), side="right")
                j = i + max(1, int(near))
            t = min(int(backlog[j - 1]), longest_call)
            group = np.sort(live[i:j])
            out.append(Rectangle(slots[group], order[start[group][None] + np.arange(t)[:, None]]))
            start[group] += t
            count[group] -= t
            i = j
        live = live[count[live] > 0]
    return out


def share(backlogs: Sequence[int], budget: int) -> list[int]:
    """Steps waiting per partition -> steps each may give to the next poll; together at most ``budget``.

    Max-min fair (S3): no partition gets less than another that wanted no more; what small ones leave goes to others.
    """
    granted = [0] * len(backlogs)
    waiting = sorted(range(len(backlogs)), key=lambda p: backlogs[p])
    left = budget
    for seen, p in enumerate(waiting):
        granted[p] = min(backlogs[p], left // (len(waiting) - seen))
        left -= granted[p]
    return granted
