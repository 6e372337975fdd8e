"""Transactions that are open while others wait: what they see, and how a dead owner's is ended (X9)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka.protocol.transaction import EndTxnRequest

from pipeline.columns import Committed, Part, as_list
from pipeline.transport.kafka import dead_owners
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.transport import KafkaTransport
from services.broker import Broker
from tests.contract.test_transports import KafkaWorld
from tests.contract.transport_suite import TransportSuite
from tests.contract.transport_world import PARTITIONS, Member, part, records

pytestmark = pytest.mark.kafka

member_of = TransportSuite().member


@pytest.fixture
async def world(broker: Broker, unique: Callable[[str], str]) -> AsyncIterator[KafkaWorld]:
    world = KafkaWorld(broker, unique("o").lower())
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    await world.start()
    yield world
    await world.stop()


def hold_open(transport: KafkaTransport) -> asyncio.Event:
    """From now on this transport's transactions stop before EndTxn; the event says that one has."""
    writer = transport._opened.writer
    reached, ask = asyncio.Event(), writer._ask

    async def stopping(request: object, name: str) -> None:
        if isinstance(request, EndTxnRequest):
            reached.set()
            await asyncio.Event().wait()
        await ask(request, name)

    writer._ask = stopping  # type: ignore[method-assign]
    return reached


async def test_stable_offsets_wait_for_a_transaction_that_is_open(world: KafkaWorld) -> None:
    async with member_of(world) as member:
        membership = await member.until_assigned()
        transport = member.transport
        assert isinstance(transport, KafkaTransport)
        await transport.commit(membership, [part(0, 1, "before")])
        reached = hold_open(transport)
        committing = asyncio.create_task(transport.commit(membership, [part(0, 2, "pending")]))
        await asyncio.wait_for(reached.wait(), 5)
        asking = asyncio.create_task(transport.stable_offsets(membership, [0]))
        restoring = asyncio.create_task(anext(aiter(transport.changelog(0)), None))
        await asyncio.sleep(0.5)
        assert not asking.done()
        assert await restoring is None, "nothing was written to the changelog: nothing holds it back"
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        await transport.settle()
        assert await asyncio.wait_for(asking, 2) == {0: Committed(1, "before")}


async def test_a_changelog_held_back_is_read_to_its_watermark(world: KafkaWorld) -> None:
    async with member_of(world) as member:
        membership = await member.until_assigned()
        transport = member.transport
        assert isinstance(transport, KafkaTransport)
        await transport.commit(membership, [part(0, 1, snapshots=records([b"a"], [b"1"]))])
        reached = hold_open(transport)
        open_part = part(0, 2, snapshots=records([b"a", b"b"], [b"2", b"2"]))
        committing = asyncio.create_task(transport.commit(membership, [open_part]))
        await asyncio.wait_for(reached.wait(), 5)

        async def restore() -> list[tuple[bytes, bytes | None]]:
            return [pair async for s in transport.changelog(0) for pair in zip(s.keys, as_list(s.values), strict=True)]

        restoring = asyncio.create_task(restore())
        await asyncio.sleep(0.5)
        assert not restoring.done(), "the open transaction's records lie before the watermark"
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        await transport.settle()
        assert await asyncio.wait_for(restoring, 5) == [(b"a", b"1")]


DIES_IN_ITS_TRANSACTION = """
import asyncio, sys
from pipeline.config import Config
from pipeline.columns import Records
from tests.contract.transport_world import Member, part, records
from tests.kafka.test_open_transactions import hold_open
from pipeline.transport import connect

async def main():
    servers, group, topic_in, topic_out = sys.argv[1:]
    config = Config(
        bootstrap_servers=servers, group=group, input=topic_in, output=topic_out, worker_id="w0",
        transaction_timeout_ms=60_000,  # a test that waits for it has failed
    )
    member = Member(connect(config))
    await member.transport.start(member)
    membership = await member.until_assigned(4)
    await member.transport.commit(membership, [part(0, 1, "done", outputs=records([b"k"], [b"done"]))])
    reached = hold_open(member.transport)
    content = dict(outputs=records([b"k"], [b"open"]), snapshots=records([b"k"], [b"open"]))
    task = asyncio.create_task(member.transport.commit(membership, [part(p, 2, "open", **content) for p in range(4)]))
    await reached.wait()
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def killed_inside_its_transaction(world: KafkaWorld) -> None:
    """A worker w0 that has all partitions and leaves a transaction on each of them open."""
    command = [sys.executable, "-c", DIES_IN_ITS_TRANSACTION, world.servers, world.group, world.input, world.output]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=os.getcwd())
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"open\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()


async def test_a_kill_inside_a_transaction_is_settled_by_the_same_lane(world: KafkaWorld) -> None:
    await killed_inside_its_transaction(world)
    began = time.monotonic()
    async with member_of(world) as member:
        membership = await member.until_assigned(4)
        found = await member.transport.stable_offsets(membership, range(4))
        assert found == {0: Committed(1, "done"), 1: None, 2: None, 3: None}
        assert [key async for s in member.transport.changelog(0) for key in s.keys] == []
        # Long before the transaction's own time-out, and before the dead member's session ends.
        assert time.monotonic() - began < 4
        await member.transport.commit(membership, [Part(0, b"", 2, "again", records([b"k"], [b"again"]))])
    assert [s.value for s in await world.read(world.output)] == [b"done", b"again"]


async def test_a_dead_owners_transaction_is_ended_by_who_takes_over(world: KafkaWorld) -> None:
    await killed_inside_its_transaction(world)
    async with member_of(world, "w1") as member:
        membership = await member.until_assigned(4)  # when the dead one's session is over
        began = time.monotonic()
        # As many takeovers do at once.
        asked = (member.transport.stable_offsets(membership, [p]) for p in range(4))
        found = await asyncio.gather(*asked)
        assert time.monotonic() - began < 1
        assert found == [{0: Committed(1, "done")}, {1: None}, {2: None}, {3: None}]
        for p in range(4):
            assert [key async for s in member.transport.changelog(p) for key in s.keys] == []
        assert time.monotonic() - began < 1.5
        await member.transport.commit(membership, [Part(0, b"", 2, "again", records([b"k"], [b"again"]))])
    assert [s.value for s in await world.read(world.output)] == [b"done", b"again"]


@asynccontextmanager
async def open_elsewhere(world: KafkaWorld, *parts: Part) -> AsyncIterator[tuple[Member, Member, asyncio.Task[object]]]:
    """Two members of one group; the first has this transaction open and lives, and the second waits for it."""
    async with member_of(world, "w0", transaction_timeout_ms=60_000) as first:
        membership = await first.until_assigned(4)
        assert isinstance(first.transport, KafkaTransport)
        reached = hold_open(first.transport)
        committing = asyncio.create_task(first.transport.commit(membership, parts))
        await asyncio.wait_for(reached.wait(), 5)
        async with member_of(world, "w1") as second:
            await second.until_assigned(2)
            yield first, second, committing
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)


async def test_an_owner_that_lives_after_all_starts_again(world: KafkaWorld) -> None:
    async with open_elsewhere(world, part(0, 1, "open", outputs=records([b"k"], [b"v"]))) as (
        first,
        second,
        committing,
    ):
        membership = await second.until_assigned(2)
        assert await asyncio.wait_for(second.transport.stable_offsets(membership, [0]), 1) == {0: None}
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        assert isinstance(first.transport, KafkaTransport)
        del first.transport._opened.writer._ask  # type: ignore[misc]  # no longer held
        # As after any failure: settled, and whoever has the partition now commits it.
        await first.transport.settle()
        owner = first if 0 in first.partitions else second
        await owner.transport.commit(await owner.until_assigned(2), [part(0, 1, outputs=records([b"k"], [b"again"]))])
    assert [s.value for s in await world.read(world.output)] == [b"again"]


async def test_a_changelog_held_back_by_another_lane_is_let_go(world: KafkaWorld) -> None:
    """Where offsets are stable and the changelog is not: a tool's transaction, say."""
    async with open_elsewhere(world, part(0, 1, snapshots=records([b"k"], [b"open"]))) as (_, second, _):
        began = time.monotonic()
        assert [key async for s in second.transport.changelog(0) for key in s.keys] == []
        assert time.monotonic() - began < 1


async def test_only_what_is_waited_for_is_ended(world: KafkaWorld) -> None:
    one = part(0, 1, outputs=records([b"k"], [b"mine"]), snapshots=records([b"k"], [b"mine"]))
    async with open_elsewhere(world, one) as (first, second, committing):
        assert isinstance(second.transport, KafkaTransport)
        assert isinstance(first.transport, KafkaTransport)
        owners, changelog = second.transport._opened.dead_owners, world.config().changelog
        (((lane, _), places),) = (await owners.open()).items()
        assert lane == f"{world.group}-{world.input}-w0"
        assert places >= {(world.output, 0), (changelog, 0)}
        of_another = owners.watch_log((changelog, 3))
        own = first.transport._opened.dead_owners.watch_offsets([0])
        end = time.monotonic() + 1
        while time.monotonic() < end:
            await of_another.waiting()
            await own.waiting()
            await asyncio.sleep(0.01)
        assert await owners.open()
        # A group whose lanes begin alike, and write elsewhere.
        alike = dead_owners.DeadOwners(owners._client, f"{world.group}-", "", [world.output], 10_000)
        assert await alike.open() == {}
        assert not committing.done()


async def test_who_has_written_to_what_is_waited_for_is_ended_first(world: KafkaWorld) -> None:
    async with open_elsewhere(world, part(0, 1, outputs=records([b"k"], [b"elsewhere"]))) as (_, second, _):
        assert isinstance(second.transport, KafkaTransport)
        mine = second.partitions[0]
        reached = hold_open(second.transport)
        one = part(mine, 1, outputs=records([b"k"], [b"held"]))
        membership = await second.until_assigned(2)
        committing = asyncio.create_task(second.transport.commit(membership, [one]))
        await asyncio.wait_for(reached.wait(), 5)
        client = Client(world.servers, "third", 5_000)
        await client.connect()
        owners = dead_owners.DeadOwners(
            client, f"{world.group}-{world.input}-", "", [world.output, world.config().changelog], 10_000
        )
        watch = owners.watch_offsets([mine])
        left: list[set[str]] = []
        async with asyncio.timeout(5):
            while not left or left[-1]:
                await watch.waiting()
                lanes = {lane.removeprefix(f"{world.group}-{world.input}-") for (lane, _) in await owners.open()}
                if not left or lanes != left[-1]:
                    left.append(lanes)
                await asyncio.sleep(0.01)
        assert left == [{"w0", "w1"}, {"w0"}, set()]
        await client.shut()
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)


async def test_a_transaction_is_waited_for_where_the_broker_cannot_tell_whose_it_is(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.transport.kafka.inquiries.ListTransactionsRequestV0.API_VERSION", 99)
    with caplog.at_level(logging.INFO):
        async with open_elsewhere(world, part(0, 1, "open")) as (first, second, committing):
            asking = asyncio.create_task(second.transport.stable_offsets(await second.until_assigned(2), [0]))
            await asyncio.sleep(0.8)
            assert not asking.done()
            committing.cancel()
            await asyncio.gather(committing, return_exceptions=True)
            await first.transport.settle()
            assert await asyncio.wait_for(asking, 2) == {0: None}
    assert sum("too old to tell" in message for message in caplog.messages) == 1
