"""Streams that are listened to, through deaths: every transcript once, in order, as if nobody had died."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.beside import Beside
from pipeline.heads import Finished, make_head
from pipeline.model_file import load_graph, read_contract
from services.broker import Broker
from tests.kafka.harness import make_topics, new_seed, produce, workers
from tests.kafka.reading import Reader, Record
from tests.unit.test_worker_transcribe import LABELS, cut, listener, sound

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

STREAMS, STEPS, PIECES, KILLS = 12, 1500, 80, 3


def expected(file: Path, records: Sequence[bytes]) -> list[bytes]:
    """What the head says of one stream alone, record after record, and of its end."""
    contract = read_contract(load_graph(file), "listener")
    head = make_head(contract, Beside(file.parent))
    memory = np.zeros((1, head.memory_bytes), np.uint8)
    state = np.zeros(len(LABELS), np.float32)
    at = np.zeros(1, np.int64)
    out: list[bytes] = []
    for record in [*records, None]:
        heard = []
        for x in np.frombuffer(record or b"", "<f4").reshape(-1, len(LABELS)):
            faded = state * np.float32(0.5)
            state = faded + x
            heard.append(state - faded)
        outputs = (np.array(heard, np.float32).reshape(-1, len(LABELS)),)
        finished = Finished(at, np.array([len(heard)]), [b"k"], at, at, None, outputs, np.array([record is None]))
        out += [value or b"" for value in head.answer(finished, memory).values]
    return out


def test_every_transcript_comes_once_whatever_dies(
    broker: Broker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    seed = new_seed()
    rng, cuts = random.Random(seed), np.random.default_rng(seed)
    topics = make_topics(broker.address, unique, 2)
    file = listener(tmp_path / "listener" / "1" / "model.onnx", beam=4, confidence=True, longest_s=4)
    streams = {b"stream-%d" % i: cut(sound(i, STEPS), cuts, PIECES) for i in range(STREAMS)}
    wanted = {key: expected(file, records) for key, records in streams.items()}
    total = sum(map(len, wanted.values()))
    rest: dict[bytes, list[bytes | None]] = {key: [*records, None] for key, records in streams.items()}
    sent = []
    while rest:
        key = rng.choice(list(rest))
        sent.append((key, rest[key].pop(0)))
        if not rest[key]:
            del rest[key]
    produce(topics.address, topics.input, sent)

    # Polls are small, so that every death finds streams in the middle of utterances.
    worker = topics.worker(file, max_steps=60)
    judged = Reader(topics.address, topics.output)
    with workers(worker):
        for kill in range(KILLS):
            enough = total * (kill + rng.random()) / (KILLS + 1)
            judged.until(lambda records, enough=enough: len(records) > enough, of=[worker])
            worker.kill()
            worker.start()
        judged.until(lambda records: len(records) >= total, of=[worker])
        worker.wait_ready().drained()
    got: dict[bytes | None, list[bytes]] = defaultdict(list)
    everything: Sequence[Record] = judged.rest()
    for record in everything:
        got[record.key].append(record.value or b"")
    judged.close()
    assert got == wanted
