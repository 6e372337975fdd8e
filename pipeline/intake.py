"""From fetched segments to a poll with its calls bound: slots, decode, plan.

Nothing here happens per record where an array will do; the exceptions (ended streams, dead letters, new prompts) are
named at their place. Runs on the event loop, without a clock and without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.codecs import AheadCodec, Codec
from pipeline.codecs.given import Given
from pipeline.columns import I64, AnyArray, Bools, Headers, Segment, join_ahead
from pipeline.contract import Contract
from pipeline.engine import Engine
from pipeline.engine.graph import SCRATCH
from pipeline.errors import RecordError
from pipeline.heads import Head
from pipeline.partition import Memory
from pipeline.poll import Poll, Share
from pipeline.scheduler import Limits, plan
from pipeline.streams.slots import Slots


@dataclass(slots=True)
class _Taken:
    """A segment's records with their slots, up to where it had to be cut."""

    segment: Segment
    slots: I64
    failed: dict[int, tuple[RecordError, bytes | None, bytes | None]] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)


class Intake:
    """See the module."""

    def __init__(
        self,
        contract: Contract,
        codec: Codec,
        head: Head,
        engine: Engine,
        slots: Slots,
        limits: Limits,
        record_bytes_max: int,
    ) -> None:
        self._contract, self._codec, self._head, self._engine = contract, codec, head, engine
        self._slots, self._limits = slots, limits
        self._record_bytes_max = record_bytes_max
        self.poll_steps = codec.poll_steps
        self._given = Given(contract) if contract.stream_constants else None
        self.poison: dict[tuple[int, int], str] = {}
        """(partition, offset) of records whose own run failed, and how (X11)."""

    def admit(self, memories: Sequence[tuple[Memory, Segment]], feeding: Sequence[Memory], fed_max: int) -> Poll | None:
        """Takes what can be taken of these segments, and a step of ``fed_max`` streams of ``feeding`` that generate.

        What cannot be taken goes back to its backlog, and ``blocked`` says why. None when nothing could be taken.
        """
        taken: list[_Taken] = []
        shares: dict[int, Share] = {}
        at = 0
        for memory, segment in memories:
            t = self._take(memory, segment)
            if t is None:
                continue
            n = len(t.segment)
            size = t.segment.nbytes
            memory.uncommitted_bytes += size
            memory.admitted = t.segment.next_offset
            shares[memory.partition] = Share(
                memory, at, at + n, t.segment.next_offset, size, t.segment.value_bytes, t.segment.fetched_s
            )
            taken.append(t)
            at += n
        fed = self._feed(feeding, shares, fed_max)
        if not shares:
            return None
        for share in shares.values():
            share.memory.in_flight += 1
        return self._assemble(list(shares.values()), taken, fed)

    def _take(self, memory: Memory, segment: Segment) -> _Taken | None:
        """Slots for a segment's records; cuts it where a stream must wait."""
        if self._head.generates:
            cut = self._first_busy(memory, segment)
            if cut < len(segment):
                memory.blocked = "generation"
                segment, rest = segment.cut(cut)
                memory.give_back(rest)
                if not len(segment):
                    return None
        if not len(segment):
            return _Taken(segment, np.empty(0, np.int64))
        return self._look_up(memory, segment)

    def _first_busy(self, memory: Memory, segment: Segment) -> int:
        """The first record whose stream generates, or has a record before it here: it waits for the generation.

        Per record in Python: a prompt costs hundreds of steps, this costs a tenth of one.
        """
        seen: set[bytes] = set()
        for i, key in enumerate(segment.keys):
            if key is None:
                continue
            slot = memory.index.get(key)
            if key in seen or (slot is not None and self._slots.busy[slot]):
                return i
            seen.add(key)
        return len(segment)

    def _look_up(self, memory: Memory, segment: Segment) -> _Taken | None:
        n = len(segment)
        odd = self._odd(segment)
        if not odd:
            slots = self._slots.lookup(memory.index, segment.keys)  # type: ignore[arg-type]  # none is None
            return self._cut(memory, segment, _Taken(segment, slots), len(slots))
        # Records without key or value, or that are refused: between them, stretches that go by columns.
        taken = _Taken(segment, np.zeros(n, np.int64))
        done = 0
        for i in [*sorted(odd), n]:
            if i > done:
                slots = self._slots.lookup(memory.index, segment.keys[done:i])  # type: ignore[arg-type]
                taken.slots[done : done + len(slots)] = slots
                done += len(slots)
                if done < i:
                    break
            if i == n:
                break
            key, value, error = segment.keys[i], segment.values[i], odd[i]
            if key is not None and value is None:
                self._end(memory, taken, i, key)
                if error is not None:
                    taken.failed[i] = (error, key, value)
            elif error is not None:
                if key is not None:
                    slot = self._slots.lookup(memory.index, [key])
                    if not len(slot):
                        break
                    taken.slots[i] = slot[0]
                taken.failed[i] = (error, key, value)
            done = i + 1
        return self._cut(memory, segment, taken, done)

    def _odd(self, segment: Segment) -> dict[int, RecordError | None]:
        """Records that are not simply decoded: dead letters with their reason, ends of streams with None."""
        odd: dict[int, RecordError | None] = {}
        keys, values = segment.keys, segment.values
        if segment.headers is not None:
            odd.update(self._head.refuse(segment.headers))
        if None in values or max(map(len, values)) > self._record_bytes_max:  # type: ignore[arg-type]
            for i, value in enumerate(values):
                if value is None:
                    odd[i] = None
                elif len(value) > self._record_bytes_max:
                    odd[i] = RecordError(
                        "too-large",
                        f"value of {len(value)} bytes, max_record_bytes is {self._record_bytes_max}",
                    )
        if None in keys:
            for i, key in enumerate(keys):
                if key is None:
                    odd[i] = RecordError("no-key", "a record without a key belongs to no stream; produce it with a key")
        for (partition, offset), why in self.poison.items():
            i = int(np.searchsorted(segment.offsets, offset))
            if partition == segment.partition and i < len(segment) and segment.offsets[i] == offset:
                odd[i] = RecordError("engine", f"the model failed on this record alone: {why}")
        return odd

    def _end(self, memory: Memory, taken: _Taken, i: int, key: bytes) -> None:
        """A null value ends the stream; its slot is released when this poll is finished. A stream that is not known has
        nothing to end."""
        slot = memory.index.pop(key, None)
        if slot is not None:
            taken.slots[i] = slot
            taken.ended.append(i)

    def _cut(self, memory: Memory, segment: Segment, taken: _Taken, n: int) -> _Taken | None:
        """Keeps the first ``n`` records: for those after them there was no slot."""
        if n == len(segment):
            return taken
        memory.blocked = "slots"
        taken.segment, rest = segment.cut(n)
        taken.slots = taken.slots[:n]
        memory.give_back(rest)
        return taken if n else None

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
            if share is None:
                share = shares[memory.partition] = Share(memory, 0, 0, memory.admitted, 0)
            share.fed_a, share.fed_b = at, at + len(slots)
            at += len(slots)
            fed.append(slots)
        return np.concatenate(fed) if fed else np.empty(0, np.int64)

    def _assemble(self, shares: list[Share], taken: list[_Taken], fed: I64) -> Poll:
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
        counts, columns = self._decode(keys, values, slots, failed, nulls, ended, join_ahead(segments))
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
        advanced = self._advance(shares, slots, offsets, ended, fed)
        calls = plan(record_slots, self._limits, self._engine.threads)
        run = self._engine.prepare(
            calls, columns, steps + len(fed), self._slots.fresh, kept, n_kept, advanced, self._slots.given
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
            advanced,
            self._slots.applied[advanced],
            self._slots.codec[advanced],
            run,
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

    def _advance(self, shares: list[Share], slots: I64, offsets: I64, ended: Bools, fed: I64) -> I64:
        """Moves A of every stream the poll advances; returns their slots, each once, without those that end.

        A stream belongs to one partition, so partition by partition: each one's snapshots are then a mere stretch.
        """
        self._slots.applied[slots] = offsets  # a stream's last record wins: numpy assigns in order
        any_ended = bool(ended.any())
        moved: list[I64] = []
        at = 0
        for share in shares:
            mine = slots[share.a : share.b]
            ends = mine[:0]
            if any_ended:
                gone = ended[share.a : share.b]
                mine, ends = mine[~gone], mine[gone]
            if share.fed_b > share.fed_a:
                mine = np.concatenate([mine, fed[share.fed_a : share.fed_b]])
            mine = np.unique(mine)
            if len(ends):
                mine = np.setdiff1d(mine, ends, assume_unique=True)
            if len(mine) and mine[0] == SCRATCH:
                mine = mine[1:]
            share.moved_a, share.moved_b = at, at + len(mine)
            at += len(mine)
            moved.append(mine)
        return _join(moved)


def _join(columns: Sequence[I64]) -> I64:
    joined: I64 = np.concatenate(columns) if columns else np.empty(0, np.int64)
    return joined
