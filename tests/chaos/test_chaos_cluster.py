"""A cluster of three brokers, one of which dies: exact, and at work meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.jars import BrokerUnavailable
from services.quorum import Quorum
from tests.chaos.chaos import PARTITIONS
from tests.chaos.losses import STALL_MAX_S, lose
from tests.kafka.harness import make_topics, new_seed
from tests.models import rolling_hash

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
def quorum() -> Iterator[Quorum]:
    try:
        it = Quorum()
        it.start()
    except BrokerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no embedded brokers: {reason}")
    yield it
    it.stop()


def test_a_broker_of_three_dies_and_work_goes_on(quorum: Quorum, unique: Callable[[str], str], tmp_path: Path) -> None:
    topics = make_topics(quorum.address, unique, PARTITIONS)
    told = lose(quorum, topics, rolling_hash(tmp_path / "hash" / "1"), new_seed(), losses=1)
    print(told)
    assert told.verdict.clean, told.verdict
    assert max(told.stalls_s) < STALL_MAX_S
