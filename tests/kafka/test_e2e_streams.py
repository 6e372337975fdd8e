"""Streams over a real Kafka, a worker process and plain clients: right answers, exactly once, ends, dead letters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.broker import Broker
from tests.kafka.harness import make_topics, new_seed, produce, workers
from tests.kafka.reading import Reader, read_all
from tests.kafka.verdict import judge, judge_hash
from tests.models import lstm_module, lstm_tensor, rolling_hash, rolling_hash_reference

pytestmark = pytest.mark.kafka

Unique = Callable[[str], str]
STREAMS, PARTITIONS, RECORDS = 1000, 4, 12_000


def test_a_thousand_interleaved_lstm_streams_are_as_each_alone_in_pytorch(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    rng = np.random.default_rng(new_seed())
    topics = make_topics(broker.address, unique, PARTITIONS)
    model = lstm_tensor(tmp_path / "lstm" / "1", seed=3)

    def records(n: int) -> Iterator[tuple[bytes, bytes]]:
        for stream in rng.permutation(np.arange(n) % STREAMS).tolist():
            steps = rng.standard_normal((int(rng.integers(1, 4)), 64), np.float32)
            yield b"stream-%d" % stream, steps.tobytes()

    worker = topics.worker(model)
    with workers(worker):
        # A backlog first, then little by little: both large and small polls.
        judged = Reader(topics.address, topics.output)
        sent = produce(topics.address, topics.input, records(RECORDS // 2))
        while sent < RECORDS:
            judged.until(sent, of=[worker])
            sent += produce(topics.address, topics.input, records(RECORDS // 20))
        judged.until(RECORDS, of=[worker])
        figures = worker.metrics()
        worker.drained()
    outputs = judged.rest()
    judged.close()

    module = lstm_module(seed=3)
    torch.set_num_threads(1)  # more of them only wait for each other over one stream's step

    def alone(steps: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        with torch.no_grad():
            x = torch.from_numpy(np.concatenate(steps))[:, None]
            y = module(x, *module.initial_state(1))[0][:, 0].numpy()
        return np.split(y, np.cumsum([len(s) for s in steps])[:-1])

    verdict = judge(
        read_all(topics.address, topics.input),
        outputs,
        alone,
        step=np.empty(64, np.float32),
        answer=np.empty(10, np.float32),
        tolerance=1e-5,
    )
    batch = figures["eddy_batch_size_sum"] / figures["eddy_batch_size_count"]
    print(f"{verdict}; mean realised batch {batch:.1f}, commits {figures['eddy_commit_seconds_count']:.0f}")
    assert verdict.clean, verdict
    assert (verdict.inputs, verdict.streams) == (RECORDS, STREAMS)
    assert figures["eddy_records_total"] == RECORDS
    assert batch > 10, "streams were not run together"


def test_after_a_null_value_the_key_begins_anew_also_after_a_restart(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 2)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"))
    value = (77).to_bytes(8, "little")
    once, twice = (rolling_hash_reference(np.array([77] * n)).tolist() for n in (1, 2))

    def send(*values: bytes | None) -> None:
        produce(topics.address, topics.input, [(b"k", v) for v in values])

    def seen(n: int) -> list[int]:
        outputs = judged.until(n, of=[worker])
        return [x for r in outputs for x in np.frombuffer(r.value or b"", np.int64).tolist()]

    with workers(worker):
        judged = Reader(topics.address, topics.output)
        send(value, value, None, value, None)
        assert seen(3) == [*twice, *once]
        worker.drained()
        worker.start()
        send(value)
        assert seen(4) == [*twice, *once, *once], "the end was not remembered over a restart"
        send(value)
        assert seen(5) == [*twice, *once, *twice]
        # The end is committed, the worker is killed: the end still stands.
        send(None, b"not a step")
        dead = Reader(topics.address, topics.dead_letters)
        dead.until(1, of=[worker])
        worker.kill()
        worker.start()
        send(value)
        assert seen(6) == [*twice, *once, *twice, *once]
        assert worker.metrics()["eddy_replayed_records_total"] == 0
        worker.drained()
    assert len(judged.rest()) == 6
    judged.close()
    dead.close()


def test_what_cannot_be_served_is_a_dead_letter_with_its_reason_source_and_bytes(
    broker: Broker, unique: Unique, tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 2)
    good = np.arange(3, dtype="<i8").tobytes()
    large = np.arange(200, dtype="<i8").tobytes()
    cases: list[tuple[bytes | None, bytes, bytes | None]] = [
        (b"k", good, None),
        (b"k", b"seven b", b"length"),
        (None, good, b"no-key"),
        (b"k", large, b"too-large"),
        (b"only-bad", b"x", b"length"),
        (b"k", good, None),
    ]
    headers = [("traceparent", b"00-1"), ("mine", b"\x00\xff")]
    produce(topics.address, topics.input, [(k, v, headers) for k, v, _ in cases], partition=1)
    worker = topics.worker(rolling_hash(tmp_path / "hash" / "1"), max_record_bytes=1000)
    with workers(worker):
        judged = Reader(topics.address, topics.output)
        judged.until(2, of=[worker])
        worker.drained()
    dead = read_all(topics.address, topics.dead_letters)
    bad = [(offset, *case) for offset, case in enumerate(cases) if case[2]]
    assert [(r.partition, r.source, r.key, r.value) for r in dead] == [(1, (1, o), k, v) for o, k, v, _ in bad]
    assert [r.header("eddy-error") for r in dead] == [reason for *_, reason in bad]
    assert all(r.header("eddy-message") and r.header("mine") == b"\x00\xff" for r in dead)
    skipped = frozenset((1, offset) for offset, *_ in bad)
    verdict = judge_hash(topics, skipped=skipped)
    assert verdict.clean, verdict
    assert verdict.outputs == 2
    assert all(r.header("traceparent") == b"00-1" for r in judged.rest())
    judged.close()
