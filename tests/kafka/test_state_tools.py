"""`eddy state` on a real broker, beside workers and between them: what it shows, what it ends, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.columns import as_list
from pipeline.streams.snapshots import DIGEST, HEADER, Snapshots
from services.broker import Broker
from services.keys import partition_of
from tests.kafka.commands import eddy, one_line, told
from tests.kafka.harness import Topics, eventually, make_topics, produce, workers
from tests.kafka.reading import Reader, read_all
from tests.models import rolling_hash, rolling_hash_reference

pytestmark = pytest.mark.kafka
Unique = Callable[[str], str]


def steps(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def of(topics: Topics) -> tuple[str, ...]:
    """The group that ``topics.worker`` gives, and its input."""
    return ("--group", f"{topics.input}-g", "--input", topics.input)


# ---- inspect


def test_a_stream_is_shown_while_its_worker_runs(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 3)
    model = rolling_hash(tmp_path / "hash" / "1")
    worker = topics.worker(model)
    keys = [b"stream-%d" % i for i in range(12)]
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        produce(topics.address, topics.input, [(key, steps(i, i + 1)) for i, key in enumerate(keys)])
        produce(topics.address, topics.input, [(keys[5], steps(9)), (keys[6], None)])
        judged.until(13, of=[worker])
        judged.close()
        inputs = read_all(topics.address, topics.input)
        last = {r.key: r for r in inputs}
        # (Snapshots may be rarer than commits: they are all there once the worker has been idle for its interval.)
        eventually(lambda: told("state", "inspect", *of(topics))["streams"] == 11, 60, "every stream is saved")
        found = told("state", "inspect", *of(topics), "--model", model, "stream-5")
        assert worker.alive
        worker.drained()
    record = last[keys[5]]
    assert (found["partition"], found["applied"]) == (record.partition, record.offset)
    assert found["committed"] == 1 + max(r.offset for r in inputs if r.partition == record.partition)
    assert (found["fits"], found["ended"]) == (True, False)
    assert 0 <= found["age_s"] < 60
    assert (found["row_bytes"], found["bytes"]) == (8, HEADER + 8)
    (state,) = found["states"]
    h = int(rolling_hash_reference(np.array([5, 6, 9]))[-1])
    expected = {"name": "h", "dtype": "int64", "shape": [1, 1], "norm": h, "min": h, "max": h, "not_finite": 0}
    assert state == expected

    plain = eddy("state", "inspect", *of(topics), "stream-5").stdout
    assert f"A          {record.offset}\n" in plain
    assert found["digest"] in plain

    summary = told("state", "inspect", *of(topics))
    assert (summary["streams"], summary["members"]) == (11, [])
    for p in summary["partitions"]:
        mine = [r for r in last.values() if r.partition == p["partition"]]
        ended_here = [r for r in mine if r.value is None]
        assert p["streams"] == len(mine) - len(ended_here)
        assert p["ended"] <= len(ended_here)  # (it may be forgotten by now)
        assert p["committed"] == p["replay_from"] == p["log_end"]
        assert (p["lag"], p["done_above"], p["problems"], p["note"]) == (0, 0, [], None)
        assert p["digests"] == {found["digest"]: p["streams"] + p["ended"]}
        assert p["bytes"] == p["digests"][found["digest"]] * HEADER + 8 * p["streams"]
    table = eddy("state", "inspect", *of(topics)).stdout
    assert "streams    11, " in table
    assert len(table.splitlines()) == 4 + 3


def test_what_cannot_be_shown_is_one_line(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 2)
    model = rolling_hash(tmp_path / "hash" / "1")
    nothing = one_line(eddy("state", "inspect", *of(topics)))
    assert f"there is no topic {topics.changelog!r}" in nothing
    worker = topics.worker(model)
    with workers(worker):
        produce(topics.address, topics.input, [(b"k", steps(1)), (b"\xff\x00", steps(2))])
        judged = Reader(topics.address, topics.output)
        judged.until(2, of=[worker])
        judged.close()
        worker.drained()
    other = one_line(eddy("state", "inspect", "--group", "nobody", "--input", topics.input))
    assert f"(groups that have some: {topics.input}-g)" in other
    assert "stream 'nobody' has no snapshot" in one_line(eddy("state", "inspect", *of(topics), "nobody"))
    home = partition_of(b"k", 2)
    away = one_line(eddy("state", "inspect", *of(topics), "k", "--partition", 1 - home))
    assert f"partition {1 - home}" in away
    assert "--partition is 2" in one_line(eddy("state", "inspect", *of(topics), "k", "--partition", 2))
    assert told("state", "inspect", *of(topics), "--hex", "ff00")["key"] == "\\xff\x00"
    assert "not hexadecimal" in one_line(eddy("state", "inspect", *of(topics), "--hex", "k"))
    assert "no group" in one_line(eddy("state", "inspect", "--input", topics.input, "k"))
    assert "no topic 'nowhere'" in one_line(eddy("state", "inspect", "--group", "g", "--input", "nowhere"))
    gone = eddy("state", "inspect", *of(topics), EDDY_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert "no broker answers at 127.0.0.1:1" in one_line(gone)
    another = Path(__file__).parents[2] / "models" / "python-reference"
    theirs = json.loads(eddy("inspect", another, "--json").stdout)["snapshot_digest"]
    foreign = told("state", "inspect", *of(topics), "--model", another, "k")
    assert (foreign["fits"], foreign["model_digest"]) == (False, theirs)
    assert foreign["digest"] != theirs
    assert "states" not in foreign
    summary = told("state", "inspect", *of(topics), "--model", another)
    assert [p["kind"] for of_one in summary["partitions"] for p in of_one["problems"]] == ["foreign"] * 2


def test_ended_forgotten_and_damaged_streams_are_told_apart(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 1)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"))
    with workers(worker):
        produce(topics.address, topics.input, [(b"k%d" % i, steps(i)) for i in range(4)])
        worker.wait_ready()
        judged = Reader(topics.address, topics.output)
        judged.until(4, of=[worker])
        judged.close()
        worker.drained()
    value = next(r.value for r in read_all(topics.address, topics.changelog) if r.key == b"k1")
    assert value is not None
    none, at = np.empty(0, np.int64), np.array([3])
    over = Snapshots(none, [], none, np.empty((0, 8), np.uint8), [b"k3"], at).records(value[DIGEST], 1_000)
    end = (b"k3", as_list(over.values)[0])
    produce(topics.address, topics.changelog, [(b"k1", value[:-1] + bytes([value[-1] ^ 1])), (b"k2", None), end])
    (p,) = told("state", "inspect", *of(topics))["partitions"]
    assert (p["streams"], p["ended"]) == (1, 1)
    ended = told("state", "inspect", *of(topics), "k3")
    assert (ended["ended"], ended["applied"], ended["written_ms"]) == (True, 3, 1_000)
    assert "A          3   the stream ended there\n" in eddy("state", "inspect", *of(topics), "k3").stdout
    assert [(found["key"], found["kind"]) for found in p["problems"]] == [("k1", "corrupt")]
    assert "partition 0: corrupt: snapshot of stream b'k1' is damaged" in eddy("state", "inspect", *of(topics)).stdout
    assert "snapshot of stream b'k1' is damaged" in one_line(eddy("state", "inspect", *of(topics), "k1"), 1)
    assert "'k2' of partition 0" in (gone := one_line(eddy("state", "inspect", *of(topics), "k2")))
    assert "is forgotten" in gone
    refused = one_line(eddy("state", "export", *of(topics), "--output", tmp_path / "x"))
    assert "1 snapshots cannot be read: snapshot of stream b'k1' is damaged" in refused
    assert not (tmp_path / "x").exists()


# ---- end


def test_a_stream_is_ended_by_hand_in_its_order(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 3)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"))
    produce(topics.address, topics.input, [(b"a", steps(1)), (b"b", steps(2))])
    done = eddy("state", "end", "--input", topics.input, "a", "--json")
    place = json.loads(done.stdout)
    assert (place["key"], place["partition"]) == ("a", partition_of(b"a", 3))
    produce(topics.address, topics.input, [(b"a", steps(3)), (b"b", steps(4))])
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        judged.until(4, of=[worker])
        worker.drained()
        outputs = judged.rest()
        judged.close()
    (null,) = [r for r in read_all(topics.address, topics.input) if r.value is None]
    assert (null.key, null.partition, null.offset) == (b"a", place["partition"], place["offset"])
    found = {
        key: [int(np.frombuffer(r.value or b"", np.int64)[0]) for r in outputs if r.key == key] for key in (b"a", b"b")
    }
    assert found[b"a"] == [*rolling_hash_reference(np.array([1])), *rolling_hash_reference(np.array([3]))]
    assert found[b"b"] == rolling_hash_reference(np.array([2, 4])).tolist()
    again = eddy("state", "end", "--input", topics.input, "b", "b", "c")
    assert again.stdout.startswith(f"b: ended by {topics.input}, partition {partition_of(b'b', 3)}, offset ")
    assert len(again.stdout.splitlines()) == 2
    assert "no topic 'nowhere'" in one_line(eddy("state", "end", "--input", "nowhere", "a"))
    assert "a key is empty" in one_line(eddy("state", "end", "--input", topics.input, ""))
