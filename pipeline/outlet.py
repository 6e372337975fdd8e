"""From a finished run to what each partition may commit: the head answers, the answers are sorted by partition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.columns import I64, U8, Bools, Headers, Records, source_column
from pipeline.contract import Contract
from pipeline.engine.graph import SCRATCH
from pipeline.heads import NOTHING, Answered, Finished, Head
from pipeline.partition import Done, Memory
from pipeline.poll import Poll, Share
from pipeline.streams.slots import CLEAN, Slots
from pipeline.streams.snapshots import Snapshots, assemble

TRACE = "traceparent"
NOBODY = np.empty(0, np.int64)


class Outlet:
    """See the module. Runs on the event loop, without a clock and without I/O."""

    def __init__(
        self, contract: Contract, head: Head, slots: Slots, *, header_model: bool, header_source: bool
    ) -> None:
        self._head, self._slots = head, slots
        self._constant = (("eddy-model", contract.label.encode()),) if header_model else ()
        self._header_source = header_source

    def finish(self, poll: Poll, now_s: float) -> None:
        """The run is back without an error: answers go to their partitions' memories. Polls in order (S3). ``now_s``:
        seconds of the worker's clock."""
        n = len(poll.keys)
        answered = self._answer(poll)
        told = NOTHING
        if len(poll.fed):
            outputs = tuple(o[n:] for o in poll.run.outputs)
            names = [self._slots.keys[s] for s in poll.fed.tolist()]
            told = self._head.fed(poll.fed, names, outputs, self._slots.head)
        head_rows = self._slots.head[poll.saved]
        rows = assemble(poll.run.rows, poll.codec_rows, head_rows)
        any_ended = bool(poll.ended.any())
        going = self._still_generating(poll)
        self._settle(poll)
        for share in poll.shares:
            memory = share.memory
            memory.in_flight -= 1
            if memory.closed or share.problem is not None:
                memory.release_if_idle()
                self._release_ended(poll, share)
                continue
            if memory.blocked == "order":
                memory.blocked = None
            self._mark_dirty(poll, share, any_ended, now_s)
            outputs_of = self._records_out(poll, share, answered)
            if share.fed_b > share.fed_a:
                outputs_of = Records.join([outputs_of, self._fed_out(poll, share, told)])
            snapshots = self._snapshots(poll, share, rows, any_ended)
            asked_ms = poll.timestamps[share.a : share.b]
            active: I64 | None = None
            if going is not None:
                active = going[self._slots.partition[going] == memory.partition]
                if len(active):
                    memory.feedable.append(active)
            # Pieces of generations that all go on may wait for more of them.
            unhurried = share.a == share.b and (active is None or len(active) == share.fed_b - share.fed_a)
            dead = self._dead_out(poll, share)
            done = Done(share.progress, outputs_of, dead, snapshots, asked_ms, unhurried)
            memory.finished(done, share.input_bytes)
            self._release_ended(poll, share)

    def _settle(self, poll: Poll) -> None:
        """No row of the poll is in flight any more."""
        self._slots.finished = poll.number
        self._slots.saving[poll.saved] = False

    def _mark_dirty(self, poll: Poll, share: Share, any_ended: bool, now_s: float) -> None:
        """X6: records of streams that are not saved in this poll are in no snapshot yet."""
        mine, offsets = poll.slots[share.a : share.b], poll.offsets[share.a : share.b]
        if not poll.saves_all and len(mine):
            counts = mine != SCRATCH
            if any_ended:
                counts &= ~poll.ended[share.a : share.b]
            if not counts.all():
                mine, offsets = mine[counts], offsets[counts]
            if len(mine):
                # Who replays what was done before is dirty for longer than this worker knows.
                since_s = min(now_s, share.memory.dirty_since_s) if share.memory.replay else now_s
                share.memory.dirty.mark(mine, offsets, since_s)
        clean = self._slots.dirty
        clean[poll.saved[share.saved_a : share.saved_b]] = CLEAN
        if any_ended:
            clean[poll.slots[share.a : share.b][poll.ended[share.a : share.b]]] = CLEAN

    def abandon(self, poll: Poll) -> None:
        """The run failed: its rows are torn. The memories are closed by the caller before."""
        self._settle(poll)
        for share in poll.shares:
            share.memory.in_flight -= 1
            share.memory.release_if_idle()
            self._release_ended(poll, share)

    def restore(self, memory: Memory, slots: I64) -> None:
        """Streams that a takeover brought back: those that were generating go on."""
        self._slots.busy[slots] = False
        if self._head.generates and len(slots):
            active = slots[self._head.active(slots, self._slots.head)]
            self._slots.busy[active] = True
            if len(active):
                memory.feedable.append(active)

    def active(self, rows: U8) -> Bools:
        """Of the head's memory of some streams, ``uint8 [n, memory_bytes]``: which generate."""
        return self._head.active(np.arange(len(rows)), rows)

    def _release_ended(self, poll: Poll, share: Share) -> None:
        if poll.ended[share.a : share.b].any():
            gone = poll.slots[share.a : share.b][poll.ended[share.a : share.b]]
            self._slots.busy[gone] = False
            self._slots.release(gone.tolist())

    def _answer(self, poll: Poll) -> Answered:
        """The head's answers, their index being the record in the poll."""
        n = len(poll.keys)
        if not n:
            return NOTHING
        whole = poll.run.outputs
        if len(poll.fed):
            steps = n if self._head.keeps == "last" else poll.steps
            whole = tuple(o[:steps] for o in whole)
        if not poll.failed:
            finished = Finished(
                poll.slots, poll.counts, poll.keys, poll.offsets, poll.timestamps, poll.headers, whole, poll.ended
            )
            return self._head.answer(finished, self._slots.head)
        good = np.array([i for i in range(n) if i not in poll.failed], np.int64)
        picked = good.tolist()
        finished = Finished(
            poll.slots[good],
            poll.counts[good],
            [poll.keys[i] for i in picked],
            poll.offsets[good],
            poll.timestamps[good],
            [poll.headers[i] for i in picked] if poll.headers is not None else None,
            tuple(o[good] for o in whole) if self._head.keeps == "last" else whole,
            poll.ended[good],
        )
        answered = self._head.answer(finished, self._slots.head)
        answered.index = good[answered.index]
        return answered

    def _still_generating(self, poll: Poll) -> I64 | None:
        if not self._head.generates:
            return None
        mine = np.concatenate([poll.slots[~poll.ended], poll.fed])
        mine = mine[mine != SCRATCH]
        active = self._head.active(mine, self._slots.head)
        self._slots.busy[mine[~active]] = False
        going: I64 = mine[active]
        return going

    def _records_out(self, poll: Poll, share: Share, answered: Answered) -> Records:
        lo, hi = answered.index.searchsorted((share.a, share.b)).tolist()
        if lo == hi:
            return Records.none()
        index = answered.index[lo:hi]
        if poll.hidden is not None and poll.hidden[share.a : share.b].any():
            return self._shown_out(poll, share, answered, lo + np.flatnonzero(~poll.hidden[index]))
        # One answer for each record, unless one has several and another none.
        if hi - lo == share.b - share.a and (hi - lo < 2 or (index[1:] > index[:-1]).all()):
            keys, offsets = poll.keys[share.a : share.b], poll.offsets[share.a : share.b]
            timestamps = poll.timestamps[share.a : share.b]
        else:
            keys = [poll.keys[i] for i in index.tolist()]
            offsets, timestamps = poll.offsets[index], poll.timestamps[index]
        if answered.offsets is not None and answered.timestamps is not None:
            offsets, timestamps = answered.offsets[lo:hi], answered.timestamps[lo:hi]
        extra = answered.extra[lo:hi] if answered.extra is not None else None
        if poll.headers is not None:
            extra = _with_trace(extra, [poll.headers[i] for i in index.tolist()])
        return self._stamp(share, keys, answered.values[lo:hi], timestamps, offsets, extra)

    def _shown_out(self, poll: Poll, share: Share, answered: Answered, shown: I64) -> Records:
        """Those answers ``shown``, by their place: what was done before the takeover is out already (X8)."""
        picked = shown.tolist()
        values = answered.values
        some = Answered(
            answered.index[shown],
            values[shown] if isinstance(values, np.ndarray) else [values[j] for j in picked],
            [answered.extra[j] for j in picked] if answered.extra is not None else None,
            answered.offsets[shown] if answered.offsets is not None else None,
            answered.timestamps[shown] if answered.timestamps is not None else None,
        )
        return self._records_out(dataclasses.replace(poll, hidden=None), share, some)

    def _fed_out(self, poll: Poll, share: Share, told: Answered) -> Records:
        lo, hi = np.searchsorted(told.index, (share.fed_a, share.fed_b)).tolist()
        if lo == hi or told.offsets is None or told.timestamps is None:
            return Records.none()
        keys = [self._slots.keys[s] for s in poll.fed[told.index[lo:hi]].tolist()]
        extra = told.extra[lo:hi] if told.extra is not None else None
        return self._stamp(share, keys, told.values[lo:hi], told.timestamps[lo:hi], told.offsets[lo:hi], extra)

    def _stamp(
        self, share: Share, keys: list[bytes], values: Any, timestamps: I64, offsets: I64, extra: list[Headers] | None
    ) -> Records:
        source = (("eddy-source", source_column(share.memory.partition, offsets)),) if self._header_source else ()
        return Records(keys, values, timestamps, self._constant, source, extra)

    def _dead_out(self, poll: Poll, share: Share) -> Records:
        """Dead letters: the original bytes and headers, and why. Per record: they are few."""
        mine = [i for i in sorted(poll.failed) if share.a <= i < share.b] if poll.failed else []
        if poll.hidden is not None:
            mine = [i for i in mine if not poll.hidden[i]]
        if not mine:
            return Records.none()
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        extra: list[Headers] = []
        for i in mine:
            error, key, value = poll.failed[i]
            original = list(poll.headers[i]) if poll.headers is not None else []
            keys.append(key)
            values.append(value)
            extra.append([*original, ("eddy-error", error.reason.encode()), ("eddy-message", str(error).encode())])
        source = source_column(share.memory.partition, poll.offsets[mine])
        return Records(keys, values, poll.timestamps[mine], self._constant, (("eddy-source", source),), extra)

    def _snapshots(self, poll: Poll, share: Share, rows: U8, any_ended: bool) -> Snapshots:
        mine = slice(share.saved_a, share.saved_b)
        slots = poll.saved[mine]
        ended = np.flatnonzero(poll.ended[share.a : share.b]) + share.a if any_ended else NOBODY
        return Snapshots(
            self._slots.serial[slots],
            [self._slots.keys[s] for s in slots.tolist()],
            poll.applied[mine],
            rows[mine],
            [poll.keys[i] for i in ended.tolist()],
            poll.offsets[ended],
        )


def _with_trace(extra: list[Headers] | None, originals: list[Headers]) -> list[Headers] | None:
    """``traceparent`` is passed on where present."""
    traces = [[h for h in headers if h[0] == TRACE] for headers in originals]
    if not any(traces):
        return extra
    before: Sequence[Headers] = extra if extra is not None else [()] * len(traces)
    return [[*own, *trace] for own, trace in zip(before, traces)]
