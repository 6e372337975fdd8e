"""The transports that Eddy has, each held to what every transport promises."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from pipeline.config import Config
from pipeline.transport import connect
from pipeline.transport.base import Transport
from pipeline.transport.memory import MemoryBroker
from services.broker import Broker
from tests.conftest import create_topic
from tests.contract.transport_suite import TransportSuite
from tests.contract.transport_world import PARTITIONS, Seen, World
from tests.kafka.harness import eventually
from tests.kafka.transactions import Transactions

MARKED_S = 20.0
"""A transaction's markers are written well within this after its end was answered."""


class MemoryWorld(World):
    servers = "memory"

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.group, self.input, self.output = "group", "input", "output"

    async def create(self, topic: str, partitions: int) -> None:
        self.broker.create(topic, partitions)

    async def produce(
        self,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp: int | None = None,
    ) -> int:
        return self.broker.produce(self.input, partition, key, value, headers, timestamp)

    async def read(self, topic: str) -> list[Seen]:
        return [Seen(p, e.key, e.value, e.headers, e.timestamp) for p, _, e in self.broker.records(topic)]

    def connect(self, config: Config) -> Transport:
        return connect(config, self.broker)


class KafkaWorld(World):
    servers = ""

    def __init__(self, broker: Broker, name: str) -> None:
        self.servers = broker.address
        self.group, self.input, self.output = f"g-{name}", f"in-{name}", f"out-{name}"
        self._producer = AIOKafkaProducer(bootstrap_servers=broker.address, linger_ms=0)
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=broker.address, isolation_level="read_committed", fetch_max_wait_ms=50
        )

    async def start(self) -> None:
        for client in (self._producer, self._reader):
            await client.start()

    async def stop(self) -> None:
        for client in (self._producer, self._reader):
            await client.stop()

    async def create(self, topic: str, partitions: int) -> None:
        await create_topic(self.servers, topic, partitions)

    async def produce(
        self,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp: int | None = None,
    ) -> int:
        done = await self._producer.send_and_wait(
            self.input, value, key, partition=partition, headers=list(headers), timestamp_ms=timestamp
        )
        return int(done.offset)

    async def read(self, topic: str) -> list[Seen]:
        places = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        self._reader.assign(places)
        await self._reader.seek_to_beginning(*places)
        # The markers of a transaction whose end was answered are written a moment later. One that is open holds the
        # last stable offset, before which all is committed.
        await asyncio.to_thread(self._until_marked)
        ends = await self._reader.end_offsets(places)
        seen: list[Seen] = []
        while any([await self._reader.position(place) < ends[place] for place in places]):
            for place, messages in (await self._reader.getmany(*places, timeout_ms=100)).items():
                seen += [
                    Seen(place.partition, m.key, m.value, m.headers, m.timestamp)
                    for m in messages
                    if m.offset < ends[place]
                ]
        return sorted(seen, key=lambda s: s.partition)

    def _until_marked(self) -> None:
        for server in self.servers.split(","):
            try:
                transactions = Transactions(server)
            except ConnectionRefusedError:
                continue  # it was killed: others have its transactions
            with transactions:
                eventually(
                    partial(self._marked, transactions),
                    MARKED_S,
                    f"the markers of transactions at {server} are written",
                )

    @staticmethod
    def _marked(transactions: Transactions) -> bool:
        return not transactions.in_state("PrepareCommit", "PrepareAbort")

    def connect(self, config: Config) -> Transport:
        return connect(config)


class TestMemory(TransportSuite):
    @pytest.fixture
    async def world(self) -> World:
        world = MemoryWorld()
        for topic in (world.input, world.output):
            await world.create(topic, PARTITIONS)
        return world


@pytest.mark.kafka
class TestKafka(TransportSuite):
    @pytest.fixture
    async def world(self, broker: Broker, unique: Callable[[str], str]) -> AsyncIterator[World]:
        world = KafkaWorld(broker, uuid.uuid4().hex[:8])
        for topic in (world.input, world.output):
            await world.create(topic, PARTITIONS)
        await world.start()
        yield world
        await world.stop()
