"""Local copies of the changelog (X14) on a real broker: after deaths, states come from the machine's own disk."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.broker import Broker
from tests.kafka.feed import Feed
from tests.kafka.harness import Topics, Worker, alter_topic, eventually, make_topics, new_seed, workers
from tests.kafka.reading import Reader
from tests.kafka.verdict import judge_hash
from tests.models import rolling_hash

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

Unique = Callable[[str], str]
FROM_COPY = "streams from the local copy up to offset"


def grown(folder: Path, topics: Topics, by: int = 20_000) -> None:
    """Waits until every partition's copy has so many bytes more."""
    files = [folder / f"{topics.changelog}-{p}.copy" for p in range(4)]

    def sizes() -> list[int]:
        return [file.stat().st_size if file.exists() else 0 for file in files]

    before = sizes()
    eventually(lambda: all(now > was + by for was, now in zip(before, sizes())), 60, "all copies have grown")


def test_a_killed_worker_goes_on_from_its_local_copies(broker: Broker, unique: Unique, tmp_path: Path) -> None:
    seed = new_seed()
    rng = random.Random(seed)
    topics = make_topics(broker.address, unique, 4)
    worker = topics.worker(
        rolling_hash(tmp_path / "hash" / "1"), state_directory=tmp_path / "state", snapshot_interval_ms=100
    )
    with workers(worker), Feed(topics, seed, 2000) as feed:
        worker.heard("runs from offset", times=4)
        for _ in range(6):
            grown(tmp_path / "state", topics)
            time.sleep(rng.uniform(0.0, 0.2))
            worker.kill()
            worker.start()
            worker.heard(FROM_COPY, times=4)
            worker.heard("runs from offset", times=4)
        sent = feed.stop()
        judged = Reader(topics.address, topics.output)
        judged.until(sent, of=[worker])
        judged.close()
        worker.drained()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict
    assert verdict.inputs == sent


def test_a_standby_goes_on_from_what_it_has_of_the_dead_ones_changelog(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    seed = new_seed()
    topics = make_topics(broker.address, unique, 4)
    model = rolling_hash(tmp_path / "hash" / "1")

    def on_a_machine_of_its_own(name: str) -> Worker:
        return topics.worker(model, name, state_directory=tmp_path / name, standbys=1, snapshot_interval_ms=100)

    stays, dies = on_a_machine_of_its_own("stays"), on_a_machine_of_its_own("dies")
    with workers(stays, dies), Feed(topics, seed, 2000) as feed:
        stays.heard("standing by for partitions")
        dies.heard("standing by for partitions")
        grown(tmp_path / "stays", topics)
        dies.kill()
        stays.heard("assigned partitions [0, 1, 2, 3]", times=1)
        stays.heard(FROM_COPY, times=2)
        sent = feed.stop()
        judged = Reader(topics.address, topics.output)
        judged.until(sent, of=[stays])
        judged.close()
        stays.drained()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict
    assert verdict.inputs == sent


def test_a_copy_is_void_by_the_changelogs_own_settings(broker: Broker, unique: Unique, tmp_path: Path) -> None:
    """Tombstones that go at once: whatever was copied before may be of streams that are forgotten."""
    topics = make_topics(broker.address, unique, 4)
    worker = topics.worker(
        rolling_hash(tmp_path / "hash" / "1"), state_directory=tmp_path / "state", snapshot_interval_ms=0
    )
    with workers(worker):
        with Feed(topics, new_seed(), 2000) as feed:
            worker.heard("runs from offset", times=4)
            sent = feed.stop()
        judged = Reader(topics.address, topics.output)
        judged.until(sent, of=[worker])
        worker.kill()
        alter_topic(topics.address, topics.changelog, **{"delete.retention.ms": "1"})
        worker.start()
        worker.heard("the local copy is too old, the whole changelog is read", times=4)
        worker.heard("runs from offset", times=4)
        worker.drained()
        judged.close()
