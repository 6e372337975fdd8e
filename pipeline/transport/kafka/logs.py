"""Where partitions begin and end, and changelogs from the beginning to a watermark."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from typing import Any

from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from pipeline.columns import Changelog, Segment
from pipeline.errors import NotAuthorized, OutcomeUnknown, TakeoverError
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import DISCONNECTED, RECONNECT_PAUSE_S, Client
from pipeline.transport.kafka.columns import ColumnRecords
from pipeline.transport.kafka.dead_owners import DeadOwners

log = logging.getLogger(__name__)

EARLIEST, LATEST = -2, -1
RESTORE_BYTES = 8_388_608
"""One fetch of a changelog."""
RESTORE_WAIT_MS = 50
"""A fetch waits only where an open transaction holds the log back, and others read over the same connection."""


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
        reply = await client.send(node, request)
    except DISCONNECTED as error:
        log.info("offsets of %s at node %d: %r, asking again", topic, node, error)
        return {}
    # Newer versions add the leader's epoch at the end.
    if any(fields[1] in wire.NOT_AUTHORIZED for _, of_topic in reply.topics for fields in of_topic):
        raise NotAuthorized(f"not authorized: allow Describe on the topic {topic!r}")
    return {fields[0]: fields[3] for _, of_topic in reply.topics for fields in of_topic if not fields[1]}


async def read_changelog(
    client: Client, topic: str, partition: int, start: int, patience_s: float, owners: DeadOwners | None = None
) -> AsyncIterator[Changelog]:
    """``read_log`` of a changelog."""
    async for segment in read_log(client, topic, partition, start, patience_s, owners):
        keys: list[Any] = segment.keys  # Eddy writes none without a key, and the broker refuses them of such a topic
        yield Changelog(keys, segment.values, segment.offsets, segment.next_offset)


async def read_log(
    client: Client, topic: str, partition: int, start: int, patience_s: float, owners: DeadOwners | None = None
) -> AsyncIterator[Segment]:
    """From ``start``, read committed, until the position has passed the watermark asked for first (X8).

    ``owners``: told while an open transaction holds the log back (X9). Raises OutcomeUnknown when nothing arrives
    for ``patience_s`` seconds, TimeoutError or KafkaError where the log's ends are not told, NotAuthorized, and
    TakeoverError for what no repetition helps.
    """
    # Read uncommitted: behind an open transaction of a dead owner there may be snapshots that count.
    watermark = (await offsets_at(client, topic, [partition], LATEST, committed=False))[partition]
    begin = (await offsets_at(client, topic, [partition], EARLIEST, committed=False))[partition]
    if start > watermark:
        raise TakeoverError(partition, f"{topic} ends at {watermark}, before {start}: it was made anew")
    position = max(start, begin)
    clock = asyncio.get_running_loop().time
    heard, watch = clock(), None
    while position < watermark:
        fields = await _fetch(client, topic, partition, position)
        code = fields[1] if fields is not None else None
        if code == wire.OFFSET_OUT_OF_RANGE:
            # The cleaner may have removed the first segment after we had asked where the log begins.
            position = (await offsets_at(client, topic, [partition], EARLIEST, committed=False))[partition]
        elif code in wire.NOT_AUTHORIZED:
            raise NotAuthorized(f"not authorized: allow Read on the topic {topic!r}")
        elif code and code not in wire.LEADER_RETRY:
            raise TakeoverError(partition, f"{topic} cannot be read: error {code}")
        if code is None or code:
            await asyncio.gather(client.force_metadata_update(), asyncio.sleep(RECONNECT_PAUSE_S))
        elif fields is not None:
            stretch = _unpack(topic, partition, position, fields)
            if stretch.next_offset > position:
                position, heard, watch = stretch.next_offset, clock(), None
                yield stretch
            elif owners is not None:
                watch = watch or owners.watch((topic, partition))
                await watch.waiting()
        if clock() - heard > patience_s:
            raise OutcomeUnknown(
                f"{topic}-{partition} is held back at offset {position} of {watermark} by an open transaction, or its"
                f" leader is away: nothing for {patience_s:g} s"
            )


async def _fetch(client: Client, topic: str, partition: int, position: int) -> Any:
    """The answer's fields for the partition; None where no answer came."""
    request = FetchRequest(
        RESTORE_WAIT_MS, 1, RESTORE_BYTES, READ_COMMITTED, [(topic, [(partition, position, RESTORE_BYTES)])]
    )
    try:
        async with asyncio.timeout(client.limit_s):
            reply = await client.send(await client.find_leader(topic, partition), request)
    except (*DISCONNECTED, TimeoutError) as error:
        log.info("reading %s-%d: %r, asking again", topic, partition, error)
        return None
    return next(fields for _, of_topic in reply.topics for fields in of_topic)


def _unpack(topic: str, partition: int, position: int, fields: Any) -> Segment:
    """What was fetched from ``position`` on, which may be nothing."""
    aborted, data = fields[-3] if len(fields) > 7 else fields[-2], fields[-1]
    tp = TopicPartition(topic, partition)
    records = MemoryRecords(data or b"")
    try:
        segment: Segment = next(ColumnRecords(tp, records, aborted, position, None, None, True, READ_COMMITTED))
    except CorruptRecordException as error:
        raise TakeoverError(partition, f"{topic} is damaged after offset {position}: {error}") from error
    return segment
    return segment
