"""Fetched bytes -> columns. Positions, aborted transactions and control batches stay as aiokafka handles them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from operator import attrgetter
from typing import Any

import numpy as np
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.structs import TopicPartition

from pipeline.columns import I64, Headers, Segment

_key, _value, _offset, _timestamp = (attrgetter(name) for name in ("key", "value", "offset", "timestamp"))
_headers = attrgetter("headers")

ERROR_PAUSE_S = 0.02


class ColumnRecords(PartitionRecords):
    """One partition's fetched bytes as one Segment; the only item this iterator yields.

    The loop over batches is aiokafka's, without an object per record. A stretch that holds no record for us yields a
    Segment of length 0 whose ``next_offset`` has moved. Raises CorruptRecordException for a damaged batch; what lies
    before one comes first.
    """

    @classmethod
    def of(cls, plain: PartitionRecords) -> ColumnRecords:
        """In place of records that nobody has iterated yet."""
        # Its generator holds it as it holds the generator: the bytes would stay until the collector looks for cycles.
        plain._records_iterator = None
        return cls(
            plain._tp,
            plain._records,
            plain._aborted_transactions,
            plain.next_fetch_offset,
            None,
            None,
            plain._check_crcs,
            plain._isolation_level,
        )

    def _unpack_records(self) -> Iterator[Segment]:
        records: list[Any] = []
        began = self.next_fetch_offset
        try:
            for batch in self._batches():
                found = list(batch)
                # A batch is fetched whole: what lies before the position was asked for by nobody.
                if found and found[0].offset < self.next_fetch_offset:
                    found = [r for r in found if r.offset >= self.next_fetch_offset]
                records += found
                self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)
        except CorruptRecordException:
            if self.next_fetch_offset == began:
                raise
        yield _columns(self._tp.partition, records, self.next_fetch_offset)

    def _batches(self) -> Iterator[Any]:
        """The batches with records for us; the position moves over the others."""
        records, committed = self._records, self._isolation_level == READ_COMMITTED
        while records.has_next():
            batch = records.next_batch()
            if self._check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {self._tp}")
            if committed and batch.producer_id is not None:
                self._consume_aborted_up_to(batch.base_offset)
                if batch.is_control_batch and self._contains_abort_marker(batch):
                    self._aborted_producers.discard(batch.producer_id)
                if batch.is_transactional and batch.producer_id in self._aborted_producers:
                    self.next_fetch_offset = batch.next_offset
                    continue
            if batch.is_control_batch:
                self.next_fetch_offset = batch.next_offset
                continue
            yield batch


def _columns(partition: int, records: list[Any], next_offset: int) -> Segment:
    """Of all batches at once: a producer that does not wait sends a batch for every record."""
    n = len(records)
    keys, values = list(map(_key, records)), list(map(_value, records))
    # Compaction and aborted transactions leave gaps.
    dense = n > 0 and records[-1].offset - records[0].offset == n - 1
    offsets: I64 = (
        np.arange(records[0].offset, records[0].offset + n, dtype=np.int64)
        if dense
        else np.fromiter(map(_offset, records), np.int64, n)
    )
    # Message format 0 has no timestamps.
    timestamps = np.fromiter((-1 if t is None else t for t in map(_timestamp, records)), np.int64, n)
    raw = list(map(_headers, records))
    headers: list[Headers] | None = [_clean(h) for h in raw] if any(raw) else None
    try:
        value_bytes = sum(map(len, values))
    except TypeError:  # a null ends its stream
        value_bytes = sum(len(v) for v in values if v is not None)
    return Segment(partition, keys, values, offsets, timestamps, next_offset, headers, value_bytes)


def _clean(headers: list[tuple[str, bytes | None]]) -> Headers:
    return [(name, value if value is not None else b"") for name, value in headers]


class _Client:
    """The client as aiokafka's fetcher has it; ``on_error`` is called before any fetch that failed is told."""

    def __init__(self, client: Any, on_error: Callable[[], None]) -> None:
        self._client, self._on_error = client, on_error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any) -> Any:
        try:
            reply = await self._client.send(node_id, request)
        except KafkaError:
            self._on_error()
            raise
        if any(fields[1] for _, partitions in reply.topics for fields in partitions):
            self._on_error()
        return reply


class ColumnFetcher(Fetcher):
    """aiokafka's fetcher, whose results are columns and are taken without waiting. ``turn`` returns when a request may
    be sent; ``on_error`` is told when one or a partition's part of its answer has failed."""

    def __init__(
        self,
        client: Any,
        *args: Any,
        on_data: Callable[[], None],
        on_error: Callable[[], None],
        turn: Callable[[], Awaitable[None]],
        **kwargs: Any,
    ) -> None:
        self._on_data, self._turn = on_data, turn
        super().__init__(_Client(client, on_error), *args, **kwargs)  # type: ignore[no-untyped-call]

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> Any:
        await self._turn()
        began = time.monotonic()
        woken = await super()._proc_fetch_request(assignment, node_id, request)  # type: ignore[no-untyped-call]
        # Nothing has been able to run since the records were put there: nobody has seen them as aiokafka's.
        for result in self._records.values():
            if type(result) is FetchResult and type(result._partition_records) is PartitionRecords:
                result._partition_records = ColumnRecords.of(result._partition_records)
        if woken:
            self._on_data()
        elif time.monotonic() - began < ERROR_PAUSE_S:
            # An error that aiokafka only logs, else the broker had waited for data: not asked again at full speed.
            await asyncio.sleep(ERROR_PAUSE_S)
        return woken

    def take(self, wanted: Collection[int]) -> tuple[list[Segment], dict[int, KafkaError]]:
        """What has been fetched of these partitions, at most one segment each, and which could not be fetched.

        Nothing is awaited, so the assignment cannot change in between. What is fetched of others stays.
        """
        taken: list[Segment] = []
        failed: dict[int, KafkaError] = {}
        if self._subscriptions.reassignment_in_progress:
            return taken, failed
        for tp in list(self._records):
            if not self._subscriptions.is_assigned(tp):
                del self._records[tp]
            elif tp.partition in wanted:
                result = self._records[tp]
                try:
                    if type(result) is FetchResult:
                        taken += result.getall()
                    else:
                        result.check_raise()
                except KafkaError as error:
                    failed[tp.partition] = error
                    self._drop(tp)
                else:
                    if not result.has_more():
                        self._drop(tp)
        return taken, failed

    def _drop(self, tp: TopicPartition) -> None:
        """Makes room for the partition's next fetch."""
        del self._records[tp]
        self._notify(self._wait_consume_future)

    @property
    def task(self) -> asyncio.Task[Any]:
        """The loop that fetches; it ends only when something is broken."""
        task: asyncio.Task[Any] = self.error_future
        return task
