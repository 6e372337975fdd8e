"""From fetched segments to a poll with its calls bound: slots (in placing.py), decode, plan.

Nothing here happens per record where an array will do; the exceptions (ended streams, dead letters, new prompts,
records that wait for others of their stream, a replay) are named at their place. Runs on the event loop, without a
clock and without I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.codecs import AheadCodec, Codec
from pipeline.codecs.given import Given
from pipeline.columns import I64, AnyArray, Bools, Headers, join_ahead
from pipeline.contract import Contract
from pipeline.engine import Engine
from pipeline.engine.graph import SCRATCH
from pipeline.errors import RecordError
from pipeline.heads import Head
from pipeline.mark import Progress, contains
from pipeline.order import Turn
from pipeline.partition import Memory
from pipeline.placing import Placing, Taken
from pipeline.poll import Poll, Share
from pipeline.residency import Residency
from pipeline.scheduler import Limits, plan
from pipeline.streams.slots import Slots


class Intake:
    """See the module."""

    def __init__(
        self,
        contract: Contract,
        codec: Codec,
        head: Head,
        engine: Engine,
        slots: Slots,
        residency: Residency,
        limits: Limits,
        record_bytes_max: int,
        *,
        saves_all: bool,
    ) -> None:
        """``saves_all``: every poll snapshots all streams that it advances."""
        self._contract, self._codec, self._head, self._engine = contract, codec, head, engine
        self._slots, self._limits = slots, limits
        self.placing = Placing(head, slots, residency, record_bytes_max)
        self.binds = head.choices != "none" or codec.choices != "none"
        """What is shown is a choice (X7)."""
        self._saves_all = saves_all or self.binds
        self._number = 0
        self.poll_steps = codec.poll_steps
        self._given = Given(contract) if contract.stream_constants else None

    def admit(
        self,
        turns: Sequence[Turn],
        feeding: Sequence[Memory],
        fed_max: int,
        saving: Sequence[tuple[Memory, I64]],
        now_ms: int,
    ) -> Poll | None:
        """Takes what can be taken of these turns, a step of ``fed_max`` streams of ``feeding`` that generate, and
        snapshots of ``saving``, slots whose turn it is (X5).

        What cannot be taken goes back to where it waited, and ``blocked`` says why. None when nothing could be taken.
        """
        self._number += 1
        for _, slots in saving:
            self._slots.poll[slots] = self._number  # none of them may leave the arena for what comes now
        taken: list[Taken] = []
        shares: dict[int, Share] = {}
        at = 0
        for turn in turns:
            of_turn = self.placing.take(turn, self._number)
            if not of_turn:
                continue
            memory = turn.memory
            if memory.feedable:
                # Of a generation that a record may cut short no step goes until that is finished, which tells.
                slots = np.concatenate(memory.feedable)
                slots = slots[self._slots.poll[slots] < self._number]
                memory.feedable = [slots] if len(slots) else []
            n = sum(len(t.segment) for t in of_turn)
            size = sum(t.segment.nbytes for t in of_turn)
            memory.uncommitted_bytes += size
            shares[memory.partition] = self._share(memory, at, at + n, size)
            shares[memory.partition].value_bytes = sum(t.segment.value_bytes for t in of_turn)
            shares[memory.partition].fetched_s = of_turn[-1].segment.fetched_s
            taken += of_turn
            at += n
        fed = self._feed(feeding, shares, fed_max)
        for memory, _ in saving:
            if memory.partition not in shares:
                shares[memory.partition] = self._share(memory, 0, 0, 0)
        if not shares:
            return None
        for share in shares.values():
            share.memory.in_flight += 1
        return self._assemble(list(shares.values()), taken, fed, {m.partition: s for m, s in saving}, now_ms)

    @staticmethod
    def _share(memory: Memory, a: int, b: int, size: int) -> Share:
        return Share(memory, a, b, Progress(memory.admitted, memory.aside.runs), memory.admitted, size)

    def _feed(self, feeding: Sequence[Memory], shares: dict[int, Share], fed_max: int) -> I64:
        fed: list[I64] = []
        at = 0
        for memory in feeding:
            room = fed_max - at
            if not memory.feedable or not room:
                continue
            slots = np.concatenate(memory.feedable)
            # Those that do not fit are the first of the next poll.
            slots, rest = slots[:room], slots[room:]
            memory.feedable = [rest] if len(rest) else []
            share = shares.get(memory.partition)
            if not len(slots):
                continue
            self._slots.poll[slots] = self._number
            if share is None:
                share = shares[memory.partition] = self._share(memory, 0, 0, 0)
            share.fed_a, share.fed_b = at, at + len(slots)
            at += len(slots)
            fed.append(slots)
        return np.concatenate(fed) if fed else np.empty(0, np.int64)

    def _assemble(
        self, shares: list[Share], taken: list[Taken], fed: I64, saving: Mapping[int, I64], now_ms: int
    ) -> Poll:
        """One set of columns over all segments; decode, plan, bind."""
        segments = [t.segment for t in taken]
        keys = [k for s in segments for k in s.keys]
        values = [v for s in segments for v in s.values]
        slots = _join([t.slots for t in taken])
        offsets = _join([s.offsets for s in segments])
        headers: list[Headers] | None = None
        if any(s.headers is not None for s in segments):
            headers = [h for s in segments for h in (s.headers if s.headers is not None else [()] * len(s))]
        starts = np.cumsum([0, *(len(s) for s in segments)]).tolist()
        failed = {at + i: why for t, at in zip(taken, starts) for i, why in t.failed.items()}
        ended = np.zeros(len(keys), np.bool_)
        ended[[at + i for t, at in zip(taken, starts) for i in t.ended]] = True
        nulls = [i for i, v in enumerate(values) if v is None] if None in values else []
        self._take_given(keys, values, slots, headers, failed)
        hidden = self._hidden(shares, offsets)
        counts, columns = self._decode(keys, values, slots, failed, nulls, ended, join_ahead(segments))
        if hidden is not None:
            self._no_choice(shares, hidden, slots, offsets, failed)
        if self._head.generates:
            self._slots.busy[slots] = True
            self._slots.busy[SCRATCH] = False

        steps = int(counts.sum())
        record_slots = np.repeat(slots, counts) if steps != len(slots) or counts.min(initial=1) != 1 else slots
        if len(fed):
            inputs = self._head.feed(fed, self._slots.head)
            columns = tuple(np.concatenate([c, f.astype(c.dtype, copy=False)]) for c, f in zip(columns, inputs))
            record_slots = np.concatenate([record_slots, fed])
        kept, n_kept = self._kept(counts, len(fed))
        advanced, saved = self._advance(shares, slots, offsets, ended, fed, failed, saving)
        self._slots.touched_ms[slots] = now_ms
        calls = plan(record_slots, self._limits, self._engine.threads)
        run = self._engine.prepare(
            calls, columns, steps + len(fed), self._slots.fresh, kept, n_kept, saved, self._slots.given
        )
        # A stream without a step yet (half a character, a dead letter) has no row either: it gets the initial one.
        untouched = advanced[self._slots.fresh[advanced]]
        if len(untouched):
            self._engine.arena.reset(untouched)
            self._slots.fresh[untouched] = False
        return Poll(
            shares,
            keys,  # type: ignore[arg-type]  # None only where failed says so
            slots,
            offsets,
            _join([s.timestamps for s in segments]),
            headers,
            ended,
            counts,
            failed,
            fed,
            hidden,
            saved,
            self._saves_all,
            self._slots.applied[saved],
            self._slots.codec[saved],
            self._number,
            run,
        )

    def _hidden(self, shares: list[Share], offsets: I64) -> Bools | None:
        """Records that were done before the takeover: applied again, their outputs are out already (X8)."""
        hidden: Bools | None = None
        for share in shares:
            if share.memory.replay and share.b > share.a:
                done = contains(share.memory.replay, offsets[share.a : share.b])
                if done.any():
                    hidden = np.zeros(len(offsets), np.bool_) if hidden is None else hidden
                    hidden[share.a : share.b] = done
        return hidden

    def _no_choice(
        self,
        shares: list[Share],
        hidden: Bools,
        slots: I64,
        offsets: I64,
        failed: dict[int, tuple[RecordError, bytes | None, bytes | None]],
    ) -> None:
        """A choice that was shown stands in the snapshot that was shown with it (X7): none is made again. Records
        without a key belong to no stream, and are choices of none."""
        for share in shares:
            mine = np.flatnonzero(hidden[share.a : share.b]) + share.a
            odd = [i for i in mine.tolist() if slots[i] != SCRATCH and (self.binds or i in failed)]
            if odd:
                share.problem = (
                    f"record {int(offsets[odd[0]])} was done before, and what was shown of it was a choice that no"
                    " snapshot of its stream includes: the changelog has lost records"
                )

    def _take_given(
        self,
        keys: list[bytes | None],
        values: list[bytes | None],
        slots: I64,
        headers: list[Headers] | None,
        failed: dict[int, tuple[RecordError, bytes | None, bytes | None]],
    ) -> None:
        """Streams' own constants, from the headers of records that are served; adds to ``failed``."""
        if self._given is None:
            return
        good = np.array([i for i, v in enumerate(values) if v is not None and i not in failed], np.int64)
        own = [headers[i] for i in good.tolist()] if headers is not None else None
        for j, error in self._given.take(own, slots[good], self._slots.given).items():
            i = int(good[j])
            failed[i] = (error, keys[i], values[i])

    def _decode(
        self,
        keys: list[bytes | None],
        values: list[bytes | None],
        slots: I64,
        failed: dict[int, tuple[RecordError, bytes | None, bytes | None]],
        nulls: list[int],
        ended: Bools,
        ahead: Sequence[AnyArray | RecordError | None] | None,
    ) -> tuple[I64, tuple[AnyArray, ...]]:
        """Counts of all records and the columns of their steps; adds to ``failed``. ``ahead``: see Segment."""
        memory = self._slots.codec_memory
        if not values:
            return np.empty(0, np.int64), tuple(np.empty((0, *s.shape), s.dtype) for s in self._contract.steps)
        if not failed and not nulls and ahead is None:
            decoded = self._codec.decode(values, slots, memory)  # type: ignore[arg-type]  # none is None
            for i, error in decoded.failed.items():
                failed[i] = (error, keys[i], values[i])
            return decoded.counts, decoded.values
        skip = set(failed) | set(nulls)
        good = np.array([i for i in range(len(values)) if i not in skip], np.int64)
        served = [value for i in good.tolist() if (value := values[i]) is not None]
        if isinstance(self._codec, AheadCodec) and ahead is not None:
            decoded = self._codec.decode_ahead(served, slots[good], memory, [ahead[i] for i in good.tolist()])
        else:
            decoded = self._codec.decode(served, slots[good], memory)
        for j, error in decoded.failed.items():
            i = int(good[j])
            failed[i] = (error, keys[i], values[i])
        counts = np.zeros(len(values), np.int64)
        counts[good] = decoded.counts
        # A stream's last steps, unless the model failed on them before.
        ends = np.array([i for i in np.flatnonzero(ended).tolist() if i not in failed], np.int64)
        last = self._codec.end(slots[ends], memory) if len(ends) else None
        if last is None:
            return counts, decoded.values
        counts[ends] = last.counts
        record = np.concatenate([np.repeat(good, decoded.counts), np.repeat(ends, last.counts)])
        order = record.argsort(kind="stable")
        return counts, tuple(np.concatenate(pair)[order] for pair in zip(decoded.values, last.values))

    def _kept(self, counts: I64, fed: int) -> tuple[I64 | None, int]:
        """Which outputs the head wants: of all steps, or of each record's last and of every generated one."""
        steps = int(counts.sum())
        if self._head.keeps == "all":
            return None, steps + fed
        kept = np.full(steps + fed, -1, np.int64)
        some = np.flatnonzero(counts)
        kept[np.cumsum(counts)[some] - 1] = some
        kept[steps:] = len(counts) + np.arange(fed)
        return kept, len(counts) + fed

    def _advance(
        self,
        shares: list[Share],
        slots: I64,
        offsets: I64,
        ended: Bools,
        fed: I64,
        failed: Mapping[int, object],
        saving: Mapping[int, I64],
    ) -> tuple[I64, I64]:
        """Moves A of every stream the poll advances; returns their slots, each once, without those that end, and the
        slots to snapshot: where a choice binds those that it advances (X7), and those whose turn it is.

        A stream belongs to one partition, so partition by partition: each one's snapshots are then a mere stretch.
        """
        self._slots.applied[slots] = offsets  # a stream's last record wins: numpy assigns in order
        any_ended = bool(ended.any())
        dead = np.zeros(len(slots), np.bool_)
        dead[list(failed)] = True
        moved: list[I64] = []
        saved: list[I64] = []
        at = 0
        for share in shares:
            mine = slots[share.a : share.b]
            ends = mine[:0]
            bound = mine[dead[share.a : share.b]] if failed else ends
            if any_ended:
                gone = ended[share.a : share.b]
                mine, ends = mine[~gone], mine[gone]
            if share.fed_b > share.fed_a:
                mine = np.concatenate([mine, fed[share.fed_a : share.fed_b]])
            mine = _distinct(mine, ends)
            moved.append(mine)
            due = saving.get(share.memory.partition)
            if self._saves_all:
                bound = mine
            if due is not None:
                bound = np.concatenate([bound, due])
            if not self._saves_all or due is not None:
                bound = _distinct(bound, ends)
            share.saved_a, share.saved_b = at, at + len(bound)
            at += len(bound)
            saved.append(bound)
        wanted = _join(saved)
        self._slots.saving[wanted] = True
        self._slots.poll[wanted] = self._number
        return _join(moved), wanted


def _distinct(slots: I64, but: I64) -> I64:
    """Each once, ascending, without ``but`` and without the scratch slot."""
    slots = np.unique(slots)
    if len(but):
        slots = np.setdiff1d(slots, but, assume_unique=True)
    return slots[1:] if len(slots) and slots[0] == SCRATCH else slots


def _join(columns: Sequence[I64]) -> I64:
    joined: I64 = np.concatenate(columns) if columns else np.empty(0, np.int64)
    return joined
