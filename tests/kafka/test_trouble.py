"""What somebody does to topics and permissions under a running worker: said in one line, nothing lost or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (
    AclOperation,
    AdminClient,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from pipeline.columns import Committed
from pipeline.errors import NotAuthorized, TopicError, UserError
from pipeline.transport.kafka import topic_watch
from pipeline.transport.kafka.transport import KafkaTransport
from services.broker import Broker
from tests.contract.test_transports import KafkaWorld
from tests.contract.transport_suite import TransportSuite
from tests.contract.transport_world import PARTITIONS, Member, part, records
from tests.kafka.permissions import GUARDED, allow_only
from tests.kafka.test_open_transactions import hold_open

pytestmark = pytest.mark.kafka

member_of = TransportSuite().member


@pytest.fixture
async def world(broker: Broker, unique: Callable[[str], str]) -> AsyncIterator[KafkaWorld]:
    world = KafkaWorld(broker, unique("t").lower())
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    await world.start()
    yield world
    await world.stop()


async def until_trouble(member: Member, partition: int) -> str:
    async with asyncio.timeout(20):
        while partition not in member.trouble:
            await member.transport.fetch(0.05)
    return str(member.trouble[partition])


async def still_reads(world: KafkaWorld, member: Member, partition: int, value: bytes) -> None:
    """The neighbours of a partition in trouble go on."""
    await world.produce(partition, b"k", value)
    async with asyncio.timeout(10):
        while True:
            for segment in await member.transport.fetch(0.1):
                if segment.partition == partition and value in segment.values:
                    return


# Reading


async def test_an_offset_that_is_no_longer_there_is_never_reset(world: KafkaWorld) -> None:
    for i in range(10):
        await world.produce(1, b"k", b"%d" % i)
    async with member_of(world) as member:

        def purge() -> None:
            admin = AdminClient({"bootstrap.servers": world.servers})
            place = TopicPartition(world.input, 1, 6)
            admin.delete_records([place])[place].result(10)

        await asyncio.to_thread(purge)
        member.begin()
        said = await until_trouble(member, 1)
        assert said.startswith(f"partition 1: offset 0 of '{world.input}' is not in the log: retention has passed")
        await still_reads(world, member, 0, b"after")
        assert list(member.trouble) == [1]
        assert member.lost == []
        # Once it is said where to go on, it does.
        member.transport.seek(1, 6)
        member.transport.resume([1])
        got = await member.fetch(4)
        assert [value for segment in got[1] for value in segment.values] == [b"6", b"7", b"8", b"9"]


def damage(data: Path, place: str, value: bytes) -> None:
    """Writes over the last record with this value, in the log of a broker that goes on."""
    (segment_file,) = data.glob(f"**/{place}/00000000000000000000.log")
    at = segment_file.read_bytes().rindex(value)
    with segment_file.open("r+b") as file:
        file.seek(at)
        file.write(b"?" * len(value))


async def test_a_damaged_batch_stops_its_partition_after_all_that_came_before(
    world: KafkaWorld, broker: Broker
) -> None:
    for i in range(5):
        await world.produce(2, b"k", b"value %d" % i)
    assert broker.data is not None
    await asyncio.to_thread(damage, broker.data, f"{world.input}-2", b"value 3")
    async with member_of(world) as member:
        member.begin()
        got = await member.fetch(3)
        assert [value for segment in got[2] for value in segment.values] == [b"value 0", b"value 1", b"value 2"]
        said = await until_trouble(member, 2)
        assert f"'{world.input}' is damaged at offset 3" in said
        await still_reads(world, member, 0, b"after")
        assert member.lost == []


async def test_an_input_that_grows_is_reported_and_its_new_partitions_wait(world: KafkaWorld) -> None:
    async with member_of(world) as member:
        assert isinstance(member.transport, KafkaTransport)
        before = await member.until_assigned(PARTITIONS)

        def grow() -> None:
            admin = AdminClient({"bootstrap.servers": world.servers})
            admin.create_partitions([NewPartitions(world.input, PARTITIONS + 2)])[world.input].result(10)

        await asyncio.to_thread(grow)
        async with asyncio.timeout(20):
            while member.membership in (None, before):
                await member.transport._opened.reading.force_metadata_update()
                await asyncio.sleep(0.1)
        membership = await member.until_assigned(PARTITIONS)
        assert sorted(member.trouble) == [PARTITIONS, PARTITIONS + 1]
        said = str(member.trouble[PARTITIONS])
        assert said.startswith(f"partition {PARTITIONS}: the input '{world.input}' has grown")
        assert f"give '{world.output}'" in said
        member.begin()
        await still_reads(world, member, 3, b"after")
        await member.transport.commit(membership, [part(3, 1, outputs=records([b"k"], [b"out"]))])
        # What waits there is not consumed, and another rebalance says nothing twice.
        await world.produce(PARTITIONS, b"k", b"waits")
        member.trouble = {}
        before = membership
        member.transport._opened.reader._member.request_rejoin()
        async with asyncio.timeout(20):
            while member.membership in (None, before):
                await asyncio.sleep(0.05)
        assert member.partitions == tuple(range(PARTITIONS))
        assert member.trouble == {}
        assert member.lost == []


async def test_partitions_that_came_while_the_groups_leader_was_away_find_somebody(world: KafkaWorld) -> None:
    """Its next life gets what the group keeps for a static member, and is not told that it leads."""
    first = Member(world.connect(world.config()))
    await first.transport.start(first)
    await first.until_assigned(PARTITIONS)
    await first.transport.stop()  # without leaving, as one that is killed

    def grow() -> None:
        admin = AdminClient({"bootstrap.servers": world.servers})
        for topic in (world.input, world.output, world.config().changelog, world.config().dead_letters):
            admin.create_partitions([NewPartitions(topic, PARTITIONS + 1)])[topic].result(10)

    await asyncio.to_thread(grow)
    async with member_of(world) as second:
        await second.until_assigned(PARTITIONS + 1)
        assert second.assignments == 2, "first what the dead one had"


# Topics that go away


@pytest.mark.parametrize("role", ["input", "output", "changelog", "dead letters"])
async def test_a_topic_that_is_deleted_ends_the_worker_by_name(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr(topic_watch, "LOOK_S", 0.2)
    monkeypatch.setattr(topic_watch, "SURE_S", 0.2)
    config = world.config()
    name = {
        "input": world.input,
        "output": world.output,
        "changelog": config.changelog,
        "dead letters": config.dead_letters,
    }[role]
    async with member_of(world) as member:
        assert isinstance(member.transport, KafkaTransport)
        member.begin()
        admin = AdminClient({"bootstrap.servers": world.servers})
        await asyncio.to_thread(admin.delete_topics([name])[name].result, 10)
        reason = await member.until_lost()
        assert isinstance(reason, TopicError)
        assert str(reason).startswith(f"{role} topic '{name}' was deleted while it was in use: ")
        # The broker makes topics on demand: asking where it is must be no demand.
        for client in (member.transport._opened.reading, member.transport._opened.writing):
            await client.force_metadata_update()
        there = await asyncio.to_thread(admin.list_topics, timeout=10)
        assert name not in there.topics


async def test_a_topic_made_anew_is_another_one(world: KafkaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_watch, "LOOK_S", 1.0)
    name = world.config().changelog
    async with member_of(world) as member:
        assert isinstance(member.transport, KafkaTransport)
        old = member.transport.changelog_id
        assert len(old) == 16
        assert old != bytes(16)
        admin = AdminClient({"bootstrap.servers": world.servers})

        def anew() -> None:
            admin.delete_topics([name])[name].result(10)
            admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(10)

        await asyncio.to_thread(anew)
        reason = await member.until_lost()
        assert str(reason).startswith(f"changelog topic '{name}' was deleted and made anew while it was in use: ")
    async with member_of(world) as again:
        assert isinstance(again.transport, KafkaTransport)
        assert again.transport.changelog_id != old


async def test_an_input_made_anew_is_not_read_on_under_its_name(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of the new one have the offsets that come next in the old one; what fails in between is looked into."""
    monkeypatch.setattr(topic_watch, "LOOK_S", 60.0)
    for i in range(5):
        await world.produce(1, b"k", b"%d" % i)
    async with member_of(world) as member:
        assert isinstance(member.transport, KafkaTransport)
        member.begin()
        await member.fetch(5)
        old = await member.transport.topic_ids()
        reading = asyncio.create_task(member.transport.fetch(30.0))
        admin = AdminClient({"bootstrap.servers": world.servers})

        def anew() -> None:
            admin.delete_topics([world.input])[world.input].result(10)
            admin.create_topics([NewTopic(world.input, PARTITIONS, 1)])[world.input].result(10)

        await asyncio.to_thread(anew)
        for i in range(20):
            await world.produce(1, b"k", b"%d" % i)
        reason = await member.until_lost()
        assert str(reason).startswith(f"input topic '{world.input}' was deleted")
        reading.cancel()
        assert await asyncio.gather(reading, return_exceptions=True) != [[]]
        assert await member.transport.fetch(0.0) == []
        changelog, input_ = await member.transport.topic_ids()
        assert (changelog, input_ != old[1]) == (old[0], True)


# Permissions


@pytest.fixture
async def guarded(unique: Callable[[str], str]) -> AsyncIterator[KafkaWorld]:
    """On a broker that asks Access Control Lists; what has none is allowed."""
    broker = Broker(settings=GUARDED)
    broker.start()
    world = KafkaWorld(broker, "guarded")
    try:
        for topic in (world.input, world.output):
            await world.create(topic, PARTITIONS)
        await world.start()
        yield world
        await world.stop()
    finally:
        broker.stop()


async def test_a_worker_needs_no_more_than_what_the_manual_says(guarded: KafkaWorld) -> None:
    """docs/operating.md, "Permissions"."""
    world, config = guarded, guarded.config()
    topic, group, lane = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
    write, read = AclOperation.WRITE, AclOperation.READ
    needed = (
        (topic, world.input, [read]),
        (topic, world.output, [write]),
        (topic, config.dead_letters, [write, AclOperation.CREATE]),
        (topic, config.changelog, [read, write, AclOperation.CREATE]),
        (group, world.group, [read]),
        (lane, f"{world.group}-{world.input}-", [write]),
    )
    for kind, name, operations in needed:
        pattern = ResourcePatternType.PREFIXED if kind == lane else ResourcePatternType.LITERAL
        await asyncio.to_thread(allow_only, world.servers, kind, name, *operations, pattern=pattern)
    one = part(0, 1, "m", outputs=records([b"k"], [b"out"]), snapshots=records([b"k"], [b"row"]))
    async with member_of(world, "w0", transaction_timeout_ms=60_000) as first:
        membership = await first.until_assigned(4)
        await first.transport.commit(membership, [one])
        await first.transport.publish([one])
        assert await first.transport.stable_offsets(membership, [0]) == {0: Committed(1, "m")}
        assert [key async for s in first.transport.changelog(0) for key in s.keys] == [b"k"]
        assert [m.name for m in await first.transport.members()] == ["w0"]
        # Also what ends a dead owner's transaction (X9).
        assert isinstance(first.transport, KafkaTransport)
        reached = hold_open(first.transport)
        committing = asyncio.create_task(first.transport.commit(membership, [one]))
        await asyncio.wait_for(reached.wait(), 5)
        async with member_of(world, "w1") as second:
            now = await second.until_assigned(2)
            assert await asyncio.wait_for(second.transport.stable_offsets(now, [0]), 2) == {0: Committed(1, "m")}
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        assert first.lost == []
        assert first.trouble == {}


async def test_permissions_taken_away_are_named_and_waited_for(guarded: KafkaWorld) -> None:
    world, servers = guarded, guarded.servers
    async with member_of(world) as member:
        membership, transport = await member.until_assigned(), member.transport
        lane, changelog = f"{world.group}-{world.input}-w0", world.config().changelog
        one = [part(0, 1, "m", outputs=records([b"k"], [b"out"]), snapshots=records([b"k"], [b"row"]))]
        taken = (
            (ResourceType.TOPIC, world.output, AclOperation.DESCRIBE, f"Write on the topic '{world.output}'"),
            (ResourceType.TOPIC, changelog, AclOperation.READ, f"Write on the topic '{changelog}'"),
            (ResourceType.TRANSACTIONAL_ID, lane, AclOperation.DESCRIBE, f"Write on the transactional id '{lane}'"),
        )
        for kind, name, left, grant in taken:
            give_back = await asyncio.to_thread(allow_only, servers, kind, name, left)

            async def until_refused() -> None:
                async with asyncio.timeout(20):
                    while True:  # the broker hears of it in a moment
                        await transport.commit(membership, one)

            with pytest.raises(NotAuthorized, match=f"not authorized: allow {grant}$"):
                await until_refused()
            if kind == ResourceType.TRANSACTIONAL_ID:
                with pytest.raises(NotAuthorized, match=grant):
                    await transport.settle()
            elif name == world.output:
                with pytest.raises(NotAuthorized, match=grant):
                    await transport.publish(one)
            seen = len(await world.read(world.output)) if name != world.output else None
            await asyncio.to_thread(give_back)
            async with asyncio.timeout(20):
                while True:
                    try:
                        await transport.settle()
                        await transport.commit(membership, one)
                        break
                    except NotAuthorized:
                        await asyncio.sleep(0.05)
            if seen is not None:
                assert len(await world.read(world.output)) == seen + 1
        assert member.lost == []
        assert member.trouble == {}


async def test_an_input_that_may_not_be_read_is_in_trouble_until_it_may(guarded: KafkaWorld) -> None:
    world = guarded
    async with member_of(world) as member:
        member.begin()
        await world.produce(0, b"k", b"before")
        assert list(await member.fetch(1)) == [0]
        give_back = await asyncio.to_thread(
            allow_only, world.servers, ResourceType.TOPIC, world.input, AclOperation.WRITE, AclOperation.DESCRIBE
        )
        assert f"not authorized: allow Read on the topic '{world.input}'" in await until_trouble(member, 0)
        await world.produce(0, b"k", b"after")
        await asyncio.to_thread(give_back)
        async with asyncio.timeout(20):
            values: list[bytes | None] = []
            while b"after" not in values:
                member.transport.resume([0])
                values += [v for s in await member.transport.fetch(0.2) for v in s.values]
        assert values == [b"after"]
        assert member.lost == []


async def test_a_group_that_may_not_be_joined_any_more_ends_the_worker_by_name(guarded: KafkaWorld) -> None:
    world = guarded
    async with member_of(world) as member:
        await asyncio.to_thread(allow_only, world.servers, ResourceType.GROUP, world.group, AclOperation.DESCRIBE)
        reason = await member.until_lost()
        assert isinstance(reason, UserError)
        assert str(reason) == f"not authorized to be in the group '{world.group}'"
