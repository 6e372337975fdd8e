"""Texts cut anywhere, with a tokenizer that holds back their last words, through deaths: every token once, in order."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from services.broker import Broker
from tests.kafka.harness import make_topics, new_seed, produce, workers
from tests.kafka.reading import Reader, Record
from tests.models import rolling_hash_reference
from tests.tokenizations import CORPUS
from tests.unit.test_token_codec import whole
from tests.unit.test_worker_tokens import KIND, served

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

STREAMS, REPEATS, KILLS = 40, 3, 4


def cut(text: str, rng: random.Random) -> list[bytes]:
    """A text as records of up to eight bytes, which end inside words and characters."""
    data, records = text.encode(), []
    while data:
        size = rng.randint(0, 8)
        records.append(data[:size])
        data = data[size:]
    return records


def steps(records: Sequence[Record]) -> int:
    return sum(len(r.value or b"") for r in records) // 8


def test_every_token_of_an_ended_text_is_a_step_once_whatever_dies(
    broker: Broker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    rng = random.Random(new_seed())
    topics = make_topics(broker.address, unique, 2)
    texts = {b"stream-%d" % i: (CORPUS[i * 5 :] * REPEATS)[: 700 + 13 * i] for i in range(STREAMS)}
    rest = {key: [*cut(text, rng), None] for key, text in texts.items()}
    records = []
    while rest:
        key = rng.choice(list(rest))
        records.append((key, rest[key].pop(0)))
        if not rest[key]:
            del rest[key]
    produce(topics.address, topics.input, records)
    expected = {key: rolling_hash_reference(np.array(whole(KIND, text))).tolist() for key, text in texts.items()}
    total = sum(map(len, expected.values()))

    # Polls are small, so that every death finds streams in the middle of words.
    worker = topics.worker(served(tmp_path / "hash" / "1", flush="boundary"), max_steps=100)
    judged = Reader(topics.address, topics.output)
    with workers(worker):
        for kill in range(KILLS):
            enough = total * (kill + rng.random()) / (KILLS + 1)
            judged.until(lambda records, enough=enough: steps(records) > enough, of=[worker])
            worker.kill()
            worker.start()
        judged.until(lambda records: steps(records) >= total, of=[worker])
        worker.wait_ready().drained()
    got: dict[bytes | None, list[int]] = defaultdict(list)
    for record in judged.rest():
        got[record.key] += np.frombuffer(record.value or b"", "<i8").tolist()
    judged.close()
    assert got == expected
