"""What fails inside: the model on one record, a topic that does not take a record. It stays where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.broker import Broker
from tests.kafka.graphs import POISON, fragile_hash
from tests.kafka.harness import alter_topic, eventually, make_topics, new_seed, produce, workers
from tests.kafka.reading import Reader, read_all
from tests.kafka.verdict import judge_hash
from tests.models import rolling_hash

pytestmark = pytest.mark.kafka

Unique = Callable[[str], str]


def test_a_record_that_the_model_fails_on_is_the_only_one_to_go(broker: Broker, unique: Unique, tmp_path: Path) -> None:
    """X11: a batch that fails runs again record by record; the one at fault is a dead letter, nothing else is lost."""
    rng = np.random.default_rng(new_seed())
    topics = make_topics(broker.address, unique, 4)
    records = [(b"stream-%d" % rng.integers(40), rng.integers(0, 2**40, 2).tobytes()) for _ in range(1500)]
    poison = np.array([3, POISON, 5]).tobytes()
    for i in (200, 201, 900):
        records[i] = (records[i][0], poison)
    worker = topics.worker(fragile_hash(tmp_path / "fragile" / "1"), max_steps=600)
    produce(topics.address, topics.input, records)
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        judged.until(len(records) - 3, of=[worker])
        worker.wait_ready()
        figures = worker.metrics()
        worker.drained()
    judged.close()
    dead = read_all(topics.address, topics.dead_letters)
    assert [r.value for r in dead] == [poison] * 3
    assert {r.header("eddy-error") for r in dead} == {b"engine"}
    verdict = judge_hash(topics, skipped=frozenset(r.source for r in dead))
    print(f"{verdict}; takeovers {figures['eddy_takeovers_total']:.0f}")
    assert verdict.clean, verdict
    assert verdict.outputs == len(records) - 3


def test_a_partition_whose_output_its_topic_refuses_stops_by_name_and_the_others_go_on(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 3)
    alter_topic(topics.address, topics.output, max_message_bytes="4000")
    rng = np.random.default_rng(new_seed())

    def send(partition: int, n: int) -> None:
        records = [(b"p%d-%d" % (partition, i % 5), rng.integers(0, 2**40, 3).tobytes()) for i in range(n)]
        produce(topics.address, topics.input, records, partition=partition)

    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"))
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        for partition in range(3):
            send(partition, 20)
        judged.until(60, of=[worker])
        worker.wait_ready()
        produce(topics.address, topics.input, [(b"p1-0", bytes(8 * 1000))], partition=1)
        line = worker.heard("partition 1 stops")
        assert "MESSAGE_TOO_LARGE" in line["message"]
        assert topics.output in line["message"]
        send(0, 200)
        send(1, 10)
        send(2, 200)
        judged.until(460, of=[worker])
        assert worker.page("/health/ready")[0] == 503
        assert worker.page("/health/live")[0] == 200
        # Its cause mended, a restart goes on where it stopped: nothing was lost.
        worker.drained()
        alter_topic(topics.address, topics.output, max_message_bytes="1000000")
        worker.start()
        judged.until(471, of=[worker])
        worker.wait_ready().drained()
    judged.close()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict
    assert verdict.outputs == 471


def test_a_topic_that_takes_only_small_batches_gets_a_backlog_in_small_batches(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    """Each of these records is far below the topic's bound; only many of them together are not."""
    topics = make_topics(broker.address, unique, 2)
    for topic in (topics.input, topics.output):
        alter_topic(topics.address, topic, max_message_bytes="20000")
    rng = np.random.default_rng(new_seed())
    records = [(b"stream-%d" % rng.integers(50), rng.integers(0, 2**40, 20).tobytes()) for _ in range(2000)]
    produce(topics.address, topics.input, records, **{"batch.size": 10_000})
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"))
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        judged.until(len(records), of=[worker])
        worker.drained()
    judged.close()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict


def test_more_streams_than_slots_are_served_and_the_metrics_say_that_some_are_away(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 2)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"), slots=3)
    rng = np.random.default_rng(new_seed())
    records = [(b"stream-%d" % rng.integers(40), rng.integers(0, 2**40, 2).tobytes()) for _ in range(2000)]
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        for a in range(0, 2000, 100):
            produce(topics.address, topics.input, records[a : a + 100])
            judged.until(a + 100, of=[worker])
        eventually(lambda: worker.metrics()["eddy_host_streams"] == 37, 10, "those without a slot are counted")
        assert worker.metrics()["eddy_evicted_streams_total"] > 37
        worker.drained()
    judged.close()
    verdict = judge_hash(topics)
    assert verdict.clean, verdict


def test_an_input_that_keeps_its_records_for_too_short_is_said(broker: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(broker.address, unique, 1)
    alter_topic(topics.address, topics.input, retention_ms="60000")
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"))
    with workers(worker):
        message = worker.heard("keeps its records for 60 s")["message"]
        assert "retention.ms" in message
        assert "snapshot_interval_ms" in message
        worker.drained()
