"""Models that behave badly on purpose: one that fails on a value, one that is slow; and one that listens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.memory import fit_memory
from pipeline.contract import CodecSpec, Contract, HeadSpec, Output, State, StepInput
from pipeline.model_file import write_contract
from tests.models import rolling_hash

POISON = 666_666
"""The step that `fragile_hash` fails on, together with all that is run beside it."""

WIDE = 512


def fragile_hash(folder: Path) -> Path:
    """`rolling_hash`, but a step of POISON looks up row 1 of a table of one row: onnxruntime raises inside a call."""
    file = rolling_hash(folder, name="fragile-hash")
    model = onnx.load(str(file))
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["looked_up" if name == "x" else name for name in node.input]
    constants = {"poison": np.array(POISON), "table": np.zeros(1)}
    graph.initializer.extend(numpy_helper.from_array(a.astype(np.int64), name) for name, a in constants.items())
    nodes = [
        helper.make_node("Equal", ["x", "poison"], ["is_poison"]),
        helper.make_node("Cast", ["is_poison"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["nought"]),
        helper.make_node("Add", ["x", "nought"], ["looked_up"]),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(file))
    return file


def slow_tensor(folder: Path, products: int, seed: int = 0) -> Path:
    """Steps x float32 ``[T, B, 64]``, state h float32 ``[B, 1]`` that counts, output y float32 ``[T, B, 1]``.

    Each step is multiplied by a ``[512, 512]`` matrix ``products`` times over: 0.5 M multiplications each.
    """
    rng = np.random.default_rng(seed)
    orthogonal = np.linalg.qr(rng.standard_normal((WIDE, WIDE)))[0]  # keeps the numbers as large as they are
    constants = {
        "into": (rng.standard_normal((64, WIDE)) / 8).astype(np.float32),
        "mix": orthogonal.astype(np.float32),
        "out": (rng.standard_normal((WIDE, 1)) / 32).astype(np.float32),
        "one": np.array(1, np.float32),
    }
    n = helper.make_node
    nodes = [n("MatMul", ["x", "into"], ["z0"])]
    nodes += [n("MatMul", [f"z{i}", "mix"], [f"z{i + 1}"]) for i in range(products)]
    nodes += [
        n("MatMul", [f"z{products}", "out"], ["y"]),
        n("Add", ["h", "one"], ["h_next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slow_tensor",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", 64]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["B", 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", "B", 1]),
            helper.make_tensor_value_info("h_next", TensorProto.FLOAT, ["B", 1]),
        ],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    contract = Contract(
        name="slow-tensor",
        model_version="1",
        steps=(StepInput("x", "float32", (64,)),),
        states=(State("h", "h_next", "float32", (1, 1), 0),),
        outputs=(Output("y", "float32", (1,)),),
        codec=CodecSpec("tensor"),
        head=HeadSpec("tensor"),
        time_axis=0,
        batch_axis=1,
    )
    return _save(graph, contract, folder)


def loudness(folder: Path) -> Path:
    """Audio at 8 kHz in hops of 240 samples; output y float32 ``[T, B, 1]``, a hop's loudest sample; state h float32
    ``[B, 1]`` that stays as it is."""
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["x"], ["loud"]),
            helper.make_node("ReduceMax", ["loud"], ["y"], axes=[2], keepdims=1),
            helper.make_node("Identity", ["h"], ["h_next"]),
        ],
        "loudness",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", 240]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, ["B", 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", "B", 1]),
            helper.make_tensor_value_info("h_next", TensorProto.FLOAT, ["B", 1]),
        ],
    )
    contract = Contract(
        name="loudness",
        model_version="1",
        steps=(StepInput("x", "float32", (240,)),),
        states=(State("h", "h_next", "float32", (1, 1), 0),),
        outputs=(Output("y", "float32", (1,)),),
        codec=CodecSpec("audio", settings={"rate": 8000}),
        head=HeadSpec("tensor"),
        time_axis=0,
        batch_axis=1,
    )
    return _save(graph, contract, folder)


def _save(graph: onnx.GraphProto, contract: Contract, folder: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    write_contract(model, fit_memory(contract), contract.name)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    onnx.save(model, str(file))
    return file
