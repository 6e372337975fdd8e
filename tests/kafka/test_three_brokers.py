"""The transport on a cluster of three brokers, one of which dies while an owner is inside its transaction."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.columns import Committed
from pipeline.errors import CommitError
from pipeline.transport.kafka.client import GROUP
from pipeline.transport.kafka.transport import KafkaTransport
from services.jars import BrokerUnavailable
from services.quorum import Quorum
from tests.contract.test_transports import KafkaWorld
from tests.contract.transport_suite import TransportSuite
from tests.contract.transport_world import PARTITIONS, Member, part, records
from tests.kafka.test_open_transactions import hold_open

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

member_of = TransportSuite().member

SOON_DEAD = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}
FAILED_OVER_S = 60.0
"""Others lead in three seconds, on a quiet machine."""


@pytest.fixture
async def world() -> AsyncIterator[tuple[KafkaWorld, Quorum]]:
    try:
        quorum = Quorum(SOON_DEAD)
        await asyncio.to_thread(quorum.start)
    except BrokerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no embedded brokers: {reason}")
    world = KafkaWorld(quorum, "three")
    admin = AdminClient({"bootstrap.servers": quorum.address})
    topics = [NewTopic(name, PARTITIONS, 3) for name in (world.input, world.output)]
    for future in admin.create_topics(topics).values():
        await asyncio.to_thread(future.result, 30)
    await world.start()
    yield world, quorum
    await world.stop()
    await asyncio.to_thread(quorum.stop)


async def committed(member: Member, value: bytes) -> None:
    """As a worker commits: settled and sent again until it is in, under the membership of that time."""
    while True:
        try:
            await member.transport.settle()
            membership = await member.until_assigned()
            one = part(
                member.partitions[0], 9, "m", outputs=records([b"k"], [value]), snapshots=records([b"k"], [value])
            )
            await member.transport.commit(membership, [one])
            return
        except CommitError:
            await asyncio.sleep(0.05)


async def test_a_broker_dies_while_an_owner_is_inside_its_transaction(world: tuple[KafkaWorld, Quorum]) -> None:
    its, quorum = world
    async with member_of(its, "w0", transaction_timeout_ms=600_000) as first:
        membership = await first.until_assigned(PARTITIONS)
        assert isinstance(first.transport, KafkaTransport)
        await first.transport.commit(
            membership, [part(p, 1, "before", snapshots=records([b"k"], [b"before"])) for p in range(PARTITIONS)]
        )
        reached = hold_open(first.transport)
        open_parts = [part(p, 2, "open", snapshots=records([b"k"], [b"open"])) for p in range(PARTITIONS)]
        committing = asyncio.create_task(first.transport.commit(membership, open_parts))
        await asyncio.wait_for(reached.wait(), 10)
        async with member_of(its, "w1") as second:
            membership = await second.until_assigned(PARTITIONS // 2)
            assert isinstance(second.transport, KafkaTransport)
            # The one that all need most: it has the group, and so its offsets.
            node = await second.transport._opened.writing.coordinator(GROUP, its.group)
            await asyncio.to_thread(quorum.brokers[node - 1].kill)
            async with asyncio.timeout(FAILED_OVER_S):
                # What the owner holds open is ended, long before its time-out.
                found = await second.transport.stable_offsets(membership, range(PARTITIONS))
                assert found == dict.fromkeys(range(PARTITIONS), Committed(1, "before"))
                restored = await asyncio.gather(*(restore(second, p) for p in range(PARTITIONS)))
                assert restored == [[b"before"]] * PARTITIONS
                while True:
                    try:
                        await second.transport.publish([part(0, 2, outputs=records([b"k"], [b"published"]))])
                        break
                    except CommitError:
                        await asyncio.sleep(0.05)
                await committed(second, b"after")
                assert {m.name for m in await second.transport.members()} >= {"w1"}
            assert second.lost == []
            committing.cancel()
            await asyncio.gather(committing, return_exceptions=True)
    seen = [s.value for s in await its.read(its.output)]
    assert set(seen) == {b"published", b"after"}
    assert seen.count(b"after") == 1


async def restore(member: Member, partition: int) -> list[bytes | None]:
    while True:
        try:
            values: list[bytes | None] = []
            async for stretch in member.transport.changelog(partition):
                values += [bytes(v) for v in stretch.values if v is not None]
            return values
        except CommitError:
            await asyncio.sleep(0.05)
