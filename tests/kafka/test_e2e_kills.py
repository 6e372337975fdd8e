"""A state that never forgets, under deaths, restarts and rebalances: nothing lost, repeated or out of order."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from services.broker import Broker
from tests.kafka.feed import Feed
from tests.kafka.harness import Worker, eventually, make_topics, new_seed, workers
from tests.kafka.reading import Reader
from tests.kafka.transactions import Transactions, stop_at
from tests.kafka.verdict import judge_hash
from tests.models import rolling_hash

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

Unique = Callable[[str], str]
KILLS, KILLS_INSIDE, KILLS_MAX = 20, 5, 40


class Deaths:
    """Kills workers and starts them again, and keeps the count."""

    def __init__(self, rng: random.Random, transactions: Transactions) -> None:
        self._rng, self._transactions = rng, transactions
        self.counts: Counter[str] = Counter()
        self.figures: Counter[str] = Counter()

    def note(self, worker: Worker) -> None:
        """Adds a life's counters that must, or must not, move."""
        for name, value in worker.metrics().items():
            if name in ("eddy_replayed_records_total", "eddy_restored_snapshots_total", "eddy_takeovers_total"):
                self.figures[name] += int(value)

    def kill(self, worker: Worker) -> None:
        """At a random moment, or at that of the first transaction that is seen open after it."""
        anywhere = self._rng.random() < 0.15
        if anywhere:
            time.sleep(self._rng.uniform(0.3, 2.0))  # its start and takeovers included
        else:
            worker.heard("runs from offset")
            time.sleep(self._rng.uniform(0.0, 0.5))
            self.note(worker)
            if self._rng.random() < 0.6:
                self.counts["aimed"] += self._transactions.await_open(worker.lane, 1.0)
        worker.kill()
        self.counts["kills"] += 1
        if not anywhere:  # else one that is open may be of the life before
            self.counts["inside an open transaction"] += self._transactions.stays_open(worker.lane)
        worker.start()
        self.counts["restarts"] += 1


def test_twenty_kills_and_a_second_worker_that_comes_and_goes_lose_and_repeat_nothing(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    seed = new_seed()
    rng = random.Random(seed)
    topics = make_topics(broker.address, unique, 4)
    model = rolling_hash(tmp_path / "hash" / "1")
    # Polls are small, so that transactions are many and every death finds several polls on their way.
    first, second = (topics.worker(model, name, max_steps=200, session_timeout_ms=6000) for name in ("a", "b"))
    began = time.monotonic()
    with workers(first, later=[second]), Feed(topics, seed, 2000) as feed, Transactions(broker.address) as transactions:
        deaths = Deaths(rng, transactions)
        counts = deaths.counts
        while counts["kills"] < KILLS or counts["inside an open transaction"] < KILLS_INSIDE:
            assert counts["kills"] < KILLS_MAX, f"too few kills hit an open transaction: {dict(counts)}"
            if counts["kills"] % 6 == 3 and not second.alive:
                second.start()
                second.heard("runs from offset")
                counts["joined"] += 1
            if counts["kills"] % 6 == 0 and second.alive:
                second.heard("runs from offset")
                second.drained()
                counts["left"] += 1
            deaths.kill(rng.choice([first, second]) if second.alive else first)
        if second.alive:
            second.heard("runs from offset")
            second.drained()
            counts["left"] += 1
        sent = feed.stop()
        judged = Reader(topics.address, topics.output)
        judged.until(sent, of=[first])
        judged.close()
        deaths.note(first)
        first.drained()
    verdict = judge_hash(topics)
    print(f"{dict(counts)}, {dict(deaths.figures)}, {time.monotonic() - began:.0f} s; {verdict}")
    assert verdict.clean, verdict
    assert verdict.inputs == sent
    assert deaths.figures["eddy_replayed_records_total"] > 0, "states were saved less often than offsets"
    assert deaths.figures["eddy_restored_snapshots_total"] > 0


def test_a_restarted_worker_restores_every_stream_and_applies_nothing_twice(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 4)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"), snapshot_interval_ms=0)
    with workers(worker):
        with Feed(topics, new_seed(), 4000) as feed:
            worker.heard("runs from offset")
            eventually(lambda: feed.sent > 4000, 10, "records were sent")
            first_life = feed.stop()
        judged = Reader(topics.address, topics.output)
        judged.until(first_life, of=[worker])
        worker.kill()
        worker.start().wait_ready()
        figures = worker.metrics()
        assert figures["eddy_restored_snapshots_total"] == len({r.key for r in judged.records})
        with Feed(topics, new_seed(), 4000) as feed:
            eventually(lambda: feed.sent > 1000, 10, "records were sent")
            second_life = feed.stop()
        judged.until(first_life + second_life, of=[worker])
        figures = worker.metrics()
        worker.drained()
    judged.close()
    assert figures["eddy_records_total"] == second_life, "only what came after its restart was applied"
    assert figures["eddy_replayed_records_total"] == 0
    verdict = judge_hash(topics)
    assert verdict.clean, verdict


def test_a_worker_that_joins_and_leaves_five_times_changes_nothing(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 4)
    model = rolling_hash(tmp_path / "hash" / "1")
    stays, guest = (topics.worker(model, name, max_steps=500) for name in ("stays", "guest"))
    with workers(stays, later=[guest]):
        stays.wait_ready()
        with Feed(topics, new_seed(), 3000) as feed:
            for visit in range(5):
                guest.start().heard("runs from offset")
                guest.drained()
                stays.heard("assigned partitions [0, 1, 2, 3]", times=2 + visit)
            sent = feed.stop()
        judged = Reader(topics.address, topics.output)
        judged.until(sent, of=[stays])
        judged.close()
        figures = stays.metrics()
        stays.drained()
    verdict = judge_hash(topics)
    print(
        f"takeovers {figures['eddy_takeovers_total']:.0f}, restored {figures['eddy_restored_snapshots_total']:.0f};"
        f" {verdict}"
    )
    assert verdict.clean, verdict
    assert verdict.inputs == sent
    assert figures["eddy_takeovers_total"] == 4 + 5 * 2, "only what was the guest's was taken over again (X4)"


@pytest.mark.parametrize("inside", [True, False], ids=["inside a transaction", "between two"])
def test_a_worker_that_stood_still_longer_than_its_session_writes_nothing_more(
    broker: Broker, unique: Unique, tmp_path: Path, inside: bool
) -> None:
    """It neither died nor left, and then goes on with what it has in memory. Inside a transaction the broker finds that
    too old; between two, the membership that the next one carries is all that stands in its way (X1)."""
    topics = make_topics(broker.address, unique, 4)
    model = rolling_hash(tmp_path / "hash" / "1")
    # Its own patience must outlast the standstill: what stops it then is the broker, not a clock that went on.
    settings = {"max_steps": 100, "transaction_timeout_ms": 1000, "request_timeout_ms": 60_000}
    zombie, other = (topics.worker(model, name, **settings) for name in ("zombie", "other"))
    seed = new_seed()
    with workers(zombie, other), Feed(topics, seed, 2000) as feed, Transactions(broker.address) as transactions:
        both = (zombie, other)
        eventually(lambda: [w.metrics()["eddy_running_partitions"] for w in both] == [2, 2], 30, "each has two")
        with Feed(topics, seed + 1, 100_000, 50_000) as burst:  # so that it stops with much in memory
            eventually(lambda: burst.sent > 10_000, 10, "more comes than is served at once")
            stop_at(zombie, transactions, inside)
            more = burst.stop()
        eventually(lambda: other.metrics()["eddy_running_partitions"] == 4, 60, f"the other one has all\n{other.log}")
        judged = Reader(topics.address, topics.output)
        judged.until(feed.sent + more, of=[other])
        zombie.process.send_signal(signal.SIGCONT)
        failure = zombie.heard("commit failed")["message"]
        eventually(lambda: zombie.ready and other.ready, 60, f"both serve again\n{zombie.log}")
        sent = feed.stop() + more
        judged.until(sent, of=both)
        judged.close()
        for worker in both:
            worker.drained()
    verdict = judge_hash(topics)
    print(f"{failure}; {verdict}")
    assert verdict.clean, verdict
    assert verdict.inputs == sent
    assert inside or "the group refused the membership" in failure
