"""The broker goes down and comes back, in order and by force: the worker goes on by itself."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from services.broker import Broker
from tests.kafka.feed import Feed
from tests.kafka.harness import eventually, make_topics, new_seed, workers
from tests.kafka.reading import Reader
from tests.kafka.transactions import Transactions, stop_at
from tests.kafka.verdict import judge_hash
from tests.models import rolling_hash

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.mark.parametrize("how", ["terminate", "kill", "kill and stay away"])
def test_a_broker_that_restarts_costs_no_record(
    own_broker: Broker, unique: Callable[[str], str], tmp_path: Path, how: str
) -> None:
    topics = make_topics(own_broker.address, unique, 4)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"), max_steps=500, request_timeout_ms=3000)
    with workers(worker), Feed(topics, new_seed(), 2000) as feed:
        judged = Reader(topics.address, topics.output)
        judged.until(2000, of=[worker])
        # Inside a transaction, but not at its end: a single Kafka 4.4 that is killed between the decision and its
        # markers forgets the markers when it comes back (it takes partitions without a leader for deleted ones), and
        # the partitions hang for good. With replicas on other brokers a leader is there to take them.
        with Transactions(own_broker.address) as transactions:
            stop_at(worker, transactions, inside=True)
        if how == "terminate":
            own_broker.terminate()
        else:
            own_broker.kill()
        worker.process.send_signal(signal.SIGCONT)
        if how == "kill and stay away":
            worker.heard("cannot be settled yet")  # its patience is at an end: after this the group must be asked
        own_broker.restart()
        back = feed.sent
        judged.until(lambda records: len(records) > back, 90, of=[worker])
        sent = feed.stop()
        judged.until(sent, of=[worker])
        eventually(lambda: worker.ready, 30, f"it is ready again\n{worker.log}")
        figures = worker.metrics()
        worker.drained()
    judged.close()
    verdict = judge_hash(topics)
    print(f"{how}: {verdict}; takeovers {figures['eddy_takeovers_total']:.0f}")
    assert verdict.clean, verdict
    assert verdict.inputs == sent
    assert figures["eddy_replayed_records_total"] == 0
