"""What chaos needs of a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from services.broker import Broker
from tests.chaos.chaos import PARTITIONS
from tests.chaos.scene import BROKER
from tests.conftest import started
from tests.kafka.harness import Topics, make_topics


@pytest.fixture(scope="module")
def chaos_broker() -> Iterator[Broker]:
    """Of a module's tests, one after the other; they kill it and bring it back."""
    with started(settings=BROKER) as it:
        yield it


@pytest.fixture
def topics(chaos_broker: Broker, unique: Callable[[str], str]) -> Topics:
    return make_topics(chaos_broker.address, unique, PARTITIONS)
