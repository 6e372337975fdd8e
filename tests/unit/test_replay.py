"""Snapshots rarer than commits, outputs ahead of slow neighbours, and workers that die: every record counts once."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import numpy as np
import pytest

from tests.models import rolling_hash_reference
from tests.unit.test_worker import counted, hash_model, new_broker, outputs, partition_of, running, until
from tests.unit.watched import Log, killed, made_watched

__all__ = ["hash_model"]


def value(x: int) -> bytes:
    return x.to_bytes(8, "little")


class Traffic:
    """Random records of streams, some of them hot, with ends in between."""

    def __init__(self, rng: np.random.Generator, streams: int, hot: int = 0, ends: float = 0.0) -> None:
        self.rng, self.streams, self.hot, self.ends = rng, streams, hot, ends
        self.lives: dict[bytes, list[list[int]]] = defaultdict(lambda: [[]])
        self.records = 0

    def produce(self, broker, n: int, partitions=partition_of) -> None:
        for _ in range(n):
            hot = self.hot and self.rng.random() < 0.6
            key = b"hot%d" % self.rng.integers(self.hot) if hot else b"s%d" % self.rng.integers(self.streams)
            if self.rng.random() < self.ends:
                broker.produce("in", partitions(key), key, None)
                self.lives[key].append([])
                continue
            x = int(self.rng.integers(1000))
            broker.produce("in", partitions(key), key, value(x))
            self.lives[key][-1].append(x)
            self.records += 1

    def check(self, broker) -> None:
        got = outputs(broker)
        for key, several in self.lives.items():
            want = [y for steps in several for y in rolling_hash_reference(np.array(steps, np.int64)).tolist()]
            assert got.get(key, []) == want, key


@pytest.mark.parametrize("seed", range(4))
async def test_workers_that_die_at_any_moment_with_all_that_there_is(hash_model, monkeypatch, seed):
    """Hot streams, few slots, ends, snapshots at all paces, and little room in D."""
    monkeypatch.setattr("pipeline.worker.STREAM_STEPS", 16)
    monkeypatch.setattr("pipeline.mark.DONE_BYTES_MAX", (40, 400)[seed % 2])
    monkeypatch.setattr("pipeline.policy.LOOK_S", 0.0)
    broker, rng = new_broker(), np.random.default_rng(seed)
    traffic, log = Traffic(rng, 60, hot=3, ends=0.05), Log(broker)
    traffic.produce(broker, 2500)
    for life in range(12):
        worker, _ = made_watched(
            log,
            hash_model,
            worker_id=f"w{life}",
            max_steps=200,
            slots=(24, 4096)[life % 2],
            snapshot_interval_ms=float(rng.choice([0, 1, 20, 10_000])),
        )
        task = asyncio.create_task(worker.run())
        enough = counted(broker) + int(rng.integers(1, 250))
        await until(broker, task, lambda n=enough: counted(broker) >= min(n, traffic.records))
        for _ in range(int(rng.integers(0, 30))):
            await asyncio.sleep(0)
        await killed(task)
        traffic.produce(broker, 60)
    worker, _ = made_watched(log, hash_model, slots=24, snapshot_interval_ms=5)
    async with running(worker) as task:
        await until(broker, task, lambda: counted(broker) >= traffic.records)
    traffic.check(broker)
    for p, marks in log.marks.items():
        assert marks[-1].replay_from == marks[-1].committed == len(broker.topics["in"][p]), "drained: nothing to replay"
        assert marks[-1].done_above == ()
