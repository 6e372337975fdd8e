"""Generated text through deaths: every stream's text is the one of an undisturbed run, piece after piece, once."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from services.broker import Broker
from tests.kafka.harness import Topics, make_topics, new_seed, produce, workers
from tests.kafka.reading import Reader, Record

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

MODEL = Path(__file__).parents[2] / "models" / "python-reference"
STREAMS, STEPS, SECOND_STEPS = 8, 2500, 100
Answer = tuple[bytes, int]
"""Key and offset of the prompt."""


def prompts(seed: int) -> list[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
    """Two for each stream; the second must wait until the first one's text is at its end."""
    rng = random.Random(seed)
    made = []
    for words, steps in (("The %s statement is used to", STEPS), ("\n\nIf %s is not given,", SECOND_STEPS)):
        for i in range(STREAMS):
            headers = [("eddy-max-steps", b"%d" % steps), ("eddy-seed", b"%d" % rng.getrandbits(64))]
            made.append((b"stream-%d" % i, (words % f"name{i}").encode(), headers))
    return made


def texts(outputs: Sequence[Record]) -> dict[Answer, str]:
    """Every answer whole. Its pieces must follow each other without a gap or a repetition, and end once."""
    pieces: dict[Answer, list[Record]] = defaultdict(list)
    order: dict[bytes, list[int]] = defaultdict(list)
    for record in outputs:
        assert record.key is not None
        pieces[record.key, record.source[1]].append(record)
        order[record.key].append(record.source[1])
    for key, offsets in order.items():
        assert offsets == sorted(offsets), f"{key!r}: the second prompt did not wait for the first one's end"
    whole = {}
    for answer, of_it in pieces.items():
        text = ""
        for record in of_it:
            assert int(record.header("eddy-step") or b"-1") == len(text), f"{answer}: a gap or a repetition"
            text += (record.value or b"").decode()
        assert [r.header("eddy-finish") for r in of_it] == [None] * (len(of_it) - 1) + [b"length"], answer
        whole[answer] = text
    return whole


def finished(records: Sequence[Record]) -> int:
    return sum(r.header("eddy-finish") is not None for r in records)


def serve(topics: Topics, seed: int, kills: int) -> tuple[dict[Answer, str], int]:
    """The texts, and in how many lives they were made."""
    assert MODEL.is_dir(), f"the shipped model is not there: {MODEL}"
    produce(topics.address, topics.input, prompts(seed))
    worker = topics.worker(MODEL)
    rng = random.Random(seed)
    judged = Reader(topics.address, topics.output)
    hit = 0
    with workers(worker):
        for _ in range(kills):
            already = sum(len(r.value or b"") for r in judged.records)
            more = already + STREAMS * STEPS * rng.uniform(0.1, 0.25)
            judged.until(lambda records, more=more: sum(len(r.value or b"") for r in records) > more, of=[worker])
            worker.kill()
            hit += finished(judged.rest()) < STREAMS
            worker.start()
        judged.until(lambda records: finished(records) == 2 * STREAMS, 120, of=[worker])
        if kills:
            assert worker.metrics()["eddy_restored_snapshots_total"] == STREAMS
            assert worker.metrics()["eddy_replayed_records_total"] == 0
        worker.drained()
    outputs = judged.rest()
    judged.close()
    return texts(outputs), hit


def test_texts_made_through_kills_are_those_of_an_undisturbed_run(broker: Broker, unique: Callable[[str], str]) -> None:
    seed = new_seed()
    undisturbed, _ = serve(make_topics(broker.address, unique, 2), seed, kills=0)
    disturbed, hit = serve(make_topics(broker.address, unique, 2), seed, kills=3)
    assert len(undisturbed) == 2 * STREAMS
    assert sorted(map(len, undisturbed.values())) == [SECOND_STEPS] * STREAMS + [STEPS] * STREAMS
    assert len(set(undisturbed.values())) == 2 * STREAMS
    print(
        f"{len(disturbed)} texts, {sum(map(len, disturbed.values()))} characters, {hit} of 3 kills while all generated"
    )
    assert hit == 3, "a kill came too late to be in the middle of anything"
    assert disturbed == undisturbed
