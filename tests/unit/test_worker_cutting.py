"""One stream's bytes cut differently: the same answers at the same steps, and the same row, over the whole road."""

from __future__ import annotations

import shutil
from collections import defaultdict

import numpy as np
import pytest

from pipeline.codecs.tokenizer import Words
from pipeline.contract import CodecSpec, StepInput
from pipeline.streams.snapshots import HEADER
from tests.models import stepper
from tests.tokenizations import tokenizer_file, tokens_contract
from tests.unit.test_token_codec import whole
from tests.unit.test_worker import counted, made, new_broker, partition_of, running, until
from tests.waves import wav

CUTTINGS = 12
NOISE = np.random.default_rng(7).integers(-(2**15), 2**15, 2400).astype("<i2").tobytes()
TEXT = "héllo, wörld: 日本 😀 ".encode() * 9
WORDS = (TEXT + b"x" * 60 + TEXT)[:-2]
"""It ends inside a character, which is no token; and the word before it has nothing after it."""
TOKENS = sum(len(whole("byte-level", word)) for word in Words("whitespace", 24).of(WORDS.decode(errors="ignore")))
CASES: dict[str, tuple[bytes, StepInput, CodecSpec, int]] = {
    "text": (
        TEXT,
        StepInput("x", "int64"),
        CodecSpec("text", settings={"unit": "bytes"}),
        len(TEXT),
    ),
    "tokens of words cut at 24 bytes": (
        WORDS,
        StepInput("x", "int32"),
        tokens_contract("byte-level", flush="boundary", cut="whitespace", hold_bytes=24)[0].codec,
        TOKENS,
    ),
    "audio": (NOISE[:3001], StepInput("x", "int16", (40,)), CodecSpec("audio", settings={"rate": 16000}), 38),
    "audio as a file": (
        wav(NOISE, 44100, 2, size=0),
        StepInput("x", "int16", (16,)),
        CodecSpec("audio", settings={"rate": 8000, "overlap": 4}),
        19,
    ),
    "raw frames": (
        NOISE[:1000],
        StepInput("x", "uint8", (3, 4, 3)),
        CodecSpec("video", settings={"frames": "raw"}),
        27,
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_the_same_bytes_give_the_same_answers_and_the_same_row(tmp_path, case):
    stream, step, codec, steps = CASES[case]
    shutil.copy(tokenizer_file("byte-level"), tmp_path)
    file = stepper(tmp_path, step, codec)
    broker, rng = new_broker(), np.random.default_rng(len(case))
    records = []
    for i in range(CUTTINGS):
        size = len(stream) if i == 0 else max(1, len(stream) // 400) if i == 1 else None
        places = range(0, len(stream), size) if size else sorted(rng.integers(0, len(stream), rng.integers(1, 60)))
        cuts = [int(p) for p in places]
        records.append([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])])
    waiting = [i for i, cut in enumerate(records) for _ in cut]
    rng.shuffle(waiting)  # the streams' records come in any order among each other
    for i in waiting:
        broker.produce("in", partition_of(b"%d" % i), b"%d" % i, records[i].pop(0))
    worker, _ = made(broker, file, max_steps=50, snapshot_interval_ms=0)
    async with running(worker) as task:
        offsets = broker.groups["g"].offsets
        await until(broker, task, lambda: sum(c.offset for c in offsets.values()) == len(waiting))
        entries = [entry for _, _, entry in broker.records("g-in-changelog") if entry.value is not None]
        rows = {entry.key: entry.value[HEADER:] for entry in entries}
        for i in range(CUTTINGS):
            broker.produce("in", partition_of(b"%d" % i), b"%d" % i, None)
        await until(broker, task, lambda: sum(c.offset for c in offsets.values()) == len(waiting) + CUTTINGS)
    assert len(rows) == CUTTINGS
    assert len(set(rows.values())) == 1
    answers: dict[bytes, bytes] = defaultdict(bytes)
    for _, _, entry in broker.records("out"):
        answers[entry.key] += entry.value
    assert len(answers) == CUTTINGS
    assert len(set(answers.values())) == 1
    assert len(answers[b"0"]) == 8 * steps
    assert counted(broker, "in.dlq") == 0
