"""Reading what real topics hold: compressed, compacted, transactional, old, damaged."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Collection

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from confluent_kafka import Producer

from pipeline.columns import Membership, Part, Records, Segment
from pipeline.transport.kafka.columns import ColumnRecords
from services.broker import Broker
from tests.conftest import create_topic
from tests.contract.test_transports import KafkaWorld
from tests.contract.transport_suite import TransportSuite
from tests.contract.transport_world import PARTITIONS, Member

pytestmark = pytest.mark.kafka


member_of = TransportSuite().member


@pytest.fixture
async def world(broker: Broker, unique: Callable[[str], str]):
    world = KafkaWorld(broker, unique("r").lower())
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    await world.start()
    yield world
    await world.stop()


def rows(segments: list[Segment]) -> list[tuple[int, bytes | None, bytes | None]]:
    return [(int(o), k, v) for s in segments for o, k, v in zip(s.offsets, s.keys, s.values, strict=True)]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_inputs_are_read(world: KafkaWorld, codec: str) -> None:
    def produce() -> None:
        producer = Producer({"bootstrap.servers": world.servers, "compression.type": codec, "linger.ms": 50})
        for i in range(1000):
            producer.produce(world.input, b"value %d" % i * 5, b"key %d" % (i % 13), partition=0, timestamp=1000 + i)
        assert producer.flush(20) == 0

    await asyncio.to_thread(produce)
    async with member_of(world) as member:
        member.begin()
        segments = (await member.fetch(1000))[0]
        assert rows(segments) == [(i, b"key %d" % (i % 13), b"value %d" % i * 5) for i in range(1000)]
        assert np.concatenate([s.timestamps for s in segments]).tolist() == list(range(1000, 2000))
        # In the middle of a batch, which is fetched whole.
        member.transport.seek(0, 777)
        segments = (await member.fetch(223))[0]
        assert int(segments[0].offsets[0]) == 777
        assert sum(map(len, segments)) == 223


async def test_aborted_and_unfinished_transactions_are_not_read(world: KafkaWorld) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=world.servers, transactional_id=f"{world.group}-producer")
    await producer.start()

    async def send(value: bytes) -> None:
        await producer.send_and_wait(world.input, value, b"k", partition=0)

    async with member_of(world) as member:
        member.begin()
        async with producer.transaction():
            await send(b"committed")
        await producer.begin_transaction()
        await send(b"aborted")
        await producer.abort_transaction()
        async with producer.transaction():
            await send(b"committed too")
        await producer.begin_transaction()
        await send(b"unfinished")
        got = await member.fetch(2)
        assert [v for s in got[0] for v in s.values] == [b"committed", b"committed too"]
        assert await member.transport.fetch(0.5) == []
        await producer.abort_transaction()
        # Control records and the aborted one hold nothing for us, but the position must get past them.
        segments = await member.transport.fetch(5)
        assert [(s.partition, len(s), s.values) for s in segments] == [(0, 0, [])]
        ends = await member.transport.log_ranges([0])
        assert segments[0].next_offset == ends[0].end == 8
        assert member.transport.lag([0]) == {0: 0}
    await producer.stop()


async def until_compacted(address: str, topic: str, partition: int, at_most: int) -> list[Segment]:
    """Reads the partition again and again, as a group without offsets would, until the cleaner has been there."""
    for attempt in range(200):
        world = KafkaWorldOf(address, topic, f"look-{topic}-{attempt}")
        await world.prepare()
        async with member_of(world) as member:
            member.begin()
            end = (await member.transport.log_ranges([partition]))[partition].end
            segments: list[Segment] = []
            while not segments or segments[-1].next_offset < end:
                segments += [s for s in await member.transport.fetch(1) if s.partition == partition]
        if sum(map(len, segments)) <= at_most:
            return segments
        await asyncio.sleep(0.3)
    raise AssertionError("the log cleaner never came")


class KafkaWorldOf(KafkaWorld):
    """A look at a topic that is there already."""

    def __init__(self, address: str, topic: str, name: str) -> None:
        self.servers, self.group, self.input, self.output = address, name, topic, f"{name}-out"

    async def prepare(self) -> None:
        await create_topic(self.servers, self.output, 1)


@pytest.mark.slow
async def test_compacted_topics_keep_their_gaps(unique: Callable[[str], str]) -> None:
    """Also: Java's cleaner reads and rewrites batches that were built by columns, padded varints and all."""
    broker = Broker(settings={"log.cleaner.backoff.ms": "200"})
    broker.start()
    try:
        world = KafkaWorld(broker, "c")
        await create_topic(broker.address, world.input, 1)
        eager = {"min_cleanable_dirty_ratio": "0.01", "segment_ms": "200", "max_compaction_lag_ms": "300"}
        await create_topic(broker.address, world.output, 1, cleanup_policy="compact", **eager)
        async with member_of(world) as member:
            membership = await member.until_assigned()
            # Wide enough for offsets of two varint bytes, and times that go back and forth.
            # Every tenth key comes once, the others all the time.
            keys = [
                [b"u%d%02d" % (turn, i // 10) if i % 10 == 0 else b"k%03d" % (i % 7) for i in range(300)]
                for turn in range(3)
            ]
            values = np.arange(300 * 16, dtype=np.uint8).reshape(300, 16)
            times = 1_700_000_000_000 + np.arange(300)[::-1] * 100_000
            for turn in range(3):
                outputs = Records(keys[turn], values, times, (("m", b"x"),))
                await member.transport.commit(membership, [Part(0, b"", turn, "m", outputs)])
                await asyncio.sleep(0.3)
        segments = await until_compacted(broker.address, world.output, 0, at_most=2 * (30 + 7) + 300)
    finally:
        broker.stop()
    found = rows(segments)
    # Three times 300 records and a marker each: whatever is left is where it was, and what came once is all there.
    for offset, key, value in found:
        turn, i = divmod(offset, 301)
        assert (key, value) == (keys[turn][i], bytes(values[i]))
    once = [(turn * 301 + i, keys[turn][i]) for turn in range(3) for i in range(0, 300, 10)]
    assert [(offset, key) for offset, key, _ in found if key is not None and key.startswith(b"u")] == once
    assert {key for _, key, _ in found} >= {b"k%03d" % i for i in range(7)}
    assert segments[-1].next_offset == 903


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [0, 1, 2])
def test_old_message_formats_are_read(magic: int, codec: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, codec, 1_000_000)
    for i in range(20):
        assert builder.append(i, 5_000 + i, b"k%d" % i, b"v%d" % i, headers=[])
    data = bytearray(builder.build())
    if codec:
        # A broker gives the message around the others the offset of the last one.
        struct.pack_into(">q", data, 0, 19)
    memory = MemoryRecords(bytes(data))
    columns = ColumnRecords(TopicPartition("t", 3), memory, None, 5, None, None, magic == 1, 1)
    (segment,) = list(columns)
    assert rows([segment]) == [(i, b"k%d" % i, b"v%d" % i) for i in range(5, 20)]
    assert segment.timestamps.tolist() == ([-1] * 15 if magic == 0 else list(range(5_005, 5_020)))
    assert segment.next_offset == columns.next_fetch_offset == 20


async def test_a_busy_neighbour_does_not_hold_up_a_quiet_partition(world: KafkaWorld) -> None:
    """A partition that is paused with data fetched ahead keeps it, and the others still flow."""
    for i in range(50):
        await world.produce(0, b"k", b"%d" % i)
    async with member_of(world) as member:
        member.begin()
        await asyncio.sleep(0.3)  # fetched ahead
        member.transport.pause([0])
        for i in range(5):
            await world.produce(1, b"k", b"%d" % i)
            async with asyncio.timeout(2):
                got = await member.fetch(1)
            assert list(got) == [1]
        member.transport.resume([0])
        assert rows((await member.fetch(50))[0]) == [(i, b"k", b"%d" % i) for i in range(50)]


class Hesitant(Member):
    """Never gives up its partitions."""

    async def on_revoked(self, partitions: Collection[int]) -> None:
        await super().on_revoked(partitions)
        await asyncio.Event().wait()


async def test_a_worker_that_does_not_give_up_its_partitions_holds_the_group_up_for_two_seconds(
    world: KafkaWorld,
) -> None:
    first = Hesitant(world.connect(world.config("w0")))
    await first.transport.start(first)
    await first.until_assigned(4)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with member_of(world, "w1") as second:
        # Not for its whole session: heartbeats stand still inside the callback, and it would be thrown out.
        await second.until_assigned(2)
        assert 1.5 < loop.time() - began < 5
        await first.until_assigned(2)
        assert first.lost == []
    await first.transport.leave()
    await first.transport.stop()


class Failing(Member):
    """Its worker has a bug."""

    when = "assigned"

    def on_assigned(self, membership: Membership, partitions: Collection[int]) -> None:
        super().on_assigned(membership, partitions)
        if self.when == "assigned":
            raise KeyError("a bug")

    async def on_revoked(self, partitions: Collection[int]) -> None:
        await super().on_revoked(partitions)
        raise KeyError("a bug")


@pytest.mark.parametrize("when", ["assigned", "revoked"])
async def test_a_listener_that_fails_ends_the_worker(world: KafkaWorld, when: str) -> None:
    """aiokafka would log it, and the worker go on without its partitions."""
    failing = Failing(world.connect(world.config("w0")))
    failing.when = when
    await failing.transport.start(failing)
    if when == "revoked":
        await failing.until_assigned(4)
        assert failing.lost == []
        async with member_of(world, "w1"):
            reason = await failing.until_lost()
    else:
        reason = await failing.until_lost()
    assert isinstance(reason, KeyError)
    assert len(failing.lost) == 1
    await failing.transport.leave()
    await failing.transport.stop()
