"""What Kafka promises, and what traps it sets, request by request: the same questions to a broker and to the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)
from aiokafka.record.memory_records import MemoryRecords

from pipeline.columns import Records
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import GROUP, TRANSACTION, Client
from pipeline.transport.kafka.inquiries import DescribeTransactions, ListTransactions
from pipeline.transport.kafka.logs import EARLIEST, LATEST, offsets_at
from pipeline.transport.kafka.records import batches
from tests.contract.transport_world import World

OK, ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCING, FENCED_INSTANCE, UNSTABLE = 0, 22, 25, 27, 82, 88
INVALID_STATE, INVALID_EPOCH, METADATA_TOO_LARGE = 48, 47, 12
FENCED = {INVALID_EPOCH, 90}
PROTOCOL = [("roundrobin", b"\0\0\0\0\0\1\0\5topic\0\0\0\0")]
SESSION_MS = 6_000


class Kafka:
    """One client, request by request; nothing is repeated but what the broker says is not yet ready."""

    def __init__(self, world: World, client: Client) -> None:
        self.world, self.client = world, client
        self.group = world.group
        self.id = f"{world.group}-lane"

    async def to_group(self, request: Any) -> Any:
        node = await self.client.coordinator(GROUP, self.group)
        return await self.client.send(node, request, group=ConnectionGroup.COORDINATION)

    async def to_transactions(self, id: str, request: Any) -> Any:
        node = await self.client.coordinator(TRANSACTION, id)
        return await self.client.send(node, request, group=ConnectionGroup.COORDINATION)

    # ---- transactions

    async def init(self, id: str, timeout_ms: int = 10_000) -> tuple[int, int]:
        """Producer and epoch, asked again while the last transaction ends."""
        reply = await self.client.ask(TRANSACTION, id, InitProducerIdRequest(id, timeout_ms), lambda r: {r.error_code})
        assert reply.error_code == OK
        return reply.producer_id, reply.producer_epoch

    async def add(self, id: str, producer: tuple[int, int], *partitions: int) -> set[int]:
        """Error numbers; waits while the last transaction ends, and until the topic is known everywhere."""
        request = AddPartitionsToTxnRequest(id, *producer, [(self.world.output, list(partitions))])
        while True:
            reply = await self.client.ask(
                TRANSACTION, id, request, lambda r: {code for _, rows in r.errors for _, code in rows}
            )
            codes = {code for _, rows in reply.errors for _, code in rows}
            if wire.UNKNOWN_TOPIC not in codes:
                return codes
            await asyncio.sleep(0.02)

    async def add_offsets(self, id: str, producer: tuple[int, int]) -> int:
        request = AddOffsetsToTxnRequest(id, *producer, self.group)
        return int((await self.client.ask(TRANSACTION, id, request, lambda r: {r.error_code})).error_code)

    async def write(self, id: str, producer: tuple[int, int], partition: int, *values: bytes, seq: int = 0) -> int:
        """The error number; asked again while the leader verifies the transaction, or does not know that it leads."""
        n = len(values)
        # Of now: a record far from its segment's first begins another one, and a fetch reads of one segment alone.
        (batch,) = batches(Records([b"k"] * n, list(values), np.full(n, int(time.time() * 1e3), np.int64)))
        data = batch.signed(*producer, seq)
        request = wire.Produce(id, -1, 5000, [(self.world.output, [(partition, data)])])
        while True:
            reply = await self.client.send(await self.client.find_leader(self.world.output, partition), request)
            ((_, (row,)),) = reply.topics
            if row[1] not in wire.LEADER_RETRY:
                return int(row[1])
            await asyncio.sleep(0.005)

    async def offsets(
        self,
        id: str,
        producer: tuple[int, int],
        offsets: dict[int, tuple[int, str]],
        generation: int = -1,
        member: str = "",
        instance: str | None = None,
    ) -> set[int]:
        """TxnOffsetCommit v3: the error numbers."""
        rows: list[Any] = [(p, offset, -1, metadata, {}) for p, (offset, metadata) in offsets.items()]
        request = wire.TxnOffsetCommit(
            id, self.group, *producer, generation, member, instance, [(self.world.input, rows, {})], {}
        )
        reply = await self.client.ask(
            GROUP, self.group, request, lambda r: {code for _, ps, _ in r.topics for _, code, _ in ps}
        )
        return {code for _, ps, _ in reply.topics for _, code, _ in ps}

    async def end(self, id: str, producer: tuple[int, int], commit: bool) -> int:
        return int((await self.to_transactions(id, EndTxnRequest(id, *producer, commit))).error_code)

    async def ended(self, id: str, producer: tuple[int, int], commit: bool) -> None:
        reply = await self.client.ask(TRANSACTION, id, EndTxnRequest(id, *producer, commit), lambda r: {r.error_code})
        assert reply.error_code == OK

    # ---- looking

    async def committed(self, partition: int, stable: bool = True) -> tuple[int, int, str]:
        """Error, offset, metadata of one partition."""
        request = wire.OffsetFetch(self.group, [(self.world.input, [partition], {})], stable, {})
        reply = await self.to_group(request)
        ((_, ((_, offset, _, metadata, code, _),), _),) = reply.topics
        return code or reply.error_code, offset, metadata or ""

    async def settled(self, partition: int) -> tuple[int, str]:
        """Offset and metadata once no transaction holds pending ones."""
        async with asyncio.timeout(15):
            while (found := await self.committed(partition))[0] == UNSTABLE:
                await asyncio.sleep(0.005)
        assert found[0] == OK
        return found[1:]

    async def ends(self, partition: int) -> tuple[int, int]:
        """Last stable offset and high watermark of the output."""
        stable = await offsets_at(self.client, self.world.output, [partition], LATEST, committed=True)
        high = await offsets_at(self.client, self.world.output, [partition], LATEST, committed=False)
        return stable[partition], high[partition]

    async def fetch(self, partition: int, offset: int, committed: bool) -> Any:
        """The fields of one partition's answer."""
        isolation = READ_COMMITTED if committed else READ_UNCOMMITTED
        request = FetchRequest(10, 1, 1 << 20, isolation, [(self.world.output, [(partition, offset, 1 << 20)])])
        reply = await self.client.send(await self.client.find_leader(self.world.output, partition), request)
        ((_, (fields,)),) = reply.topics
        return fields

    # ---- membership

    async def join(self, member: str = "", instance: str | None = None) -> Any:
        request = JoinGroupRequest(self.group, SESSION_MS, SESSION_MS, member, instance, "consumer", PROTOCOL)
        return await self.to_group(request)

    async def sync(self, generation: int, member: str, instance: str | None, given: list[tuple[str, bytes]]) -> Any:
        return await self.to_group(SyncGroupRequest(self.group, generation, member, instance, given))

    async def heartbeat(self, generation: int, member: str) -> int:
        return int((await self.to_group(HeartbeatRequest(self.group, generation, member))).error_code)

    async def leave(self, member: str, instance: str | None) -> None:
        await self.to_group(wire.LeaveGroup(self.group, [(member, instance)]))

    async def member(self, instance: str) -> tuple[int, str]:
        """Joins alone: generation and member id."""
        joined = await self.join(instance=instance)
        assert joined.error_code == OK
        given = [(joined.member_id, b"mine")]
        synced = await self.sync(joined.generation_id, joined.member_id, instance, given)
        assert (synced.error_code, synced.member_assignment) == (OK, b"mine")
        return joined.generation_id, joined.member_id


def batches_of(fields: Any) -> list[tuple[int, int, bool]]:
    """First offset, offset after the last and whether it is a control batch, of each batch of a fetch."""
    memory, out = MemoryRecords(fields[-1]), []
    while memory.has_next():
        batch = memory.next_batch()
        out.append((batch.base_offset, batch.next_offset, batch.is_control_batch))
    return out


async def until(ask: Callable[[], Any], wanted: Any) -> None:
    async with asyncio.timeout(15):
        while await ask() != wanted:
            await asyncio.sleep(0.005)


class KafkaSuite:
    """Inherit and give a ``world`` fixture."""

    @asynccontextmanager
    async def kafka(self, world: World) -> AsyncIterator[Kafka]:
        client = Client(world.servers, "suite", 10_000)
        await client.connect()
        try:
            yield Kafka(world, client)
        finally:
            await client.shut()

    # Transactions

    async def test_what_a_transaction_wrote_is_seen_when_its_marker_is_there(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            assert await k.add(k.id, me, 0) == {OK}
            assert await k.write(k.id, me, 0, b"a", b"b") == OK
            assert await k.ends(0) == (0, 2)
            assert batches_of(await k.fetch(0, 0, committed=True)) == []
            assert batches_of(await k.fetch(0, 0, committed=False)) == [(0, 2, False)]
            assert await k.end(k.id, me, True) == OK
            await until(lambda: k.ends(0), (3, 3))  # the marker has an offset, too
            assert batches_of(await k.fetch(0, 0, committed=True)) == [(0, 2, False), (2, 3, True)]
            assert await k.end(k.id, me, True) == OK  # asked again, it answers the same

    async def test_aborted_records_are_named(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            await k.add(k.id, me, 0)
            assert await k.write(k.id, me, 0, b"no") == OK
            await k.ended(k.id, me, False)
            await until(lambda: k.ends(0), (2, 2))
            await k.add(k.id, me, 0)
            assert await k.write(k.id, me, 0, b"yes", seq=1) == OK
            await k.ended(k.id, me, True)
            await until(lambda: k.ends(0), (4, 4))
            fields = await k.fetch(0, 0, committed=True)
            assert [tuple(a) for a in fields[-3]] == [(me[0], 0)]
            assert batches_of(fields) == [(0, 1, False), (1, 2, True), (2, 3, False), (3, 4, True)]
            assert [s.value for s in await world.read(world.output)] == [b"yes"]

    async def test_one_transaction_after_the_other_waits_for_the_markers(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            for i in range(5):
                assert await k.add(k.id, me, 0, 1) == {OK}
                assert await k.write(k.id, me, 0, b"%d" % i, seq=i) == OK
                assert await k.write(k.id, me, 1, b"%d" % i, seq=i) == OK
                assert await k.end(k.id, me, True) == OK
            seen = await world.read(world.output)
            assert [s.value for s in seen if s.partition == 1] == [b"%d" % i for i in range(5)]

    async def test_a_batch_that_is_sent_again_is_there_once(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            await k.add(k.id, me, 0)
            assert await k.write(k.id, me, 0, b"a", seq=0) == OK
            assert await k.write(k.id, me, 0, b"a", seq=0) == OK
            assert await k.write(k.id, me, 0, b"c", seq=2) == 45  # out of order: something is missing
            await k.ended(k.id, me, True)
            assert [s.value for s in await world.read(world.output)] == [b"a"]

    async def test_initialising_aborts_what_was_open_and_fences_its_owner(self, world: World) -> None:
        async with self.kafka(world) as k:
            old = await k.init(k.id)
            await k.add(k.id, old, 0)
            await k.add_offsets(k.id, old)
            assert await k.write(k.id, old, 0, b"never") == OK
            assert await k.offsets(k.id, old, {0: (7, "never")}) == {OK}
            new = await k.init(k.id)
            assert new[0] == old[0]
            assert new[1] > old[1]
            assert await k.settled(0) == (-1, "")  # decided when the answer is there
            assert await k.write(k.id, old, 0, b"late", seq=1) in FENCED
            assert await k.add(k.id, old, 0) <= FENCED
            assert await k.end(k.id, old, True) in FENCED
            assert (await k.offsets(k.id, old, {0: (9, "late")})) <= FENCED
            assert await world.read(world.output) == []
            assert await k.settled(0) == (-1, "")

    async def test_records_that_were_not_announced_are_refused(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            await k.add(k.id, me, 0)
            assert await k.write(k.id, me, 1, b"stray") == INVALID_STATE
            assert await k.write(k.id, me, 0, b"a") == OK
            await k.ended(k.id, me, True)
            await until(lambda: k.ends(0), (2, 2))
            assert await k.write(k.id, me, 0, b"late", seq=1) == INVALID_STATE
            assert [s.value for s in await world.read(world.output)] == [b"a"]

    async def test_ending_what_has_not_begun_is_refused(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            assert await k.end(k.id, me, True) == INVALID_STATE

    async def test_a_transaction_past_its_timeout_is_aborted_for_its_owner(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id, 1_000)
            await k.add(k.id, me, 0)
            assert await k.write(k.id, me, 0, b"a") == OK
            async with asyncio.timeout(30):  # a broker looks every ten seconds
                while (await k.ends(0))[0] != 2:
                    await asyncio.sleep(0.05)
            assert await k.end(k.id, me, True) in {*FENCED, INVALID_STATE}
            assert await world.read(world.output) == []

    async def test_open_transactions_can_be_asked_for(self, world: World) -> None:
        async with self.kafka(world) as k:
            id = k.id
            me = await k.init(id)
            await k.add(id, me, 0, 2)
            await k.add_offsets(id, me)
            node = await k.client.coordinator(TRANSACTION, id)
            listed = await k.client.send(node, ListTransactions(["Ongoing"], [], {}))
            assert id in {row[0] for row in listed.transactions}
            described = await k.to_transactions(id, DescribeTransactions([id], {}))
            ((code, _, state, timeout_ms, _, producer, epoch, topics, _),) = described.transactions
            assert (code, state, timeout_ms, producer, epoch) == (OK, "Ongoing", 10_000, *me)
            there = {topic: sorted(partitions) for topic, partitions, _ in topics}
            assert there.pop(world.output) == [0, 2]
            assert list(there) == ["__consumer_offsets"]
            await k.ended(id, me, False)
            listed = await k.client.send(node, ListTransactions(["Ongoing"], [], {}))
            assert id not in {row[0] for row in listed.transactions}

    # Offsets in transactions

    async def test_pending_offsets_are_unstable_until_they_are_decided(self, world: World) -> None:
        async with self.kafka(world) as k:
            for commit, want in ((False, (-1, "")), (True, (5, "five"))):
                me = await k.init(k.id)
                assert await k.add_offsets(k.id, me) == OK
                assert await k.offsets(k.id, me, {0: (5, "five")}) == {OK}
                assert (await k.committed(0))[0] == UNSTABLE
                assert await k.committed(0, stable=False) == (OK, -1, "")
                assert (await k.committed(1))[0] == OK  # of the others nothing is pending
                assert await k.end(k.id, me, commit) == OK
                assert await k.settled(0) == want

    async def test_metadata_of_more_than_4096_bytes_is_refused_by_partition(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            await k.add_offsets(k.id, me)
            assert await k.offsets(k.id, me, {0: (1, "x" * 4_096)}) == {OK}
            assert await k.offsets(k.id, me, {1: (1, "x" * 4_097)}) == {METADATA_TOO_LARGE}
            await k.ended(k.id, me, False)

    async def test_offsets_that_were_not_announced_are_refused(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            await k.add(k.id, me, 0)
            assert await k.offsets(k.id, me, {0: (1, "")}) == {INVALID_STATE}
            await k.ended(k.id, me, False)

    async def test_the_membership_is_compared_unless_it_is_none(self, world: World) -> None:
        async with self.kafka(world) as k:
            generation, member = await k.member("i")
            me = await k.init(k.id)
            await k.add_offsets(k.id, me)
            for wrong, code in (
                ((generation - 1, member, "i"), ILLEGAL_GENERATION),
                ((generation + 1, member, "i"), ILLEGAL_GENERATION),
                ((generation, "somebody", "i"), FENCED_INSTANCE),
                ((generation, "somebody", None), UNKNOWN_MEMBER),
                ((generation, member, "nobody"), UNKNOWN_MEMBER),
            ):
                assert await k.offsets(k.id, me, {0: (1, "")}, *wrong) == {code}, wrong
            assert await k.offsets(k.id, me, {0: (2, "")}, generation, member, "i") == {OK}
            assert await k.offsets(k.id, me, {0: (3, "unchecked")}) == {OK}  # the trap: generation -1, no member
            await k.ended(k.id, me, True)
            assert await k.settled(0) == (3, "unchecked")
            await k.leave(member, "i")

    async def test_somebody_elses_offsets_are_taken_only_from_an_empty_group(self, world: World) -> None:
        async with self.kafka(world) as k:

            async def set_offset(offset: int) -> int:
                request = OffsetCommitRequest(world.group, -1, "", -1, [(world.input, [(0, offset, "")])])
                reply = await k.to_group(request)
                return int(reply.topics[0][1][0][1])

            assert await set_offset(3) == OK
            generation, member = await k.member("i")
            assert await set_offset(4) == UNKNOWN_MEMBER
            me = await k.init(k.id)
            await k.add_offsets(k.id, me)
            assert await k.offsets(k.id, me, {0: (9, "nine")}, generation, member, "i") == {OK}
            await k.ended(k.id, me, True)
            assert await k.settled(0) == (9, "nine")
            await k.leave(member, "i")
            assert await set_offset(2) == OK
            assert await k.settled(0) == (2, "")  # blanks the metadata

    # Groups

    async def test_a_static_member_that_returns_gets_its_place_without_a_rebalance(self, world: World) -> None:
        async with self.kafka(world) as k:
            generation, old = await k.member("i")
            joined = await k.join(instance="i")
            assert (joined.error_code, joined.generation_id) == (OK, generation)
            assert joined.member_id != old
            assert joined.leader_id != joined.member_id  # it must not assign again
            synced = await k.sync(generation, joined.member_id, "i", [])
            assert (synced.error_code, synced.member_assignment) == (OK, b"mine")
            me = await k.init(k.id)
            await k.add_offsets(k.id, me)
            assert await k.offsets(k.id, me, {0: (1, "")}, generation, old, "i") == {FENCED_INSTANCE}
            assert await k.offsets(k.id, me, {0: (1, "")}, generation, joined.member_id, "i") == {OK}
            assert await k.heartbeat(generation, old) == UNKNOWN_MEMBER
            await k.ended(k.id, me, False)
            await k.leave(joined.member_id, "i")

    async def test_a_second_member_makes_a_new_generation_and_the_old_one_may_commit_until_then(
        self, world: World
    ) -> None:
        async with self.kafka(world) as k, self.kafka(world) as other:
            generation, first = await k.member("a")
            joining = asyncio.create_task(other.join(instance="b"))
            await until(lambda: k.heartbeat(generation, first), REBALANCING)
            me = await k.init(k.id)
            await k.add_offsets(k.id, me)
            assert await k.offsets(k.id, me, {0: (1, "")}, generation, first, "a") == {OK}
            again = await k.join(first, "a")
            second = await joining
            assert again.generation_id == second.generation_id == generation + 1
            assert await k.offsets(k.id, me, {0: (2, "")}, generation, first, "a") == {ILLEGAL_GENERATION}
            assert await k.offsets(k.id, me, {0: (3, "")}, generation + 1, first, "a") == {OK}  # before it has synced
            leader = again if again.leader_id == again.member_id else second
            assert {row[1] for row in leader.members} == {"a", "b"}
            given = [(again.member_id, b"A"), (second.member_id, b"B")]
            mine, theirs = await asyncio.gather(
                k.sync(generation + 1, first, "a", given if leader is again else []),
                other.sync(generation + 1, second.member_id, "b", given if leader is second else []),
            )
            assert (mine.member_assignment, theirs.member_assignment) == (b"A", b"B")
            assert await k.heartbeat(generation, first) == ILLEGAL_GENERATION
            await k.ended(k.id, me, False)
            await k.leave(first, "a")
            await other.leave(second.member_id, "b")

    async def test_who_has_left_is_unknown(self, world: World) -> None:
        async with self.kafka(world) as k:
            generation, member = await k.member("i")
            await k.leave(member, "i")
            assert await k.heartbeat(generation, member) == UNKNOWN_MEMBER
            me = await k.init(k.id)
            await k.add_offsets(k.id, me)
            assert await k.offsets(k.id, me, {0: (1, "")}, generation, member, "i") == {UNKNOWN_MEMBER}
            await k.ended(k.id, me, False)

    # Logs

    async def test_an_offset_outside_the_log_is_out_of_range(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            await k.add(k.id, me, 0)
            await k.write(k.id, me, 0, b"a")
            await k.ended(k.id, me, True)
            await until(lambda: k.ends(0), (2, 2))
            assert (await k.fetch(0, 2, committed=True))[1] == OK
            assert (await k.fetch(0, 3, committed=True))[1] == wire.OFFSET_OUT_OF_RANGE
            starts = await offsets_at(k.client, world.output, [0], EARLIEST, committed=False)
            assert starts == {0: 0}

    async def test_a_batch_beyond_the_topics_bound_is_refused(self, world: World) -> None:
        async with self.kafka(world) as k:
            me = await k.init(k.id)
            await k.add(k.id, me, 0)
            assert await k.write(k.id, me, 0, b"x" * 1_100_000) == wire.MESSAGE_TOO_LARGE
            assert await k.write(k.id, me, 0, b"a") == OK  # the same sequence: nothing was written
            await k.ended(k.id, me, True)
            assert [s.value for s in await world.read(world.output)] == [b"a"]
