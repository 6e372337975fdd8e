"""Faults at random on a real broker: nothing lost, repeated or out of order; and that this could be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.broker import Broker
from tests.chaos.chaos import control, run
from tests.kafka.harness import Topics, new_seed
from tests.models import rolling_hash

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SECONDS, ZOMBIES = 60.0, 10


@pytest.mark.timeout(480)
def test_a_minute_of_faults_loses_and_repeats_nothing(chaos_broker: Broker, topics: Topics, tmp_path: Path) -> None:
    report = run(chaos_broker, topics, rolling_hash(tmp_path / "hash" / "1"), new_seed(), SECONDS, ZOMBIES)
    print(report)
    assert report.verdict.clean, report.verdict
    assert report.chaos.counts["zombies inside an open transaction"] >= ZOMBIES
    assert report.chaos.counts["refused by the group"] >= 3, "the fence was hardly ever needed"
    assert report.chaos.counts["kills"] >= 3
    assert report.chaos.counts["broker stopped"] >= 1
    assert report.chaos.counts["broker killed"] >= 1
    assert report.chaos.counts["joined"] >= 3
    assert report.chaos.counts["left"] >= 2
    assert report.chaos.counts["ended by themselves"] == 0


def test_without_the_fence_the_same_zombies_repeat_outputs(
    chaos_broker: Broker, topics: Topics, tmp_path: Path
) -> None:
    """X1, the negative control: an offset commit without membership must be found out by the same judge."""
    report = control(chaos_broker, topics, rolling_hash(tmp_path / "hash" / "1"), new_seed(), zombies_max=8)
    print(report)
    assert report.chaos.counts["zombies inside an open transaction"] >= 1
    assert report.verdict.repeated > 0, "the zombies of this run would not have needed a fence"
