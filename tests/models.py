"""Models that tests and benchmarks serve: a hash that never forgets, and an LSTM over plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.memory import fit_memory
from pipeline.beside import Beside
from pipeline.contract import DTYPES, CodecSpec, Contract, HeadSpec, Output, State, StepInput
from pipeline.model_file import write_contract

if TYPE_CHECKING:
    from torch import nn

PRIME = 2**31 - 1
FACTOR = 48_271
"""A primitive root of PRIME: a step's trace comes back only after 2**31 - 2 further steps."""
GAIN = 1_103_515_245
OFFSET = 12_345
HASH_INITIAL = 7
LIMB = 256
HASH_MAX_STEPS = LIMB * LIMB
"""Longest time axis of one call: powers of FACTOR come from two tables of this many steps together."""


def rolling_hash_reference(steps: NDArray[np.int64], h: int = HASH_INITIAL) -> NDArray[np.int64]:
    """``h' = (h * FACTOR + x * GAIN + OFFSET) mod PRIME``, one after the other: int64 ``[T]`` -> int64 ``[T]``."""
    out = np.empty(len(steps), np.int64)
    for t, x in enumerate(steps.tolist()):
        h = (h * FACTOR + x * GAIN + OFFSET) % PRIME
        out[t] = h
    return out


def rolling_hash(folder: Path, *, time_axis: bool = True, name: str = "rolling-hash") -> Path:
    """Writes ``folder/model.onnx`` and returns it: steps x int64 ``[T, B]``, state h int64 ``[B, 1]``, output y = h'.

    Integers only, so every provider must give equal results; order and repetition of the steps change all that follows.

    Over time it needs no loop: with ``g[t] = h[t] / FACTOR**t`` (mod PRIME) the recurrence is a running sum,
    ``g[t] = g[t-1] + (x[t] * GAIN + OFFSET) / FACTOR**t``. Every product stays below 2**62, the sum below 2**47.
    """
    inverse = pow(FACTOR, -1, PRIME)
    constants = {
        "prime": np.array(PRIME),
        "gain": np.array(GAIN),
        "offset": np.array(OFFSET),
        "zero": np.array(0),
        "one": np.array(1),
        "limb": np.array(LIMB),
        "axis0": np.array([0]),
        "axis1": np.array([1]),
        "factor": np.array(FACTOR),
    }
    for table, base in (("up", FACTOR), ("down", inverse)):
        # Exponent e = 1 + t: low table FACTOR**(1 + t % LIMB), high table FACTOR**(LIMB * (t // LIMB)).
        constants[f"{table}_low"] = np.array([pow(base, 1 + i, PRIME) for i in range(LIMB)])
        constants[f"{table}_high"] = np.array([pow(base, LIMB * i, PRIME) for i in range(LIMB)])
    n = helper.make_node
    mixed = [
        n("Mod", ["x", "prime"], ["x_mod"]),
        n("Mul", ["x_mod", "gain"], ["x_gain"]),
        n("Add", ["x_gain", "offset"], ["x_offset"]),
        n("Mod", ["x_offset", "prime"], ["term"]),
    ]
    if time_axis:
        nodes = [
            *mixed,
            n("Shape", ["x"], ["steps_1d"], start=0, end=1),
            n("Squeeze", ["steps_1d", "axis0"], ["steps"]),
            n("Range", ["zero", "steps", "one"], ["t"]),
            n("Mod", ["t", "limb"], ["low"]),
            n("Div", ["t", "limb"], ["high"]),
        ]
        for table in ("up", "down"):
            nodes += [
                n("Gather", [f"{table}_low", "low"], [f"{table}_a"]),
                n("Gather", [f"{table}_high", "high"], [f"{table}_b"]),
                n("Mul", [f"{table}_a", f"{table}_b"], [f"{table}_ab"]),
                n("Mod", [f"{table}_ab", "prime"], [f"{table}_power"]),
                n("Unsqueeze", [f"{table}_power", "axis1"], [table]),
            ]
        nodes += [
            n("Mul", ["term", "down"], ["scaled"]),
            n("Mod", ["scaled", "prime"], ["scaled_mod"]),
            n("CumSum", ["scaled_mod", "zero"], ["summed"]),
            n("Transpose", ["h"], ["h_row"], perm=[1, 0]),
            n("Add", ["summed", "h_row"], ["g"]),
            n("Mod", ["g", "prime"], ["g_mod"]),
            n("Mul", ["g_mod", "up"], ["product"]),
            n("Mod", ["product", "prime"], ["y"]),
            n("Sub", ["steps", "one"], ["last"]),
            n("Gather", ["y", "last"], ["y_last"], axis=0),
            n("Unsqueeze", ["y_last", "axis1"], ["h_next"]),
        ]
        lead: list[str | int] = ["T", "B"]
    else:
        nodes = [
            *mixed,
            n("Squeeze", ["h", "axis1"], ["h_flat"]),
            n("Mul", ["h_flat", "factor"], ["h_factor"]),
            n("Add", ["h_factor", "term"], ["sum"]),
            n("Mod", ["sum", "prime"], ["y"]),
            n("Unsqueeze", ["y", "axis1"], ["h_next"]),
        ]
        lead = ["B"]
    used = {i for node in nodes for i in node.input}
    graph = helper.make_graph(
        nodes,
        "rolling_hash",
        [
            helper.make_tensor_value_info("x", TensorProto.INT64, lead),
            helper.make_tensor_value_info("h", TensorProto.INT64, ["B", 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.INT64, lead),
            helper.make_tensor_value_info("h_next", TensorProto.INT64, ["B", 1]),
        ],
        [numpy_helper.from_array(a.astype(np.int64), k) for k, a in constants.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Contract(
        name=name,
        model_version="1",
        steps=(StepInput("x", "int64", ()),),
        states=(State("h", "h_next", "int64", (1, 1), 0, (HASH_INITIAL,)),),
        outputs=(Output("y", "int64", ()),),
        codec=CodecSpec("tensor"),
        head=HeadSpec("tensor"),
        time_axis=0 if time_axis else None,
        batch_axis=1 if time_axis else 0,
    )
    write_contract(model, fit_memory(contract), name)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    onnx.save(model, str(file))
    return file


def stepper(folder: Path, step: StepInput, codec: CodecSpec) -> Path:
    """Writes ``folder/model.onnx``, for steps of any shape: h' = (31 h + x) mod PRIME, y = h', int64; x is the sum of
    the step's values, each times its place (1, 2, ...)."""
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
    constants = {"places": places, "axes": axes, "axis1": [1], "factor": 31, "prime": PRIME}
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
        codec,
        HeadSpec("tensor"),
        batch_axis=0,
        time_axis=None,
    )
    write_contract(model, fit_memory(contract, Beside(folder)))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    onnx.save(model, str(file))
    return file


def stepper_reference(steps: NDArray[Any], h: int = 0) -> list[int]:
    """What `stepper` makes of steps ``[T, *shape]``."""
    places = np.arange(1, steps[0].size + 1) if len(steps) else np.empty(0)
    out = []
    for step in steps:
        h = (31 * h + int((step.reshape(-1).astype(np.int64) * places).sum())) % PRIME
        out.append(h)
    return out


def lstm_module(seed: int = 0) -> nn.Module:
    """LSTM of 2 layers of 128 units, 64 floats in, 10 out, weights from ``seed``, eval mode: `lstm_tensor`'s."""
    import torch
    from torch import Tensor, nn

    class LstmTensor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(64, 128, 2)
            self.out = nn.Linear(128, 10)

        def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
            return torch.zeros(2, batch, 128), torch.zeros(2, batch, 128)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, (h, c) = self.lstm(x, (h, c))
            return self.out(y), h, c

    torch.manual_seed(seed)
    return LstmTensor().eval()


def lstm_tensor(folder: Path, *, seed: int = 0) -> Path:
    """Exports `lstm_module` to ``folder`` (``.../NAME/VERSION``) and returns ``folder/model.onnx``; needs torch.

    Steps x float32 ``[T, B, 64]``, states h and c float32 ``[2, B, 128]``, output y float32 ``[T, B, 10]``; codec and
    head ``tensor``.
    """
    from export import ExportOptions, export_module

    return export_module(lstm_module(seed), folder, "x:float32[64]", options=ExportOptions(output_names=["y"])).file
