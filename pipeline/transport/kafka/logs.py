"""Where partitions begin and end, and changelogs from the beginning to a watermark."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping

import numpy as np
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from pipeline.columns import Changelog, Segment
from pipeline.errors import NotAuthorized, OutcomeUnknown, TakeoverError
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import DISCONNECTED, RECONNECT_PAUSE_S, Client
from pipeline.transport.kafka.columns import ColumnRecords
from pipeline.transport.kafka.dead_owners import DeadOwners
from pipeline.transport.kafka.fetching import RESTORE, Fetched, LogFetcher
from pipeline.transport.kafka.stretches import changelogs

log = logging.getLogger(__name__)

EARLIEST, LATEST = -2, -1
NOTHING_NEW_S = 30.0
"""So often whoever follows a changelog is told of a partition that it has nothing new."""
STUCK_S = 0.02
"""So often it is looked why nothing comes."""


async def offsets_at(
    client: Client, topic: str, partitions: Collection[int], which: int, *, committed: bool
) -> dict[int, int]:
    """First (``EARLIEST``) or next (``LATEST``) offset of each partition, bounded in time.

    ``committed``: LATEST is the last stable offset, else the high watermark. Raises TimeoutError, NotAuthorized.
    """
    isolation = READ_COMMITTED if committed else READ_UNCOMMITTED
    found: dict[int, int] = {}
    async with asyncio.timeout(client.limit_s):
        while missing := [p for p in partitions if p not in found]:
            by_leader: defaultdict[int, list[int]] = defaultdict(list)
            for partition in missing:
                by_leader[await client.find_leader(topic, partition)].append(partition)
            asked = (_ask(client, node, topic, of_node, which, isolation) for node, of_node in by_leader.items())
            for answered in await asyncio.gather(*asked):
                found |= answered
            if len(found) < len(partitions):
                await asyncio.gather(client.force_metadata_update(), asyncio.sleep(RECONNECT_PAUSE_S))
    return found


async def _ask(
    client: Client, node: int, topic: str, partitions: list[int], which: int, isolation: int
) -> dict[int, int]:
    """What one node answers; partitions it does not (yet) lead are left out."""
    request = OffsetRequest(-1, isolation, [(topic, [(partition, which) for partition in partitions])])
    try:
        # Not behind a fetch, which waits for data.
        reply = await client.send(node, request, group=ConnectionGroup.COORDINATION)
    except DISCONNECTED as error:
        log.info("offsets of %s at node %d: %r, asking again", topic, node, error)
        return {}
    # Newer versions add the leader's epoch at the end.
    if any(fields[1] in wire.NOT_AUTHORIZED for _, of_topic in reply.topics for fields in of_topic):
        raise NotAuthorized(f"not authorized: allow Describe on the topic {topic!r}")
    return {fields[0]: fields[3] for _, of_topic in reply.topics for fields in of_topic if not fields[1]}


async def read_changelog(
    client: Client,
    topic: str,
    partition: int,
    start: int,
    patience_s: float,
    owners: DeadOwners | None = None,
    fetcher: LogFetcher | None = None,
) -> AsyncIterator[Changelog]:
    """A changelog; see ``read_log``. ``fetcher``: of this topic, for many partitions at once."""
    async for fetched, log_end in _read(client, topic, partition, start, patience_s, owners, fetcher):
        for stretch in _stretches(topic, partition, fetched):
            stretch.log_end = log_end
            yield stretch


async def follow_changelogs(
    client: Client, topic: str, partitions: Mapping[int, int], fetcher: LogFetcher
) -> AsyncIterator[tuple[int, Changelog]]:
    """Partitions of a changelog from these offsets, as they go on, and now and then that one has nothing new. It ends
    only by being closed.

    Raises NotAuthorized, TakeoverError for what no repetition helps; TimeoutError where a log's begin is not told.
    """
    arrived = asyncio.Event()
    cursors = [fetcher.open(partition, start, arrived) for partition, start in partitions.items()]
    said_ms = dict.fromkeys(partitions, 0)
    try:
        while True:
            arrived.clear()
            for cursor in cursors:
                fetched, partition = cursor.take(), cursor.partition
                if fetched is None:
                    continue
                if fetched.code == wire.OFFSET_OUT_OF_RANGE:
                    begin = (await offsets_at(client, topic, [partition], EARLIEST, committed=False))[partition]
                    if begin <= cursor.position:
                        raise TakeoverError(partition, f"{topic} ends before {cursor.position}: it was made anew")
                    cursor.seek(begin)
                    continue
                _check(topic, partition, fetched.code)
                for stretch in _stretches(topic, partition, fetched):
                    if stretch.next_offset == fetched.next_offset:
                        stretch.whole_ms = said_ms[partition] = fetched.whole_ms
                    yield partition, stretch
            for cursor in cursors:
                whole_ms, partition = cursor.whole_ms, cursor.partition
                if cursor.hungry and whole_ms - said_ms[partition] > NOTHING_NEW_S * 1000:
                    said_ms[partition] = whole_ms
                    nothing = np.empty(0, np.int64)
                    yield partition, Changelog([], [], nothing, cursor.position, whole_ms=whole_ms)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTHING_NEW_S):
                    await arrived.wait()
    finally:
        for cursor in cursors:
            fetcher.shut(cursor)


def _stretches(topic: str, partition: int, fetched: Fetched) -> Iterator[Changelog]:
    try:
        yield from changelogs(fetched.data, fetched.position, fetched.aborted)
    except CorruptRecordException as error:
        raise _damaged(topic, partition, fetched.position, error) from error


def _check(topic: str, partition: int, code: int) -> None:
    """Raises what a fetch's error number means where no repetition helps."""
    if code in wire.NOT_AUTHORIZED:
        raise NotAuthorized(f"not authorized: allow Read on the topic {topic!r}")
    if code:
        raise TakeoverError(partition, f"{topic} cannot be read: error {code}")


async def read_log(client: Client, topic: str, partition: int, start: int, patience_s: float) -> AsyncIterator[Segment]:
    """From ``start``, read committed, until the position has passed the watermark asked for first (X8).

    Raises OutcomeUnknown when nothing arrives for ``patience_s`` seconds, TimeoutError or KafkaError where the log's
    ends are not told, NotAuthorized, and TakeoverError for what no repetition helps.
    """
    place = TopicPartition(topic, partition)
    async for fetched, _ in _read(client, topic, partition, start, patience_s, None, None):
        position, aborted = fetched.position, list(fetched.aborted)
        try:
            while position < fetched.next_offset:  # once, or again up to a damaged batch
                records = MemoryRecords(fetched.data)
                segment: Segment = next(
                    ColumnRecords(place, records, aborted, position, None, None, True, READ_COMMITTED)
                )
                position = segment.next_offset
                yield segment
        except CorruptRecordException as error:
            raise _damaged(topic, partition, position, error) from error


def _damaged(topic: str, partition: int, position: int, error: Exception) -> TakeoverError:
    return TakeoverError(partition, f"{topic} is damaged after offset {position}: {error}")


async def _read(
    client: Client,
    topic: str,
    partition: int,
    start: int,
    patience_s: float,
    owners: DeadOwners | None,
    fetcher: LogFetcher | None,
) -> AsyncIterator[tuple[Fetched, int]]:
    """What was fetched, and the watermark. ``owners``: told while an open transaction holds the log back (X9)."""
    # Read uncommitted: behind an open transaction of a dead owner there may be snapshots that count.
    ends, starts = await asyncio.gather(
        offsets_at(client, topic, [partition], LATEST, committed=False),
        offsets_at(client, topic, [partition], EARLIEST, committed=False),
    )
    watermark = ends[partition]
    if start > watermark:
        raise TakeoverError(partition, f"{topic} ends at {watermark}, before {start}: it was made anew")
    position = max(start, starts[partition])
    if position >= watermark:
        return
    fetching = fetcher if fetcher is not None else LogFetcher(client, topic, RESTORE)
    cursor = fetching.open(partition, position)
    clock = asyncio.get_running_loop().time
    heard, watch = clock(), None
    try:
        while position < watermark:
            fetched = await cursor.next(STUCK_S)
            if fetched is None:
                if owners is not None:
                    watch = watch or owners.watch_log((topic, partition))
                    await watch.waiting()
                if clock() - heard > patience_s:
                    raise OutcomeUnknown(
                        f"{topic}-{partition} is held back at offset {position} of {watermark} by an open transaction,"
                        f" or its leader is away: nothing for {patience_s:g} s"
                    )
            elif fetched.code == wire.OFFSET_OUT_OF_RANGE:
                # The cleaner may have removed the first segment after we had asked where the log begins.
                position = (await offsets_at(client, topic, [partition], EARLIEST, committed=False))[partition]
                cursor.seek(position)
            else:
                _check(topic, partition, fetched.code)
                position, heard, watch = fetched.next_offset, clock(), None
                yield fetched, watermark
    finally:
        fetching.shut(cursor)
        if fetcher is None:
            await fetching.close()
