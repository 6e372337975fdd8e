"""One stream's bytes cut differently: the same answers at the same steps, and the same row, over the whole road."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.memory import fit_memory
from pipeline.contract import DTYPES, CodecSpec, Contract, HeadSpec, Output, State, StepInput
from pipeline.model_file import write_contract
from tests.unit.test_worker import counted, made, new_broker, partition_of, running, until
from tests.waves import wav

CUTTINGS = 12
NOISE = np.random.default_rng(7).integers(-(2**15), 2**15, 2400).astype("<i2").tobytes()
CASES: dict[str, tuple[bytes, StepInput, dict[str, Any]]] = {
    "text": ("héllo, wörld: 日本 😀 ".encode() * 9, StepInput("x", "int64"), {"kind": "text", "unit": "bytes"}),
    "audio": (NOISE[:3001], StepInput("x", "int16", (40,)), {"kind": "audio", "rate": 16000}),
    "audio as a file": (
        wav(NOISE, 44100, 2, size=0),
        StepInput("x", "int16", (16,)),
        {"kind": "audio", "rate": 8000, "overlap": 4},
    ),
    "raw frames": (NOISE[:1000], StepInput("x", "uint8", (3, 4, 3)), {"kind": "video", "frames": "raw"}),
}


def stepper(file: Path, step: StepInput, codec: dict[str, Any]) -> Path:
    """h' = (31 h + sum of the step's values, each times its place) mod a prime, y = h'."""
    n = helper.make_node
    places = np.arange(1, int(np.prod(step.shape, dtype=np.int64)) + 1).reshape(step.shape)
    axes = list(range(1, len(step.shape) + 1))
    nodes = [
        n("Cast", ["x"], ["wide"], to=TensorProto.INT64),
        n("Mul", ["wide", "places"], ["weighed"]),
        n("ReduceSum", ["weighed", "axes"], ["sum"], keepdims=0, noop_with_empty_axes=1),
        n("Squeeze", ["h", "axis1"], ["h_flat"]),
        n("Mul", ["h_flat", "factor"], ["a"]),
        n("Add", ["a", "sum"], ["b"]),
        n("Mod", ["b", "prime"], ["y"]),
        n("Unsqueeze", ["y", "axis1"], ["h2"]),
    ]
    constants = {"places": places, "axes": axes, "axis1": [1], "factor": 31, "prime": 2**31 - 1}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "stepper",
        [info("x", DTYPES[step.dtype], ["B", *step.shape]), info("h", TensorProto.INT64, ["B", 1])],
        [info("y", TensorProto.INT64, ["B"]), info("h2", TensorProto.INT64, ["B", 1])],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Contract(
        "stepper",
        "1",
        (step,),
        (State("h", "h2", "int64", (1, 1), 0),),
        (Output("y", "int64", ()),),
        CodecSpec(codec["kind"], settings={k: v for k, v in codec.items() if k != "kind"}),
        HeadSpec("tensor"),
        batch_axis=0,
        time_axis=None,
    )
    write_contract(model, fit_memory(contract))
    onnx.save(model, str(file))
    return file


@pytest.mark.parametrize("case", CASES)
async def test_the_same_bytes_give_the_same_answers_and_the_same_row(tmp_path, case):
    stream, step, codec = CASES[case]
    file = stepper(tmp_path / "model.onnx", step, codec)
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
    worker, _ = made(broker, file, max_steps=50)
    async with running(worker) as task:
        offsets = broker.groups["g"].offsets
        await until(broker, task, lambda: sum(c.offset for c in offsets.values()) == len(waiting))
    answers: dict[bytes, bytes] = defaultdict(bytes)
    for _, _, entry in broker.records("out"):
        answers[entry.key] += entry.value
    assert len(answers) == CUTTINGS
    assert len(next(iter(answers.values()))) >= 8 * 10, "the stream has steps"
    assert len(set(answers.values())) == 1
    rows = {entry.key: entry.value[24:] for _, _, entry in broker.records("g-in-changelog")}
    assert len(rows) == CUTTINGS
    assert len(set(rows.values())) == 1
    assert counted(broker, "in.dlq") == 0
