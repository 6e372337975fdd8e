"""What the dashboard and the alerting rules ask for is there, with the labels they group by, and moves under load."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.broker import Broker
from tests.kafka.feed import Feed
from tests.kafka.graphs import POISON, fragile_hash, loudness, slow_tensor
from tests.kafka.harness import Topics, Worker, eventually, make_topics, new_seed, produce, workers
from tests.kafka.transactions import Transactions, stop_at
from tests.kafka.watching import Prometheus, panels, prometheus, rules, wanted

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

Unique = Callable[[str], str]
PYTHON_REFERENCE = Path(__file__).parents[2] / "models" / "python-reference"
COUNTERS = ("_total", "_bucket", "_sum", "_count")
CONSTANT = {"eddy_slots"}
"""Gauges that a setting gives: they need only be there."""
MOST_S = 60


@pytest.fixture
def watched(broker: Broker, unique: Unique, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that has seen workers through everything that the dashboard shows."""
    with prometheus(tmp_path / "prometheus") as it, everything_happens(broker, unique, tmp_path, it):
        yield it


@contextmanager
def everything_happens(broker: Broker, unique: Unique, folder: Path, it: Prometheus) -> Iterator[None]:
    """Records, texts, sounds, failing runs, full queues, a full arena, a worker that loses its partitions inside a
    transaction, takeovers, a worker that dies."""
    hashed, slowed, told, heard = (make_topics(broker.address, unique, 4) for _ in range(4))
    fragile = fragile_hash(folder / "fragile" / "1")
    first, second = (hashed.worker(fragile, name, request_timeout_ms=3000) for name in ("first", "second"))
    slow = slowed.worker(slow_tensor(folder / "slow" / "1", 40), "slow", slots=2, queue_bytes=65_536)
    texts = told.worker(PYTHON_REFERENCE, "texts", max_stall_s=2, slots=4)
    sounds = heard.worker(loudness(folder / "loud" / "1"), "sounds")
    with workers(first, slow, texts, sounds, later=[second]), Feed(hashed, new_seed(), 500):
        it.watch([page(w) for w in (first, slow, texts, sounds)])
        for worker in (first, slow, texts, sounds):
            worker.wait_ready()
        seen(it, "count(eddy_running_partitions == 4) == 4")  # the gauges as they begin
        for partition in range(4):
            records = [(b"%d" % i, bytes(256 * 200)) for i in range(200)]
            produce(broker.address, slowed.input, records, partition=partition)
        produce(broker.address, told.input, [(b"%d" % i, b"The for statement ") for i in range(20)])
        long = [("eddy-max-steps", b"20000")]
        # The second one of each waits, and in the end nobody has a slot left.
        produce(broker.address, told.input, [(b"long-%d" % i, b"The while statement ", long) for i in [*range(8)] * 2])
        for seconds in (0, 10):  # twice, with a scrape between them: a rate needs two values
            produce(broker.address, heard.input, [(b"%d" % (i % 7), bytes(1000)) for i in range(500)])
            seen(it, f"eddy_media_seconds_total > {seconds}")
        seen(it, "eddy_records_total > 1000")
        for waiting in ("waiting_partitions", "paused_partitions", "held_partitions", "generated_steps_total"):
            seen(it, f"eddy_{waiting} > 0")
        produce(broker.address, told.input, [(b"%d" % i, b"The for statement ") for i in range(20, 40)])
        poison(hashed, b"one")
        seen(it, "eddy_errors_total >= 1")
        seen(it, 'eddy_dead_letters_total{reason="engine"} >= 1')
        poison(hashed, b"two")
        seen(it, 'eddy_dead_letters_total{reason="engine"} >= 2')
        with Transactions(broker.address) as transactions:
            stop_at(first, transactions, inside=True)
        second.start()
        it.watch([page(w) for w in (first, second, slow, texts, sounds)])
        instance = page(second).removeprefix("http://")
        seen(it, f'eddy_running_partitions{{instance="{instance}"}} == 4')  # the session of the other is over
        first.process.send_signal(signal.SIGCONT)
        first.heard("commit failed")
        seen(it, f'eddy_running_partitions{{instance="{instance}"}} == 2')
        seen(it, "eddy_restored_snapshots_total > 0")
        seen(it, "increase(eddy_commit_failures_total[5m]) > 0")
        second.kill()
        seen(it, f'up{{instance="{instance}"}} == 0')
        yield


def page(worker: Worker) -> str:
    return str(worker.heard("pages at")["url"])


def poison(topics: Topics, key: bytes) -> None:
    """A record that the model fails on, and with it once the batch that it is in."""
    produce(topics.address, topics.input, [(key, POISON.to_bytes(8, "little"))])


def seen(it: Prometheus, expression: str) -> None:
    eventually(lambda: it.ask(expression), MOST_S, f"Prometheus sees {expression}")


def test_panels_and_rules_ask_for_what_is_there_and_moves(watched: Prometheus) -> None:
    lacking = [f"{by}: {why}" for by, expression in [*panels(), *rules()] for why in lacks(watched, expression)]
    lacking += [f"{by}: shows nothing" for by, e in panels() if not watched.number(f"max_over_time(({e})[15m:2s])")]
    assert not lacking, "\n".join(lacking)
    # The same search finds what is not there.
    assert list(lacks(watched, "rate(eddy_no_such_total[1m])")) == ["no series eddy_no_such_total{}"]
    assert list(lacks(watched, "sum by (stream) (eddy_slots_used)")) == ["eddy_slots_used has no label stream"]
    assert list(lacks(watched, "eddy_local_copies")) == ["eddy_local_copies{} never moves"]
    eventually(lambda: all(rule["health"] != "unknown" for rule in watched.rules()), 30, "all rules were evaluated")
    bad = [f"{rule['name']}: {rule.get('lastError')}" for rule in watched.rules() if rule["health"] != "ok"]
    assert not bad, "\n".join(bad)

    def noticed() -> bool:
        (down,) = (rule for rule in watched.rules() if rule["name"] == "EddyWorkerDown")
        return down["state"] in ("pending", "firing")

    eventually(noticed, 30, "the killed worker is noticed")


def lacks(it: Prometheus, expression: str) -> Iterator[str]:
    """What is wrong with each series that it selects."""
    for selector, name, labels in wanted(expression):
        found = it.ask(f"last_over_time({selector}[15m])")
        if not found:
            yield f"no series {selector}"
            continue
        for label in sorted(labels):
            if not any(label in series["metric"] for series in found):
                yield f"{name} has no label {label}"
        if not moved(it, selector, name):
            yield f"{selector} never moves"


def moved(it: Prometheus, selector: str, name: str) -> bool:
    """A counter has counted; a gauge has had two values."""
    if name in CONSTANT or name.endswith(COUNTERS):
        return bool(it.number(f"max_over_time({selector}[15m])"))
    return bool(it.number(f"max_over_time({selector}[15m]) - min_over_time({selector}[15m])"))
