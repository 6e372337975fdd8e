"""How a worker ends: drained by SIGTERM, refused at its start, or put out by another of its name. No tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.broker import Broker
from tests.kafka.feed import Feed
from tests.kafka.graphs import slow_tensor
from tests.kafka.harness import Topics, eventually, make_topics, new_seed, produce, workers
from tests.kafka.reading import Reader, read_all
from tests.kafka.transactions import Transactions
from tests.kafka.verdict import judge_hash
from tests.models import rolling_hash

pytestmark = pytest.mark.kafka

Unique = Callable[[str], str]
SHIPPED = Path(__file__).parents[2] / "models" / "python-reference"


def test_sigterm_finishes_and_commits_what_is_in_flight_and_leaves_the_group(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 4)
    model = rolling_hash(tmp_path / "hash" / "1")
    first, second = topics.worker(model, "first", max_steps=300), topics.worker(model, "second", max_steps=300)
    with workers(first, later=[second]), Feed(topics, new_seed(), 3000) as feed:
        judged = Reader(topics.address, topics.output)
        judged.until(1500, of=[first])
        first.terminate()
        assert first.ended(20) == 0, first.log
        assert "not drained" not in first.log
        done = len(judged.rest())
        with Transactions(broker.address) as transactions:
            assert first.lane not in transactions.ongoing()
        # It said goodbye: the next one has the partitions before a session would be over.
        second.start()
        began = time.monotonic()
        second.heard("assigned partitions [0, 1, 2, 3]", 10)
        second.heard("pages at")
        assert time.monotonic() - began < 5, "the group waited for the dead one's session"
        sent = feed.stop()
        judged.until(sent, of=[second])
        figures = second.metrics()
        second.drained()
    judged.close()
    assert figures["eddy_records_total"] == sent - done, "the second one had to do again what was not committed"
    verdict = judge_hash(topics)
    assert verdict.clean, verdict


def slow_backlog(broker: Broker, unique: Unique) -> Topics:
    """Twenty thousand steps, on which `slow_tensor` works for ten seconds and more."""
    topics = make_topics(broker.address, unique, 1)
    value = np.ones((100, 64), np.float32).tobytes()
    produce(topics.address, topics.input, [(b"stream-%d" % (i % 50), value) for i in range(200)])
    return topics


def test_what_a_slow_engine_has_begun_is_finished_before_the_end(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = slow_backlog(broker, unique)
    worker = topics.worker(slow_tensor(tmp_path / "slow" / "1", 100), max_steps=500, drain_timeout_s=20)
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        judged.until(5, of=[worker])
        worker.terminate()
        assert worker.ended(20) == 0, worker.log
        assert "not drained" not in worker.log
        committed = len(judged.rest())
        judged.close()
        assert (
            worker.start().heard("runs from offset")["message"].startswith(f"partition 0 runs from offset {committed} ")
        )
        worker.kill()


def test_a_drain_that_takes_too_long_is_given_up_in_time(broker: Broker, unique: Unique, tmp_path: Path) -> None:
    """Two polls of the whole backlog are with the engine: nothing waits for them, another owner will do them."""
    topics = slow_backlog(broker, unique)
    worker = topics.worker(slow_tensor(tmp_path / "slow" / "1", 300), drain_timeout_s=1)
    with workers(worker):
        worker.heard("runs from offset")
        eventually(lambda: worker.metrics()["eddy_polls_total"] > 0, 10, "a poll is with the engine")
        began = time.monotonic()
        worker.terminate()
        code = worker.ended(30)
        taken = time.monotonic() - began
        print(f"ended with {code} after {taken:.1f} s")
        assert "not drained in 1 s" in worker.log
        assert taken < 4, "it waited for what the engine had"
        assert code == 0, worker.log


def test_a_worker_whose_broker_is_away_can_still_be_ended(own_broker: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(own_broker.address, unique, 4)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"), request_timeout_ms=2000, drain_timeout_s=3)
    with workers(worker), Feed(topics, new_seed(), 2000):
        judged = Reader(topics.address, topics.output)
        judged.until(500, of=[worker])
        judged.close()
        with Transactions(own_broker.address) as transactions:
            assert transactions.await_open(worker.lane, 30)
        own_broker.kill()
        worker.heard("cannot be settled yet")
        began = time.monotonic()
        worker.terminate()
        assert worker.ended(20) == 0, worker.log
        taken = time.monotonic() - began
        print(f"ended after {taken:.1f} s")
        assert taken < 3 + 4
        assert "Traceback" not in worker.log


def test_of_two_workers_with_one_name_on_two_machines_one_ends_with_one_line(
    broker: Broker, unique: Unique, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = make_topics(broker.address, unique, 4)
    model = rolling_hash(tmp_path / "hash" / "1")
    one, other = topics.worker(model, "same", max_steps=500), topics.worker(model, "same", max_steps=500)
    with workers(one, later=[other]), Feed(topics, new_seed(), 2000) as feed:
        one.wait_ready()
        # Lock files are one machine's; another folder for them is another machine.
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        other.start()
        eventually(lambda: one.alive != other.alive, 40, f"one of them ended\n{one.log}\n{other.log}")
        loser, winner = (other, one) if one.alive else (one, other)
        assert loser.ended() == 2
        assert "another process is worker 'same'" in loser.log
        assert "Traceback" not in loser.log
        sent = feed.stop()
        judged = Reader(topics.address, topics.output)
        judged.until(sent, of=[winner])
        judged.close()
        winner.drained()
    verdict = judge_hash(topics)
    print(f"the {'first' if winner is one else 'second'} one stayed; {verdict}")
    assert verdict.clean, verdict


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("slots: many", "slots is 'many': expected a whole number"),
        ("slotz: 3", "unknown key 'slotz'; did you mean 'slots'?"),
        ("- slots", "expected keys and values, found list"),
        ("slots: [", "not YAML"),
    ],
)
def test_a_wrong_configuration_file_is_one_line(tmp_path: Path, setting: str, expected: str) -> None:
    file = tmp_path / "worker.yaml"
    file.write_text(setting)
    done = subprocess.run(
        [sys.executable, "-m", "services", "run", "--config", file, "--model", "m", "--input", "i", "--output", "o"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "EDDY_DEBUG": ""},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("eddy: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_text_that_cannot_become_utf8_is_a_dead_letter_and_its_stream_goes_on(broker: Broker, unique: Unique) -> None:
    topics = make_topics(broker.address, unique, 1)
    ask = [("eddy-max-steps", b"20"), ("eddy-temperature", b"0")]
    records = [
        (b"good", b"The if statement", ask),
        (b"cut", "na\u00efve".encode()[:3], [("eddy-max-steps", b"0")]),  # in the middle of a letter
        (b"bad", b"abc\xff\xfe", ask),
        (b"cut", "na\u00efve".encode()[3:], ask),
        (b"bad", b"The if statement", ask),
        (b"asks", b"The if statement", [("eddy-temperature", b"hot")]),
    ]
    produce(topics.address, topics.input, records)
    worker = topics.worker(SHIPPED)
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        judged.until(lambda rs: sum(r.header("eddy-finish") is not None for r in rs) == 3, of=[worker])
        worker.drained()
    text = {k: b"".join(r.value or b"" for r in judged.records if r.key == k) for k in (b"good", b"cut", b"bad")}
    judged.close()
    dead = read_all(topics.address, topics.dead_letters)
    assert [(r.key, r.value, r.source) for r in dead] == [(records[i][0], records[i][1], (0, i)) for i in (2, 5)]
    assert [r.header("eddy-error") for r in dead] == [b"utf-8", b"header"]
    assert text[b"good"] == text[b"bad"], "what cannot be decoded must leave no trace in its stream"
    assert len(text[b"cut"]) >= 20
