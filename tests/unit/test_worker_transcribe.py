"""Transcripts over the whole road: records cut anywhere, answered several times or not at all, and a second worker."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.language_model import build
from export.memory import fit_memory
from pipeline.beside import Beside, entry
from pipeline.contract import CodecSpec, Contract, HeadSpec, Output, State, StepInput
from pipeline.model_file import write_contract
from pipeline.transport.memory import MemoryBroker
from tests.unit.test_worker import made, new_broker, partition_of, running, until

LABELS = ("", "a", "b", " ")
STREAMS = 9


def listener(file: Path, **settings: Any) -> Path:
    """A step is what was heard in it, the logits; the state takes part without changing them by more than rounding."""
    n = helper.make_node
    nodes = [n("Mul", ["h", "half"], ["faded"]), n("Add", ["faded", "x"], ["h2"]), n("Sub", ["h2", "faded"], ["y"])]
    info, width = helper.make_tensor_value_info, len(LABELS)
    graph = helper.make_graph(
        nodes,
        "listener",
        [info(name, TensorProto.FLOAT, ["B", width]) for name in ("x", "h")],
        [info(name, TensorProto.FLOAT, ["B", width]) for name in ("y", "h2")],
        [numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    lm = build(["ab ba", "aab", "b"], 3, alphabet="ab ")
    file.parent.mkdir(parents=True, exist_ok=True)
    lm.save(file.parent / "lm.bin")
    more = {"language_model": entry("lm.bin", lm.to_bytes()), "lm_weight": 0.3} if settings.get("beam", 1) > 1 else {}
    contract = Contract(
        "listener",
        "1",
        (StepInput("x", "float32", (width,)),),
        (State("h", "h2", "float32", (1, width), 0),),
        (Output("y", "float32", (width,)),),
        CodecSpec("tensor"),
        HeadSpec("transcribe", labels=LABELS, settings={"step_s": 0.1, "silence_s": 0.2, **settings, **more}),
        batch_axis=0,
        time_axis=None,
    )
    write_contract(model, fit_memory(contract, Beside(file.parent)))
    onnx.save(model, str(file))
    return file


def sound(seed: int, steps: int = 150) -> bytes:
    """Some steps are clear, some are not, and most are silent."""
    chance = np.random.default_rng(seed)
    logits = chance.integers(0, 6, (steps, len(LABELS)))
    logits[:, 0] += 6 * (chance.random(steps) < 0.6)
    return logits.astype("<f4").tobytes()


def cut(stream: bytes, rng: np.random.Generator, pieces: int) -> list[bytes]:
    step = 4 * len(LABELS)
    places = [0, *sorted(step * int(p) for p in rng.integers(0, len(stream) // step, pieces)), len(stream)]
    return [stream[a:b] for a, b in pairwise(places)]


def transcripts(broker: MemoryBroker) -> dict[bytes, list[dict[str, Any]]]:
    out: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
    for _, _, found in broker.records("out"):
        out[found.key].append(json.loads(found.value))
    return out


def done(broker: MemoryBroker) -> int:
    """Records whose answers are visible."""
    return sum(committed.offset for committed in broker.groups["g"].offsets.values())


@pytest.mark.parametrize("settings", [{}, {"beam": 4, "confidence": True}, {"longest_s": 1.5, "max_bytes": 16}])
async def test_a_stream_says_the_same_however_it_is_cut_and_whoever_goes_on(tmp_path, settings):
    """Finals of every cutting are equal, ends of streams among them; half of it is done by a second worker."""
    file = listener(tmp_path / "1" / "model.onnx", **settings)
    rng = np.random.default_rng(11)
    broker = new_broker()
    records = {b"%d.%d" % (i % 3, i): cut(sound(i % 3), rng, (1, 40, 7)[i // 3]) for i in range(STREAMS)}
    halves: list[list[tuple[bytes, bytes | None]]] = [[], []]
    for key, values in records.items():
        halves[0] += [(key, value) for value in values[: len(values) // 2]]
        halves[1] += [(key, value) for value in [*values[len(values) // 2 :], None]]
    sources: dict[bytes, list[int]] = defaultdict(list)
    sent = 0
    for name, half in zip(("w", "v"), halves):
        for key, value in half:
            sources[key].append(broker.produce("in", partition_of(key), key, value))
        sent += len(half)
        worker, _ = made(broker, file, worker_id=name, max_steps=64)
        async with running(worker) as task:
            await until(broker, task, lambda sent=sent: done(broker) == sent)
    said = transcripts(broker)
    assert said.keys() == records.keys()
    for sort in range(3):
        same = [[t for t in said[key] if t["final"]] for key in records if key.startswith(b"%d." % sort)]
        assert same[0] == same[1] == same[2]
        assert len(same[0]) > 5
        assert all(a["end_s"] <= b["start_s"] for a, b in pairwise(same[0]))
    for key, mine in sources.items():
        told = [
            int.from_bytes(dict(found.headers)["eddy-source"][4:], "big")
            for _, _, found in broker.records("out")
            if found.key == key
        ]
        assert told == sorted(told)
        assert set(told) <= set(mine)
        assert len(told) > len(set(told)) or len(mine) > 20, "one of a few long records is answered several times"


async def test_answers_are_those_of_their_records_where_one_has_several_and_another_none(tmp_path):
    """As many answers as records, in one poll of one partition."""
    file = listener(tmp_path / "1" / "model.onnx")
    broker = new_broker()
    heard = {"": 0, "a": 1, "b": 2}
    for record in (["a", "", "", "", "b"], [""], [""], ["", "a"]):
        logits = 9 * np.eye(len(LABELS), dtype="<f4")[[heard[label] for label in record]]
        broker.produce("in", 1, b"k", logits.tobytes())
    worker, _ = made(broker, file)
    async with running(worker) as task:
        await until(broker, task, lambda: done(broker) == 4)
    told = [
        (json.loads(found.value)["text"], int.from_bytes(dict(found.headers)["eddy-source"][4:], "big"))
        for _, _, found in broker.records("out")
    ]
    assert told == [("a", 0), ("b", 0), ("b", 2), ("a", 3)]
