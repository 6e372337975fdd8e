"""What a consumer group holds: its offsets with their metadata, and its members."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError

from pipeline.columns import Committed
from pipeline.errors import CommitError, NotAuthorized, OutcomeUnknown
from pipeline.transport.base import GroupMember
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import GROUP, Client

UNSTABLE_PAUSE_S = 0.01
STABLE = "Stable"


async def fetch_offsets(client: Client, group: str, topic: str, partitions: Collection[int], *, stable: bool) -> Any:
    """The answer of OffsetFetch v7; ``stable``: refused while a transaction holds pending ones. Raises KafkaError."""
    request = wire.OffsetFetch(group, [(topic, list(partitions), {})], stable, {})
    return await client.ask(GROUP, group, request, wire.fetched_codes)


async def stable_offsets(
    client: Client,
    group: str,
    topic: str,
    partitions: Collection[int],
    patience_s: float,
    waiting: Callable[[], Awaitable[None]] | None = None,
) -> dict[int, Committed]:
    """Offsets with their metadata, of partitions that have one, once no transaction holds pending ones.

    ``waiting``: called while one does. Raises OutcomeUnknown past ``patience_s`` seconds, NotAuthorized.
    """
    try:
        async with asyncio.timeout(patience_s):
            while True:
                reply = await fetch_offsets(client, group, topic, partitions, stable=True)
                bad = wire.fetched_codes(reply) - {0}
                if not bad:
                    break
                if bad != {wire.UNSTABLE_OFFSET_COMMIT}:
                    raise _refused(group, topic, bad)
                await asyncio.sleep(UNSTABLE_PAUSE_S)
                if waiting is not None:
                    await waiting()
    except TimeoutError:
        raise OutcomeUnknown(
            f"offsets of group {group!r} in {topic} {sorted(partitions)} were still pending after {patience_s:g} s"
        ) from None
    except KafkaError as error:
        raise _failed(group, "the offsets of group {!r} cannot be read", error) from error
    rows = [row for _, of_topic, _ in reply.topics for row in of_topic]
    return {row[0]: Committed(row[1], row[3] or "") for row in rows if row[1] >= 0}


def _failed(group: str, what: str, error: Exception) -> CommitError:
    if isinstance(error, GroupAuthorizationFailedError):  # who coordinates it is not told
        return NotAuthorized(f"not authorized: allow Read on the group {group!r}")
    return OutcomeUnknown(f"{what.format(group)}: {error!r}")


def _refused(group: str, topic: str, codes: set[int]) -> CommitError:
    if 29 in codes:
        return NotAuthorized(f"not authorized: allow Describe on the topic {topic!r}")
    if codes & wire.NOT_AUTHORIZED.keys():
        return NotAuthorized(f"not authorized: allow Read on the group {group!r}")
    return OutcomeUnknown(f"the offsets of group {group!r} cannot be read: errors {sorted(codes)}")


async def members_of(client: Client, group: str, topic: str) -> list[GroupMember]:
    """Members with their partitions of ``topic``, by name. Raises OutcomeUnknown past the time limit, NotAuthorized."""
    _, rows = await _describe(client, group)
    members = [
        GroupMember(instance_id or member_id, member_id, client_id, host.lstrip("/"), _partitions(assignment, topic))
        for member_id, instance_id, client_id, host, _, assignment in rows
    ]
    return sorted(members, key=lambda member: member.name)


async def assigned_in(client: Client, group: str, topic: str) -> set[int] | None:
    """Partitions of ``topic`` that somebody has; None while the group shares them out. Raises as ``members_of``."""
    state, rows = await _describe(client, group)
    return {p for *_, assignment in rows for p in _partitions(assignment, topic)} if state == STABLE else None


async def _describe(client: Client, group: str) -> tuple[str, list[Any]]:
    """A group's state, and its members as the broker tells of them."""
    request = wire.DescribeGroups([group], False)
    try:
        async with asyncio.timeout(client.limit_s):
            reply = await client.ask(GROUP, group, request, lambda r: {of_group[0] for of_group in r.groups})
    except (TimeoutError, KafkaError) as error:
        raise _failed(group, "group {!r} cannot be described", error) from error
    ((code, _, state, _, _, rows, _),) = reply.groups
    if code in wire.NOT_AUTHORIZED:
        raise wire.forbidden([code], group=group)
    if code:
        raise OutcomeUnknown(f"group {group!r} cannot be described: error {code}")
    return state, rows


def _partitions(assignment: bytes, topic: str) -> tuple[int, ...]:
    """None while the group rebalances."""
    if not assignment:
        return ()
    decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    return tuple(sorted(tp.partition for tp in decoded.partitions() if tp.topic == topic))
