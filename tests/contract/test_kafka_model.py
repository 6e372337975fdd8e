"""The simulator's model of Kafka beside the real one: what is proven over the model is worth as much as they are alike.

The suite of every transport runs over the model, with the real transport in between; what only Kafka does (markers,
fencing, generations, pending offsets) is asked of both in ``kafka_suite``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from pipeline.config import Config
from pipeline.transport import connect
from pipeline.transport.base import Transport
from services.broker import Broker
from tests.contract.kafka_suite import KafkaSuite
from tests.contract.test_transports import KafkaWorld
from tests.contract.transport_suite import TransportSuite
from tests.contract.transport_world import PARTITIONS, Seen, World
from tests.simulation.client import Faults, Network, connected
from tests.simulation.cluster import Cluster


class ModelWorld(World):
    """The model on real time: this test's own cluster of two brokers."""

    servers = "sim:1"

    def __init__(self) -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(0)
        self.cluster = Cluster(loop, rng, 2, marker_s=lambda: 0.01 * rng.random(), verify_share=0.3)
        self.network = Network(loop, self.cluster, rng, Faults())
        self.group, self.input, self.output = "group", "input", "output"

    async def create(self, topic: str, partitions: int) -> None:
        self.cluster.create(topic, partitions)

    async def produce(
        self,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp: int | None = None,
    ) -> int:
        at = self.cluster.now_ms() if timestamp is None else timestamp
        return self.cluster.logs[self.input, partition].write([(key, value, at, tuple(headers))])

    async def read(self, topic: str) -> list[Seen]:
        await self.settled()
        return [
            Seen(p, r.key, r.value, r.headers, r.timestamp)
            for p in range(PARTITIONS)
            for r in self.cluster.logs[topic, p].visible()
        ]

    async def settled(self) -> None:
        """Markers of decided transactions are written: a reader of the real one waits for them as well."""
        while any(t.left for t in self.cluster.transactions.all.values()):
            await asyncio.sleep(0.002)

    def connect(self, config: Config) -> Transport:
        return connect(config)


@pytest.fixture
async def model() -> AsyncIterator[ModelWorld]:
    world = ModelWorld()
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    with connected(world.network):
        yield world


@pytest.fixture
async def real(broker: Broker, unique: Callable[[str], str]) -> AsyncIterator[KafkaWorld]:
    world = KafkaWorld(broker, unique("w").lower())
    for topic in (world.input, world.output):
        await world.create(topic, PARTITIONS)
    await world.start()
    yield world
    await world.stop()


class TestTransportOverTheModel(TransportSuite):
    @pytest.fixture
    async def world(self, model: ModelWorld) -> World:
        return model


class TestTheModel(KafkaSuite):
    @pytest.fixture
    async def world(self, model: ModelWorld) -> World:
        return model


@pytest.mark.kafka
class TestTheBroker(KafkaSuite):
    @pytest.fixture
    async def world(self, real: KafkaWorld) -> World:
        return real
