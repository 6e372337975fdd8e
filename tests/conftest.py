"""What every test may ask for. The real broker is started once a session."""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from hypothesis import settings as hypothesis_settings

from services.broker import Broker, BrokerUnavailable

# Inherited tests live in modules that pytest does not collect: their assertions should explain themselves too.
pytest.register_assert_rewrite("tests.contract")

# Time by the clock says what else the machine does just now: no property here is about it.
hypothesis_settings.register_profile("eddy", deadline=None)
hypothesis_settings.load_profile("eddy")

NewTopicName = Callable[..., Awaitable[str]]


@contextmanager
def started(settings: Mapping[str, str] | None = None) -> Iterator[Broker]:
    """In CI a broker that cannot be had is a failure; by hand it is a skip with its reason."""
    it = Broker(settings=settings)
    try:
        it.start()
    except BrokerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no embedded broker: {reason}")
    yield it
    it.stop()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real Apache Kafka with temporary data, shared by all tests: use topics and groups of your own."""
    with started() as it:
        yield it


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A broker for this test alone, to be killed and restarted."""
    with started() as it:
        yield it


_numbers = itertools.count()


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A name for a topic or group that no other test has."""

    def name(stem: str) -> str:
        test = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]
        return f"{stem}-{test}-{next(_numbers)}"

    return name


async def create_topic(address: str, name: str, partitions: int = 1, **configs: str) -> str:
    """Makes a topic (``cleanup_policy="compact"`` for ``cleanup.policy``) and returns its name."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        settings = {key.replace("_", "."): value for key, value in configs.items()}
        reply = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
        errors = [error for _, error, *_ in reply.topic_errors if error]
        assert not errors, f"{name}: error {errors}"
    finally:
        await admin.close()
    return name


@pytest.fixture
def new_topic(broker: Broker, unique: Callable[[str], str]) -> NewTopicName:
    """``await new_topic(partitions=1, **configs)`` makes a topic on the shared broker and returns its unique name."""

    async def make(partitions: int = 1, stem: str = "topic", **configs: str) -> str:
        return await create_topic(broker.address, unique(stem), partitions, **configs)

    return make
