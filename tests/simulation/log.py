"""A partition's log as a broker keeps it: record batches as bytes, producers' epochs and sequences, open and aborted
transactions, compaction and retention."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from pipeline.columns import Headers
from pipeline.transport.kafka.records import varint

_HEADER = struct.Struct(">qiibIhiqqqhii")
_TRANSACTIONAL, _CONTROL = 0x10, 0x20
OFFSET_OUT_OF_RANGE, MESSAGE_TOO_LARGE = 1, 10
OUT_OF_ORDER_SEQUENCE, DUPLICATE_SEQUENCE, INVALID_PRODUCER_EPOCH = 45, 46, 47
CACHED_BATCHES = 5
"""Of a producer: a batch that is sent again is known among so many."""

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Record:
    """One record as somebody reads it."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 0
    headers: Headers = ()


def encode_batch(
    records: Sequence[Record],
    base: int,
    last: int,
    producer: tuple[int, int] = (-1, -1),
    *,
    transactional: bool = False,
    control: bool = False,
) -> bytes:
    """Records with their offsets as one batch that covers ``base`` to ``last``."""
    first = records[0].timestamp if records else 0
    body = bytearray()
    for r in records:
        one = bytearray(b"\0") + varint(r.timestamp - first) + varint(r.offset - base)
        for part in (r.key, r.value):
            one += varint(-1) if part is None else varint(len(part)) + part
        one += varint(len(r.headers))
        for name, value in r.headers:
            one += varint(len(name.encode())) + name.encode() + varint(len(value)) + value
        body += varint(len(one)) + one
    attributes = _TRANSACTIONAL * transactional | _CONTROL * control
    largest = max((r.timestamp for r in records), default=0)
    size = _HEADER.size + len(body)
    out = bytearray(_HEADER.size) + body
    _HEADER.pack_into(
        out, 0, base, size - 12, 0, 2, 0, attributes, last - base, first, largest, *producer, -1, len(records)
    )
    struct.pack_into(">I", out, 17, calc_crc32c(memoryview(out)[21:]))
    return bytes(out)


@dataclass(slots=True)
class Batch:
    """One batch of the log; ``producer`` -1: none. ``abort``: a control batch's word."""

    base: int
    last: int
    data: bytes
    producer: int = -1
    epoch: int = -1
    transactional: bool = False
    control: bool = False
    abort: bool = False
    segment: int = 0
    emptied_s: float | None = None
    """Of a marker or tombstone-bearing batch: since when nothing before it needs it."""

    def records(self) -> list[Record]:
        out = []
        for batch in _batches(self.data):
            for r in batch:
                out.append(Record(r.offset, r.key, r.value, r.timestamp, tuple(r.headers)))
        return out


def _batches(data: bytes) -> list:
    memory, out = MemoryRecords(data), []
    while memory.has_next():
        out.append(memory.next_batch())
    return out


@dataclass(slots=True)
class Producer:
    """What a partition's leader remembers of a producer."""

    epoch: int
    last_sequence: int = -1
    recent: list[tuple[int, int, int]] = field(default_factory=list)
    """(first sequence, last sequence, offset) of its last batches."""


@dataclass(slots=True)
class Fetched:
    error: int
    highwater: int = -1
    stable: int = -1
    start: int = -1
    aborted: list[tuple[int, int]] = field(default_factory=list)
    data: bytes = b""


class Log:
    """See the module."""

    def __init__(
        self,
        place: Place,
        bytes_max: int = 1_048_588,
        *,
        compacted: bool = False,
        rolls: Callable[[], bool] = lambda: False,
    ) -> None:
        """``rolls``: whether the next batch begins a segment; a fetch reads of one, and the last is not cleaned."""
        self.place, self.bytes_max, self.compacted, self._rolls = place, bytes_max, compacted, rolls
        self._segment = 0
        self.batches: list[Batch] = []
        self._written: list[Batch] = []
        self.start = self.end = 0
        self.open: dict[int, int] = {}
        """Producer -> first offset of its transaction."""
        self.aborted: list[tuple[int, int, int]] = []
        """(producer, first offset, offset of the marker), as long as the marker is there: what readers are told."""
        self._ever_aborted: list[tuple[int, int, int]] = []
        self.producers: dict[int, Producer] = {}
        self.changed: list[Callable[[], None]] = []
        """Whoever waits for data, once."""

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return min(self.open.values(), default=self.end)

    # ---- writing

    def append(self, data: bytes) -> tuple[int, int]:
        """A producer's batch: error and offset. Idempotent by sequence, fenced by epoch."""
        attributes, delta, _, _, producer, epoch, sequence, count = _HEADER.unpack_from(data)[5:]
        if len(data) > self.bytes_max:
            return MESSAGE_TOO_LARGE, -1
        if producer >= 0:
            known = self.producers.get(producer)
            if known is not None:
                if epoch < known.epoch:
                    return INVALID_PRODUCER_EPOCH, -1
                if epoch > known.epoch:
                    if sequence != 0:
                        return OUT_OF_ORDER_SEQUENCE, -1
                    known = None
                else:
                    for first, last, offset in known.recent:
                        if (first, last) == (sequence, sequence + count - 1):
                            return 0, offset
                    if sequence <= known.last_sequence:
                        return DUPLICATE_SEQUENCE, -1
                    if sequence != known.last_sequence + 1:
                        return OUT_OF_ORDER_SEQUENCE, -1
            if known is None:
                known = self.producers[producer] = Producer(epoch)
            known.last_sequence = sequence + count - 1
            known.recent = [*known.recent[-CACHED_BATCHES + 1 :], (sequence, known.last_sequence, self.end)]
        transactional = bool(attributes & _TRANSACTIONAL)
        base = self.end
        moved = struct.pack(">q", base) + data[8:]
        self._add(Batch(base, base + delta, moved, producer, epoch, transactional))
        self.end = base + delta + 1
        if transactional:
            self.open.setdefault(producer, base)
        self._tell()
        return 0, base

    def write(self, records: Sequence[tuple[bytes | None, bytes | None, int, Headers]], producer: int = -1) -> int:
        """Somebody else's records, in a transaction if by a ``producer``; the first one's offset."""
        base = self.end
        rows = [Record(base + i, k, v, t, h) for i, (k, v, t, h) in enumerate(records)]
        last = base + len(rows) - 1
        data = encode_batch(rows, base, last, (producer, 0) if producer >= 0 else (-1, -1), transactional=producer >= 0)
        self._add(Batch(base, last, data, producer, 0, producer >= 0))
        self.end = last + 1
        if producer >= 0:
            self.open.setdefault(producer, base)
        self._tell()
        return base

    def mark(self, producer: int, epoch: int, commit: bool, timestamp: int = 0) -> None:
        """The end of a producer's transaction, as a control batch."""
        known = self.producers.get(producer)
        if known is None or epoch > known.epoch:
            self.producers[producer] = Producer(epoch)
        at = self.end
        record = Record(at, struct.pack(">hh", 0, int(commit)), struct.pack(">hi", 0, 0), timestamp)
        data = encode_batch([record], at, at, (producer, epoch), transactional=True, control=True)
        self._add(Batch(at, at, data, producer, epoch, transactional=True, control=True, abort=not commit))
        self.end = at + 1
        first = self.open.pop(producer, None)
        if first is not None and not commit:
            self.aborted.append((producer, first, at))
            self._ever_aborted.append((producer, first, at))
        self._tell()

    def _tell(self) -> None:
        waiting, self.changed = self.changed, []
        for wake in waiting:
            wake()

    # ---- reading

    def fetch(self, offset: int, committed: bool, bytes_max: int) -> Fetched:
        if not self.start <= offset <= self.end:
            return Fetched(OFFSET_OUT_OF_RANGE, self.end, self.stable, self.start)
        bound = self.stable if committed else self.end
        out = bytearray()
        upper, segment = offset, -1
        for batch in self.batches:
            if batch.last < offset:
                continue
            if batch.base >= bound or (out and len(out) + len(batch.data) > bytes_max):
                break
            if out and batch.segment != segment:
                break
            segment = batch.segment
            out += batch.data
            upper = batch.last
        aborted = [(p, first) for p, first, marker in self.aborted if marker >= offset and first <= upper]
        return Fetched(0, self.end, self.stable, self.start, aborted if committed else [], bytes(out))

    def has(self, offset: int, committed: bool) -> bool:
        """Whether a fetch would bring something, an error included."""
        bound = self.stable if committed else self.end
        if not self.start <= offset <= self.end:
            return True
        return offset < bound and any(b.last >= offset and b.base < bound for b in reversed(self.batches))

    def visible(self, committed: bool = True) -> list[Record]:
        """All records that a reader sees."""
        bound = self.stable if committed else self.end
        return [r for b in self._data(bound, committed) for r in b.records() if r.offset >= self.start]

    def history(self) -> list[Record]:
        """All committed records there ever were, cleaned away or not."""
        return [r for b in self._written if not self._is_hidden(b) for r in b.records()]

    def _is_hidden(self, batch: Batch) -> bool:
        """From who reads committed."""
        return batch.transactional and (_is_in(batch, self._ever_aborted) or batch.producer in self._undecided(batch))

    def _undecided(self, batch: Batch) -> set[int]:
        return {p for p, first in self.open.items() if batch.base >= first}

    def _add(self, batch: Batch) -> None:
        self._segment += self._rolls()
        batch.segment = self._segment
        self.batches.append(batch)
        if self.compacted and not batch.control:
            self._written.append(batch)

    def _data(self, bound: int, committed: bool) -> list[Batch]:
        return [
            b
            for b in self.batches
            if b.base < bound and not b.control and not (committed and b.transactional and self.is_aborted(b))
        ]

    def is_aborted(self, batch: Batch) -> bool:
        return _is_in(batch, self.aborted)

    # ---- the cleaner

    def truncate(self, start: int) -> None:
        """Retention, or somebody's delete-records: the log begins there."""
        self.start = max(self.start, min(start, self.end))
        self.batches = [b for b in self.batches if b.last >= self.start]
        self.aborted = [a for a in self.aborted if a[2] >= self.start]

    def compact(self, upto: int, now_s: float, horizon_s: float) -> None:
        """What the cleaner makes of the log below ``upto``: of each key the newest record; nulls and markers go when
        ``horizon_s`` has passed since they were first cleaned; aborted records go at once. A cleaned batch keeps its
        range of offsets; an empty one goes, unless it is its producer's last. An aborted transaction is forgotten with
        its marker, none of its records being left by then: readers, who hide its producer up to that marker, would hide
        the next transactions, too."""
        active = next((b.base for b in self.batches if b.segment == self._segment), self.start)
        upto = min(upto, self.stable, active)
        last = {b.producer: b.base for b in self.batches if not b.control}
        newest: dict[bytes | None, int] = {}
        for b in self._data(upto, committed=True):
            if b.last < upto:
                for r in b.records():
                    newest[r.key] = r.offset
        kept: list[Batch] = []
        for b in self.batches:
            if b.last >= upto:
                kept.append(b)
                continue
            if b.emptied_s is None:
                b.emptied_s = now_s
            expired = now_s - b.emptied_s > horizon_s
            if b.control:
                if not expired or b.producer in self.open:
                    kept.append(b)
                continue
            rows = [r for r in b.records() if newest.get(r.key) == r.offset and not (r.value is None and expired)]
            if b.transactional and self.is_aborted(b):
                rows = []
            if rows or (b.base == last[b.producer] and not expired):
                data = encode_batch(rows, b.base, b.last, (b.producer, b.epoch), transactional=b.transactional)
                kept.append(replace(b, data=data))
        self.batches = kept
        markers = {b.base for b in kept if b.control}
        self.aborted = [a for a in self.aborted if a[2] in markers]


def _is_in(batch: Batch, transactions: Sequence[tuple[int, int, int]]) -> bool:
    return any(p == batch.producer and first <= batch.base < marker for p, first, marker in transactions)
