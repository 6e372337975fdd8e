"""The transactional writer on a real broker: what others read, what is refused, and what a crash leaves behind."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import OFFSET_BEGINNING, Consumer
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from pipeline.columns import Committed, Records, as_list, source_column
from pipeline.config import Config
from pipeline.errors import GroupRefused, NotAuthorized, OutcomeUnknown, PartRefused, TopicError, Unreachable
from pipeline.transport.base import Written
from pipeline.transport.kafka import wire
from pipeline.transport.kafka.client import Client
from pipeline.transport.kafka.pacing import Pacing
from pipeline.transport.kafka.transport import KafkaTransport
from pipeline.transport.kafka.writer import Writer, verdict
from services.broker import Broker
from tests.conftest import create_topic
from tests.contract.test_transports import KafkaWorld
from tests.contract.transport_suite import TransportSuite
from tests.contract.transport_world import PARTITIONS, TIME_MS, CopyingWorker, Member, part, records

pytestmark = pytest.mark.kafka

member_of = TransportSuite().member


@pytest.fixture
async def world(broker: Broker, unique: Callable[[str], str]) -> AsyncIterator[KafkaWorld]:
    world = KafkaWorld(broker, unique("w").lower())
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    await world.start()
    yield world
    await world.stop()


# Other readers


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_librdkafka_reads_what_was_built_by_columns(world: KafkaWorld, compression: str) -> None:
    n = 20_000  # offsets of one to three varint bytes
    keys: list[bytes | None] = [b"key %d" % i for i in range(n)]
    values = np.arange(n * 8, dtype=np.int64).view(np.uint8).reshape(n, -1)[:, :8].copy()
    times = TIME_MS + np.arange(n) * 37 % 1_000_003 - 500_000
    source = source_column(0, np.arange(n))
    async with member_of(world, compression=compression) as member:
        membership = await member.until_assigned()
        outputs = Records(keys, values, times, (("eddy-model", b"m/1"),), (("eddy-source", source),))
        await member.transport.commit(membership, [part(0, n, outputs=outputs)])

    def read() -> list[tuple[object, ...]]:
        consumer = Consumer({"bootstrap.servers": world.servers, "group.id": "judge", "check.crcs": True})
        consumer.assign([Place(world.output, 0, OFFSET_BEGINNING)])
        rows: list[tuple[object, ...]] = []
        end = time.monotonic() + 60
        while len(rows) < n:
            assert time.monotonic() < end
            for m in consumer.consume(5_000, 1):
                assert m.error() is None
                rows.append((m.key(), m.value(), m.timestamp()[1], m.headers()))
        consumer.close()
        return rows

    rows = await asyncio.to_thread(read)
    assert rows == [
        (keys[i], bytes(values[i]), int(times[i]), [("eddy-model", b"m/1"), ("eddy-source", bytes(source[i]))])
        for i in range(n)
    ]


async def test_snapshots_have_a_compression_of_their_own(world: KafkaWorld, broker: Broker) -> None:
    rows = np.zeros((200, 2_000), np.uint8)
    rows[:, :4] = np.arange(200, dtype=np.uint32).view(np.uint8).reshape(200, 4)
    keys: list[bytes | None] = [b"%d" % i for i in range(200)]
    async with member_of(world, snapshot_compression="lz4", compression="none") as member:
        both = part(0, 1, outputs=records(keys, rows), snapshots=records(keys, rows))
        await member.transport.commit(await member.until_assigned(), [both])
        found = [v async for stretch in member.transport.changelog(0) for v in as_list(stretch.values)]
    assert found == [bytes(row) for row in rows]

    def stored(topic: str) -> int:
        assert broker.data is not None
        return sum(file.stat().st_size for file in broker.data.glob(f"**/{topic}-0/*.log"))

    assert stored(world.output) > 400_000
    assert 0 < stored(world.config().changelog) < 40_000


# What is refused


def test_the_verdict_on_a_transactions_errors() -> None:
    out = ("out", 3)

    def judged(produced: dict[tuple[str, int], int], offsets: dict[int, int]) -> Exception | None:
        return verdict(produced, offsets, "g", "in")

    assert judged({}, {}) is None
    for code in (22, 25, 27, 82):
        assert isinstance(judged({}, {0: code, 1: code}), GroupRefused)
        assert isinstance(judged({out: 45}, {0: code}), OutcomeUnknown)
        assert isinstance(judged({}, {0: code, 1: 47}), OutcomeUnknown)
    for code in (10, 18, 32, 87):
        refused = judged({("out", 0): 45, out: code}, {0: 22})
        assert isinstance(refused, PartRefused)
        assert refused.partition == 3
    too_large = judged({}, {2: 12})
    assert isinstance(too_large, PartRefused)
    assert too_large.partition == 2
    for code in (47, 90, 48, 49, 45, -1):
        assert isinstance(judged({out: code}, {}), OutcomeUnknown)
        assert isinstance(judged({}, {0: code}), OutcomeUnknown)
    for errors, grant in (
        (({out: 29}, {0: 22}), "Write on the topic 'out'$"),
        (({out: 29, ("changelog", 0): 29, ("dead", 0): 45}, {}), "Write on the topic 'changelog' and 'out'$"),
        (({out: 53}, {}), "Write on the transactional id"),
        (({}, {0: 30}), "Read on the group 'g'$"),
        (({}, {0: 29}), "Read on the topic 'in'$"),
    ):
        forbidden = judged(*errors)
        assert isinstance(forbidden, NotAuthorized)
        assert re.search(grant, str(forbidden))


async def test_metadata_that_is_too_long_names_its_partition(world: KafkaWorld) -> None:
    async with member_of(world) as member:
        membership = await member.until_assigned()
        await member.transport.commit(membership, [part(1, 1, "x" * 4_096)])
        with pytest.raises(PartRefused) as refused:
            await member.transport.commit(membership, [part(1, 2, "m"), part(2, 2, "x" * 4_097)])
        assert refused.value.partition == 2
        await member.transport.settle()
        found = await member.transport.stable_offsets(membership, [1, 2])
        assert found == {1: Committed(1, "x" * 4_096), 2: None}


async def test_two_writers_of_one_lane_end_each_others_transactions(world: KafkaWorld) -> None:
    async with member_of(world, "w0") as first:
        membership = await first.until_assigned()
        client = Client(world.servers, "another", 5_000)
        await client.connect()
        lane = f"{world.group}-{world.input}-w0"
        await Writer(client, lane, world.input, ("", "", ""), Pacing(), 10_000, "none").settle()
        with pytest.raises(OutcomeUnknown):
            await first.transport.commit(membership, [part(0, 1, outputs=records([b"k"], [b"fenced"]))])
        await first.transport.settle()
        await first.transport.commit(membership, [part(0, 1, outputs=records([b"k"], [b"settled"]))])
        assert [s.value for s in await world.read(world.output)] == [b"settled"]
        await client.shut()


# Answers that are lost


async def test_an_answer_lost_on_its_way_repeats_nothing(world: KafkaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async with member_of(world) as member:
        membership, transport = await member.until_assigned(), member.transport
        assert isinstance(transport, KafkaTransport)
        client, losing = transport._opened.writing, 0
        send = client.send

        async def cut(node: int, request: Any, **more: Any) -> Any:
            nonlocal losing
            reply = await send(node, request, **more)
            if isinstance(request, wire.Produce) and losing:
                losing -= 1
                raise KafkaConnectionError("cut")
            return reply

        monkeypatch.setattr(client, "send", cut)
        row = records([b"k"], [b"row"])
        for turn in range(4):
            losing = turn % 3
            outputs = records([b"k", b"l"], [b"published %d" % turn] * 2)
            await transport.publish([part(p, 0, outputs=outputs) for p in range(2)])
            losing = turn % 3
            outputs = records([b"k", b"l"], [b"committed %d" % turn] * 2)
            written = await transport.commit(
                membership, [part(p, turn, outputs=outputs, snapshots=row) for p in range(2)]
            )
            # A row and a marker each turn: where it is told, it is right.
            assert set(written.items()) <= {(p, Written(2 * turn, 2 * turn + 1)) for p in range(2)}
            assert losing == 0
        seen = await world.read(world.output)
        for p in range(2):
            expected = [
                b"%s %d" % (how, turn) for turn in range(4) for how in (b"published", b"committed") for _ in "kl"
            ]
            assert [s.value for s in seen if s.partition == p] == expected
            assert [k async for s in transport.changelog(p) for k in s.keys] == [b"k"] * 4


# Topics


async def test_what_the_worker_makes_has_as_many_partitions_and_is_compacted(world: KafkaWorld) -> None:
    async with member_of(world) as member:
        config = world.config()
        assert member.transport.partitions == PARTITIONS

    def look() -> tuple[dict[str, int], dict[str, str]]:
        admin = AdminClient({"bootstrap.servers": world.servers})
        topics = admin.list_topics(timeout=10).topics
        resource = ConfigResource(ResourceType.TOPIC, config.changelog)
        settings = admin.describe_configs([resource])[resource].result(10)
        counts = {name: len(topics[name].partitions) for name in (config.changelog, config.dead_letters)}
        return counts, {name: entry.value for name, entry in settings.items()}

    counts, settings = await asyncio.to_thread(look)
    assert counts == {config.changelog: PARTITIONS, config.dead_letters: PARTITIONS}
    assert settings["cleanup.policy"] == "compact"
    assert int(settings["segment.bytes"]) <= 16 * 1_048_576
    assert int(settings["max.compaction.lag.ms"]) < 3_600_000


async def test_a_changelog_with_other_partitions_is_refused(world: KafkaWorld) -> None:
    await world.create(world.config().changelog, PARTITIONS + 1)
    transport = world.connect(world.config())
    with pytest.raises(TopicError, match=rf"changelog' has {PARTITIONS + 1} partitions .* has {PARTITIONS}"):
        await transport.start(Member(transport))


async def test_a_row_larger_than_a_megabyte_is_saved_and_restored(world: KafkaWorld) -> None:
    row = np.random.default_rng(1).bytes(3_000_000)
    async with member_of(world) as member:
        membership = await member.until_assigned()
        await member.transport.commit(membership, [part(0, 1, snapshots=records([b"a", b"b"], [row, row[::-1]]))])
        values = [v async for stretch in member.transport.changelog(0) for v in as_list(stretch.values)]
    assert values == [row, row[::-1]]


async def test_a_topic_that_takes_only_small_batches_gets_smaller_ones(world: KafkaWorld) -> None:
    small = world.output + "-small"
    await create_topic(world.servers, small, PARTITIONS, max_message_bytes="100000")
    n = 1_000
    values = np.random.default_rng(2).integers(0, 256, (n, 1_000), dtype=np.uint8)
    keys: list[bytes | None] = [b"%04d" % i for i in range(n)]
    async with member_of(world, output=small) as member:
        membership = await member.until_assigned()
        parts = [part(0, n, outputs=records(keys, values))]
        for _ in range(5):
            try:
                await member.transport.commit(membership, parts)
                break
            except OutcomeUnknown:
                await member.transport.settle()
        assert [s.value for s in await world.read(small)] == [bytes(row) for row in values]
        await member.transport.commit(membership, parts)
        with pytest.raises(PartRefused):
            await member.transport.commit(membership, [part(0, n, outputs=records([b"k"], [b"x" * 200_000]))])


# Standbys


async def test_following_many_changelogs_costs_one_request_at_a_time(
    world: KafkaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with member_of(world) as member:
        transport = member.transport
        assert isinstance(transport, KafkaTransport)
        sent: list[int] = []
        client = transport._opened.following
        send = client.send

        async def counted(node: int, request: Any, **more: Any) -> Any:
            sent.append(sum(len(partitions) for _, partitions in request.topics))
            return await send(node, request, **more)

        monkeypatch.setattr(client, "send", counted)
        following = asyncio.ensure_future(anext(aiter(transport.follow(dict.fromkeys(range(PARTITIONS), 0)))))
        await asyncio.sleep(1.5)
        assert not following.done()
        assert 2 <= len(sent) <= 1.5 / 0.2 + 3
        assert set(sent) == {PARTITIONS}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


# A broker that is away


async def test_no_broker_is_one_line_in_time() -> None:
    names = {"input": "i", "output": "o", "group": "g", "worker_id": "w"}
    transport = KafkaTransport(Config(bootstrap_servers="127.0.0.1:1", request_timeout_ms=1_000, **names))
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"no broker answers at 127\.0\.0\.1:1\b"):
        await transport.start(Member(transport))
    assert time.monotonic() - began < 5


async def test_a_dead_broker_hangs_nothing(own_broker: Broker) -> None:
    world = KafkaWorld(own_broker, "dead")
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    member = Member(world.connect(world.config(request_timeout_ms=3_000)))
    transport = member.transport
    await transport.start(member)
    membership = await member.until_assigned(4)
    member.begin()
    own_broker.kill()
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        await transport.commit(membership, [part(0, 1, outputs=records([b"k"], [b"v"]))])
    with pytest.raises(OutcomeUnknown):
        await transport.settle()
    with pytest.raises(OutcomeUnknown):
        await transport.log_ranges([0])
    assert time.monotonic() - began < 3 * 3 + 3
    began = time.monotonic()
    asked = (
        transport.publish([part(0, 1, outputs=records([b"k"], [b"v"]))]),
        transport.starting_offset(0),
        transport.members(),
        anext(aiter(transport.changelog(0))),
        anext(aiter(transport.follow({0: 0}))),
    )
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * len(outcomes)
    assert await transport.fetch(0.2) == []
    assert time.monotonic() - began < 3 + 3
    began, busy = time.monotonic(), time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - busy < 0.5, "spinning while the broker is away"
    began = time.monotonic()
    await transport.leave()
    await transport.stop()
    assert time.monotonic() - began < 10
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


@pytest.mark.slow
async def test_work_goes_on_through_broker_restarts(own_broker: Broker) -> None:
    world = KafkaWorld(own_broker, "restart")
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    await world.start()
    worker = CopyingWorker(world, "w0")
    await worker.start()
    total = 120
    for i in range(total):
        await world.produce(i % PARTITIONS, b"k%d" % (i % 7), b"%d" % i)
        if i == 40:
            own_broker.kill()
            await asyncio.to_thread(own_broker.restart)
        if i == 80:
            await asyncio.to_thread(own_broker.terminate)
            await asyncio.to_thread(own_broker.restart)
    async with asyncio.timeout(60):
        while len(await world.read(world.output)) < total:
            await asyncio.sleep(0.2)
    assert worker.member.lost == []
    await worker.stop()
    seen = await world.read(world.output)
    for p in range(PARTITIONS):
        assert [s.value for s in seen if s.partition == p] == [b"%d" % i for i in range(p, total, PARTITIONS)]
    await world.stop()


# A member that was away


@pytest.mark.slow
async def test_a_member_that_stood_still_too_long_comes_back_with_a_new_membership(world: KafkaWorld) -> None:
    async with member_of(world) as member:
        old = await member.until_assigned(4)
        time.sleep(8)  # noqa: ASYNC251 - the whole process stands still, longer than its session
        async with asyncio.timeout(20):
            while member.membership in (None, old):
                await asyncio.sleep(0.05)
        with pytest.raises(GroupRefused):
            await member.transport.commit(old, [part(0, 1, outputs=records([b"k"], [b"zombie"]))])
        await member.transport.commit(await member.until_assigned(4), [part(0, 1)])
        assert member.lost == []
        assert await world.read(world.output) == []


async def test_topics_made_a_moment_ago_are_found(broker: Broker, unique: Callable[[str], str]) -> None:
    for turn in range(3):
        world = KafkaWorld(broker, f"{unique('now').lower()}-{turn}")
        await create_topic(broker.address, world.input, 2)
        await create_topic(broker.address, world.output, 2)
        async with member_of(world) as member:
            assert member.transport.partitions == 2
