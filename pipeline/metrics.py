"""What is counted, by batch and never by record: prometheus-client collectors, filled at a few moments of the road.

``services/`` exposes ``Metrics.registry``. Names begin with ``eddy_``, units are base units, labels are model and
version, and partition where partitions differ; never a stream. All methods may be called while another thread reads
the registry.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from pipeline.errors import GroupRefused, OutcomeUnknown, PartRefused

LABELS = ("model", "version")

# Record timestamps are whole milliseconds, so nothing finer is known; dense where p50 and p99 usually lie.
LATENCY_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.007, 0.010, 0.015, 0.020, 0.030, 0.050, 0.070),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
ENGINE_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TAKEOVER_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0)
BATCH = tuple(float(2**i) for i in range(13))


class ColumnHistogram(Collector):
    """A Prometheus histogram that takes a whole numpy column at once (prometheus-client's takes one value a call).

    ``bounds`` are the buckets' upper ends, ascending, without +Inf; a value equal to a bound is inside it. ``labels``
    are the same for every value. Raises ValueError for bounds that do not ascend.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        labels: Mapping[str, str],
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = dict(labels)
        self._bounds = np.asarray(bounds, np.float64)
        if not len(self._bounds) or (np.diff(self._bounds) <= 0).any():
            raise ValueError(f"{name}: bucket bounds must ascend, got {list(bounds)}")
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        # A scrape from another thread must not see a batch's counts without its sum.
        self._lock = threading.Lock()
        if registry is not None:
            registry.register(self)

    def observe_many(self, values: ArrayLike, repeats: ArrayLike | None = None) -> None:
        """Counts every value of a column ``[n]``, the i-th ``repeats[i]`` times (int ``[n]``; None: once each).

        NaN and infinity are not counted: one of them would spoil the sum for the life of the process.
        """
        column = np.asarray(values, np.float64).reshape(-1)
        times = None if repeats is None else np.asarray(repeats, np.int64).reshape(-1)
        finite = np.isfinite(column)
        if not finite.all():
            column, times = column[finite], times[finite] if times is not None else None
        buckets = np.searchsorted(self._bounds, column, side="left")
        counts = np.bincount(buckets, weights=times, minlength=len(self._counts)).astype(np.int64)
        # No dot product: BLAS would wake its threads for it, and they spin between two calls.
        total = float((column if times is None else column * times).sum())
        with self._lock:
            self._counts += counts
            self._sum += total

    def read(self) -> tuple[NDArray[np.int64], float]:
        """Counts per bucket, not cumulative, int64 ``[len(bounds) + 1]``, and the sum of all values."""
        with self._lock:
            return self._counts.copy(), self._sum

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=tuple(self._labels))]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        counts, total = self.read()
        ends = [*(str(float(b)) for b in self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._documentation, labels=tuple(self._labels))
        cumulative = [(end, float(count)) for end, count in zip(ends, np.cumsum(counts))]
        family.add_metric(tuple(self._labels.values()), cumulative, total)
        return [family]


def kind_of(error: type[BaseException]) -> str:
    """The label for a class of errors, in kebab case (``GroupRefused`` -> ``group-refused``)."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", error.__name__).lower()


class Metrics:
    """The collectors of one worker; one method per moment of the road.

    ``registry`` None makes a fresh one: two workers in a process do not meet.
    """

    def __init__(self, model: str, version: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._values = (model, version)
        self._records = self._counter("records", "Input records taken into a poll")
        self._record_bytes = self._counter("record_bytes", "Bytes of the values of input records taken into a poll")
        self._steps = self._counter("steps", "Steps decoded from input records")
        self._decoded = self._counter("decoded_records", "Records decoded on threads before their poll")
        self._decode_time = self._counter("decode_seconds", "Time that threads spent on them")
        self._media = self._counter("media_seconds", "Time that the steps decoded last, where the codec knows a rate")
        self._polls = self._counter("polls", "Polls planned")
        self._queue_time = self._histogram("queue_seconds", "From fetched to planned, per record", LATENCY_S)
        self._batches = self._counter("batches", "Calls of the engine")
        self._batch_size = self._histogram("batch_size", "Streams in one call of the engine", BATCH)
        self._engine_time = self._histogram("engine_seconds", "One job of the engine: the calls of one poll", ENGINE_S)
        self._generated = self._counter("generated_steps", "Steps that streams fed themselves")
        self._commit_time = self._histogram("commit_seconds", "One transaction that succeeded", LATENCY_S)
        self._parts = self._counter("parts", "Parts committed")
        self._outputs = self._counter("output_records", "Output records made visible")
        self._snapshots = self._counter("snapshots", "Snapshots committed")
        self._snapshot_bytes = self._counter("snapshot_bytes", "Bytes of the snapshots committed")
        self._latency = self._histogram(
            "latency_seconds", "From an input record's timestamp to its visible commit, per output record", LATENCY_S
        )
        self._record_time = self._histogram(
            "record_seconds", "From an input record's timestamp to the commit that makes it done, per record", LATENCY_S
        )
        self._dead_letters = self._counter("dead_letters", "Records that could not be served", "reason")
        self._takeovers = self._counter("takeovers", "Partitions made this worker's own")
        self._takeover_time = self._histogram("takeover_seconds", "From assigned to running, per partition", TAKEOVER_S)
        self._restored = self._counter("restored_snapshots", "Snapshots read back by takeovers")
        self._read_bytes = self._counter("restore_bytes", "Bytes of snapshots that takeovers read, superseded ones too")
        self._to_read = self._gauge("restore_left_records", "Changelog records that takeovers have yet to read")
        self._skipped = self._counter("skipped_records", "Records not applied: a restored snapshot holds them already")
        self._replayed = self._counter("replayed_records", "Records applied again although they were done")
        self._commit_failures = self._counter("commit_failures", "Transactions that did not succeed", "kind")
        self._errors = self._counter("errors", "Errors, by the class in the tree of errors", "kind")
        self._lag = self._gauge("lag_records", "Records between the position and the log's end", "partition")
        self._owned = self._gauge("owned_partitions", "Partitions assigned to this worker")
        self._running = self._gauge("running_partitions", "Owned partitions that are past their takeover")
        self._paused = self._gauge("paused_partitions", "Owned partitions that are not fetched: their queue is full")
        self._waiting = self._gauge("waiting_partitions", "Owned partitions that wait for a slot")
        self._held = self._gauge("held_partitions", "Partitions whose committed offset has stood still for max_stall_s")
        self._replay_age = self._gauge("replay_age_seconds", "Age of the oldest record that no snapshot includes")
        self._replay_records = self._gauge("replay_records", "Offsets that a takeover would go through again")
        self._away = self._gauge("host_streams", "Streams in the host tier")
        self._away_bytes = self._gauge("host_bytes", "What the host tier holds, in memory and on disk")
        self._evicted = self._counter("evicted_streams", "Streams that left the arena for room")
        self._copies = self._gauge("local_copies", "Changelog partitions that have a local copy here")
        self._copy_bytes = self._gauge("local_copy_bytes", "What the local copies take on disk")
        self._queued = self._gauge("queued_bytes", "Bytes fetched and not yet committed")
        self._streams = self._gauge("active_streams", "Streams with state on this worker")
        self._slots_used = self._gauge("slots_used", "Slots of the arena that hold a stream")
        self._slots = self._gauge("slots", "Slots of the arena")
        self._lag_known: set[int] = set()
        # A series that appears with its first failure has no rate for it: those that can be known begin at zero.
        for failure in (GroupRefused, OutcomeUnknown, PartRefused):
            self._commit_failures.labels(*self._values, kind_of(failure))

    def _counter(self, name: str, documentation: str, *more: str) -> Counter:
        made = Counter(f"eddy_{name}", documentation, (*LABELS, *more), registry=self.registry)
        return made if more else made.labels(*self._values)

    def _gauge(self, name: str, documentation: str, *more: str) -> Gauge:
        made = Gauge(f"eddy_{name}", documentation, (*LABELS, *more), registry=self.registry)
        return made if more else made.labels(*self._values)

    def _histogram(self, name: str, documentation: str, bounds: Sequence[float]) -> ColumnHistogram:
        labels = dict(zip(LABELS, self._values))
        return ColumnHistogram(f"eddy_{name}", documentation, bounds, labels, self.registry)

    # ---- the road

    def poll(
        self,
        records: int,
        steps: int,
        queued_s: ArrayLike,
        repeats: ArrayLike | None = None,
        *,
        record_bytes: int = 0,
        media_s: float = 0.0,
    ) -> None:
        """A poll was planned. ``queued_s``: seconds since the fetch, one per record, or one per segment with
        ``repeats`` its number of records. ``media_s``: how long its steps last, seconds."""
        self._polls.inc()
        self._records.inc(records)
        self._record_bytes.inc(record_bytes)
        self._steps.inc(steps)
        self._media.inc(media_s)
        self._queue_time.observe_many(queued_s, repeats)

    def decoded(self, records: int, seconds: float) -> None:
        """A thread has decoded so many records, ahead of their poll."""
        self._decoded.inc(records)
        self._decode_time.inc(seconds)

    def engine(self, batch_sizes: ArrayLike, seconds: float, *, generated: int = 0) -> None:
        """A job came back. ``batch_sizes``: streams of each call, ``[calls]``; ``generated``: how many of its
        steps streams fed themselves."""
        sizes = np.asarray(batch_sizes, np.int64).reshape(-1)
        self._batches.inc(len(sizes))
        self._batch_size.observe_many(sizes)
        self._engine_time.observe_many(seconds)
        if generated:
            self._generated.inc(generated)

    def transaction(self, seconds: float) -> None:
        """A transaction succeeded."""
        self._commit_time.observe_many(seconds)

    def commit(
        self,
        *,
        parts: int,
        outputs: int,
        snapshots: int,
        snapshot_bytes: int,
        latency_s: ArrayLike,
        records_s: ArrayLike,
    ) -> None:
        """Parts are visible. ``latency_s``: now less the timestamp, one per output record; ``records_s``: the same, one
        per input record that they make done."""
        self._parts.inc(parts)
        self._outputs.inc(outputs)
        self._snapshots.inc(snapshots)
        self._snapshot_bytes.inc(snapshot_bytes)
        self._latency.observe_many(latency_s)
        self._record_time.observe_many(records_s)

    def dead_letters(self, reason: str, count: int = 1) -> None:
        """Records became dead letters (``RecordError.reason``)."""
        self._dead_letters.labels(*self._values, reason).inc(count)

    # ---- what goes wrong, and coming back from it

    def takeover(self, seconds: float, restored: int) -> None:
        """A partition runs, ``seconds`` after it was assigned, with ``restored`` snapshots read back."""
        self._takeovers.inc()
        self._takeover_time.observe_many(seconds)
        self._restored.inc(restored)

    def reading(self, nbytes: int, left_change: int) -> None:
        """A takeover has read on: ``nbytes`` of values, and by how much what is left to read has changed, records."""
        self._read_bytes.inc(nbytes)
        self._to_read.inc(left_change)

    def replay(self, *, skipped: int = 0, replayed: int = 0) -> None:
        """Fetched below what is done: ``skipped`` for their snapshot holds them, ``replayed`` for none does."""
        self._skipped.inc(skipped)
        self._replayed.inc(replayed)

    def commit_failed(self, error: BaseException) -> None:
        """A transaction did not succeed."""
        self._commit_failures.labels(*self._values, kind_of(type(error))).inc()

    def error(self, error: BaseException | str) -> None:
        """Anything else that went wrong; a word, or the error whose class is the word."""
        kind = error if isinstance(error, str) else kind_of(type(error))
        self._errors.labels(*self._values, kind).inc()

    # ---- how things stand

    def partitions(self, *, owned: int, running: int, paused: int, waiting: int) -> None:
        self._owned.set(owned)
        self._running.set(running)
        self._paused.set(paused)
        self._waiting.set(waiting)

    def held(self, partitions: int) -> None:
        """Partitions whose C has not moved for ``max_stall_s`` though they have work."""
        self._held.set(partitions)

    def replay_age(self, seconds: float, records: int) -> None:
        """How old the oldest done record is that no snapshot includes, and how many lie from R to C."""
        self._replay_age.set(seconds)
        self._replay_records.set(records)

    def tier(self, streams: int, nbytes: int, evicted: int) -> None:
        """Streams without a slot and what they take; how many left the arena for room since the last call."""
        self._away.set(streams)
        self._away_bytes.set(nbytes)
        self._evicted.inc(evicted)

    def local_copies(self, copies: int, nbytes: int) -> None:
        """Changelog partitions with a copy here, and their files' size."""
        self._copies.set(copies)
        self._copy_bytes.set(nbytes)

    def queued(self, queued_bytes: int) -> None:
        self._queued.set(queued_bytes)

    def streams(self, active: int, *, slots_used: int, slots: int) -> None:
        self._streams.set(active)
        self._slots_used.set(slots_used)
        self._slots.set(slots)

    def lag(self, records: Mapping[int, int]) -> None:
        """Lag of every owned partition; one that is unknown (-1) or no longer owned has no series."""
        known = {partition: n for partition, n in records.items() if n >= 0}
        for gone in self._lag_known - known.keys():
            self._lag.remove(*self._values, str(gone))
        for partition, n in known.items():
            self._lag.labels(*self._values, str(partition)).set(n)
        self._lag_known = set(known)
