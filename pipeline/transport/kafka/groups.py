"""Who is in a consumer group, and what each member has."""

from __future__ import annotations

import asyncio

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError

from pipeline.errors import OutcomeUnknown
from pipeline.transport.base import GroupMember
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import GROUP, Client


async def members_of(client: Client, group: str, topic: str) -> list[GroupMember]:
    """Members with their partitions of ``topic``, by name. Raises OutcomeUnknown past the time limit, NotAuthorized."""
    request = wire.DescribeGroups([group], False)
    try:
        async with asyncio.timeout(client.limit_s):
            reply = await client.ask(GROUP, group, request, lambda r: {of_group[0] for of_group in r.groups})
    except (TimeoutError, KafkaError) as error:
        raise OutcomeUnknown(f"group {group!r} cannot be described: {error!r}") from error
    ((code, _, _, _, _, rows, _),) = reply.groups
    if code in wire.NOT_AUTHORIZED:
        raise wire.forbidden([code], group=group)
    if code:
        raise OutcomeUnknown(f"group {group!r} cannot be described: error {code}")
    members = [
        GroupMember(instance_id or member_id, member_id, client_id, host.lstrip("/"), _partitions(assignment, topic))
        for member_id, instance_id, client_id, host, _, assignment in rows
    ]
    return sorted(members, key=lambda member: member.name)


def _partitions(assignment: bytes, topic: str) -> tuple[int, ...]:
    """None while the group rebalances."""
    if not assignment:
        return ()
    decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    return tuple(sorted(tp.partition for tp in decoded.partitions() if tp.topic == topic))
