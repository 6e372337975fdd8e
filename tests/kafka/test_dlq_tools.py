"""`eddy dlq` on a real broker: what it lists, and that each dead letter goes through its stream again exactly once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.broker import Broker
from services.dlq import replay
from tests.kafka.commands import eddy, one_line, told
from tests.kafka.harness import Topics, make_topics, produce, workers
from tests.kafka.reading import Reader, Record, read_all
from tests.models import rolling_hash, rolling_hash_reference

pytestmark = pytest.mark.kafka
Unique = Callable[[str], str]
HEADERS = [("eddy-seed", b"3"), ("eddy-model", b"another/1"), ("mine", b"\x00\xff")]
"""Of every input record: names that Eddy writes as well are its own."""


def steps(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def dead_letters(topics: Topics, model: Path, records: list[tuple[bytes, bytes]], dead: int) -> None:
    """A worker that takes records of at most 100 bytes has served these; so many were dead letters."""
    produce(topics.address, topics.input, [(key, value, HEADERS) for key, value in records])
    worker = topics.worker(model, max_record_bytes=100)
    with workers(worker):
        worker.wait_ready()
        letters = Reader(topics.address, topics.dead_letters)
        letters.until(dead, of=[worker])
        letters.close()
        judged = Reader(topics.address, topics.output)
        judged.until(len(records) - dead, of=[worker])
        judged.close()
        worker.drained()


def served(topics: Topics, model: Path, outputs: int, **settings: Any) -> list[Record]:
    worker = topics.worker(model, **settings)
    with workers(worker):
        worker.wait_ready()
        judged = Reader(topics.address, topics.output)
        judged.until(outputs, of=[worker])
        worker.drained()
        records = judged.rest()
        judged.close()
    return records


def hashes(records: list[Record], key: bytes) -> list[int]:
    return [x for r in records if r.key == key for x in np.frombuffer(r.value or b"", np.int64).tolist()]


def test_dead_letters_go_through_their_streams_again_once(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 3)
    model = rolling_hash(tmp_path / "hash" / "1")
    large = tuple(range(20))
    records = [(b"a", steps(1)), (b"a", steps(*large)), (b"a", steps(2)), (b"b", steps(*large)), (b"b", b"seven b")]
    dead_letters(topics, model, records, 3)
    before = read_all(topics.address, topics.input)

    listed = told("dlq", "list", "--input", topics.input)
    assert (listed["letters"], listed["by_reason"]) == (3, {"too-large": 2, "length": 1})
    shown = {(line["key"], line["reason"]): line for line in listed["shown"]}
    a = shown["a", "too-large"]
    (original,) = [r for r in before if r.key == b"a" and len(r.value or b"") == 160]
    assert (a["partition"], a["offset"], a["bytes"]) == (original.partition, original.offset, 160)
    assert (a["timestamp"], a["replayed"]) == (original.timestamp, False)
    assert "160 bytes" in a["message"]
    plain = eddy("dlq", "list", "--input", topics.input, "--limit", 1).stdout.splitlines()
    assert len(plain) == 3
    assert plain[1] == f"3 dead letters in {topics.dead_letters}: too-large 2, length 1"
    assert told("dlq", "list", "--input", topics.input, "--key", "b")["letters"] == 2

    # Looking and planning change nothing.
    dry = told("dlq", "replay", "--input", topics.input, "--reason", "too-large", "--dry-run")
    assert (dry["chosen"], dry["replayed"], dry["skipped"]) == (2, 2, 0)
    assert read_all(topics.address, topics.input) == before
    sent = told("dlq", "replay", "--input", topics.input, "--reason", "too-large")
    assert (sent["chosen"], sent["replayed"], sent["skipped"]) == (2, 2, 0)
    again = told("dlq", "replay", "--input", topics.input, "--reason", "too-large")
    assert (again["chosen"], again["replayed"], again["skipped"]) == (2, 0, 2)
    new = [r for r in read_all(topics.address, topics.input) if r not in before]
    assert [(r.key, r.value, list(r.headers)) for r in sorted(new, key=lambda r: r.key or b"")] == [
        (key, steps(*large), HEADERS) for key in (b"a", b"b")
    ]
    sources = {r.key: r for r in before if r.value == steps(*large)}
    assert all((r.partition, r.timestamp) == (sources[r.key].partition, sources[r.key].timestamp) for r in new)
    assert {line["replayed"] for line in told("dlq", "list", "--input", topics.input)["shown"]} == {True, False}

    # Behind what the streams have by now, in their order, by a worker that takes such records.
    outputs = served(topics, model, 4, max_record_bytes=1000)
    right = rolling_hash_reference(np.array([1, 2, *large])).tolist()
    assert hashes(outputs, b"a") == right
    assert hashes(outputs, b"b") == rolling_hash_reference(np.array(large)).tolist()

    # The one place that is left, by name; and once more what was sent.
    bad = shown["b", "length"]
    place = f"{bad['partition']}:{bad['offset']}"
    assert told("dlq", "replay", "--input", topics.input, "--offset", place)["replayed"] == 1
    assert told("dlq", "replay", "--input", topics.input)["replayed"] == 0
    assert told("dlq", "replay", "--input", topics.input, "--offset", place, "--again")["replayed"] == 1


def test_what_cannot_be_listed_or_sent_is_one_line(cluster: Broker, unique: Unique, tmp_path: Path) -> None:
    topics = make_topics(cluster.address, unique, 2)
    assert f"no topic {topics.dead_letters!r}" in one_line(eddy("dlq", "list", "--input", topics.input))
    dead_letters(topics, rolling_hash(tmp_path / "hash" / "1"), [(b"k", b"odd")], 1)
    produce(topics.address, topics.dead_letters, [(b"k", b"somebody else's", [("eddy-error", b"x")]), (b"k", b"bare")])
    assert told("dlq", "list", "--input", topics.input)["letters"] == 1
    where = ("dlq", "replay", "--input", topics.input)
    assert "no dead letter" in one_line(eddy(*where, "--offset", "0:999"))
    assert "expected PARTITION:OFFSET" in one_line(eddy(*where, "--offset", "12"))
    assert "--limit is 0" in one_line(eddy("dlq", "list", "--input", topics.input, "--limit", 0))
    assert "no broker answers" in one_line(eddy(*where, EDDY_BOOTSTRAP_SERVERS="127.0.0.1:1"))
    assert told(*where)["replayed"] == 1


def test_many_letters_are_sent_in_lots_and_gaps_are_remembered(
    cluster: Broker, unique: Unique, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lot is one transaction; whatever happens between two of them, none is sent twice."""
    topics = make_topics(cluster.address, unique, 1)
    dead_letters(
        topics, rolling_hash(tmp_path / "hash" / "1"), [(b"k%d" % (i % 5), b"%03d" % i) for i in range(40)], 40
    )
    before = len(read_all(topics.address, topics.input))
    monkeypatch.setattr(replay, "LOT_LETTERS", 3)
    from services.cli import main

    arguments = ["dlq", "replay", "--input", topics.input, "--json"]
    assert main([*arguments, "--key", "k2"]) == 0
    assert main([*arguments, "--key", "k4"]) == 0
    lots: list[int] = []
    commit = replay.Sole.commit

    async def failing(self: replay.Sole, parts: Any) -> None:
        if len(lots) == 4:
            raise KeyboardInterrupt
        lots.append(len(parts[0].outputs))
        await commit(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(replay.Sole, "commit", failing)
        assert main(arguments) == 130
    assert lots == [3, 3, 3, 3]
    assert main(arguments) == 0
    values = [r.value for r in read_all(topics.address, topics.input)[before:]]
    assert sorted(values) == [b"%03d" % i for i in range(40)]  # type: ignore[type-var]
    rest = [v for v in values[16:] if v is not None]
    assert rest == sorted(rest), "not in their order"
