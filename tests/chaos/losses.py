"""Three brokers, of which one at a time is lost and comes back: results stay exact, and work goes on meanwhile."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from confluent_kafka.admin import AdminClient

from services.broker import Broker
from services.quorum import SIZE, Quorum
from tests.kafka.feed import Feed
from tests.kafka.harness import Topics, admin, eventually, workers
from tests.kafka.reading import Reader, Record
from tests.kafka.verdict import Verdict, judge_hash

RATE = 1500
STALL_MAX_S = 30.0
"""From a loss until every partition has an answer to a record that came after it."""
BACK_MAX_S = 60.0
"""From its return until a broker has all that the others have."""


@dataclass
class Losses:
    """What was lost, and what came of it."""

    seed: int
    lost: list[str] = field(default_factory=list)
    stalls_s: list[float] = field(default_factory=list)
    returns_s: list[float] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)

    def __str__(self) -> str:
        v = self.verdict
        stalls = ", ".join(f"{s:.1f}" for s in self.stalls_s)
        returns = ", ".join(f"{s:.1f}" for s in self.returns_s)
        return (
            f"seed {self.seed}: brokers lost {self.lost}, partitions stood still for {stalls} s, a broker was in step"
            f" again {returns} s after its return; {v.inputs} inputs of {v.streams} streams: lost {v.lost} / repeated"
            f" {v.repeated} / out of order {v.out_of_order} (wrong {v.wrong}, strange {v.strange})"
        )


def lose(quorum: Quorum, topics: Topics, model: Path, seed: int, losses: int) -> Losses:
    """Two workers serve while brokers are lost by kill -9, one after the other, each another than the last.

    Raises AssertionError where work stands still for too long.
    """
    rng = random.Random(seed)
    told = Losses(seed)
    client = admin(topics.address)
    pair = [topics.worker(model, f"worker-{i}", max_steps=500) for i in range(2)]
    victim: Broker | None = None
    with workers(*pair), Feed(topics, seed, RATE) as feed:
        reader = Reader(topics.address, topics.output)
        reader.until(RATE, of=pair)
        for _ in range(losses):
            victim = rng.choice([broker for broker in quorum.brokers if broker is not victim])
            told.lost.append(f"{quorum.brokers.index(victim) + 1} of {SIZE}")
            gone = time.time()
            victim.kill()
            reader.until(partial(_all_answer, topics.partitions, gone * 1000), STALL_MAX_S, of=pair)
            told.stalls_s.append(time.time() - gone)
            back = time.monotonic()
            victim.restart()
            eventually(lambda: _in_step(client), BACK_MAX_S, "the broker is in step with the others")
            told.returns_s.append(time.monotonic() - back)
        sent = feed.stop()
        reader.until(sent, of=pair)
        reader.close()
        for worker in pair:
            worker.drained()
    told.verdict = judge_hash(topics)
    assert told.verdict.inputs == sent
    return told


def _all_answer(partitions: int, since_ms: float, records: list[Record]) -> bool:
    """Whether each partition has an output of a record that was sent later than this (outputs have inputs' times)."""
    return len({r.partition for r in records if r.timestamp > since_ms}) == partitions


def _in_step(client: AdminClient) -> bool:
    """Whether every partition of every topic has all its replicas in step."""
    topics = client.list_topics(timeout=10).topics.values()
    return all(len(p.isrs) == len(p.replicas) == SIZE for topic in topics for p in topic.partitions.values())
