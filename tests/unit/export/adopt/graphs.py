"""Stateful graphs made by hand: what no package ships, and what lies about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}


class Maker:
    """Nodes, weights from one seed, and a file of them."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def give(self, name: str, dims: list[int | str], dtype: str = "float32") -> str:
        """An input of the graph, declared so."""
        self.inputs.append(helper.make_tensor_value_info(name, KINDS[dtype], dims))
        return name

    def show(self, name: str, dims: list[int | str], dtype: str = "float32") -> str:
        """An output of the graph, declared so."""
        self.outputs.append(helper.make_tensor_value_info(name, KINDS[dtype], dims))
        return name

    def op(
        self, kind: str, *inputs: str, out: str | None = None, outs: list[str] | None = None, **attributes: Any
    ) -> str:
        """A node; returns (the first of) its outputs."""
        self._count += 1
        names = outs or [out or f"v{self._count}"]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n{self._count}", **attributes))
        return names[0]

    def value(self, array: NDArray[Any] | float | list[int], dtype: str | None = None, name: str | None = None) -> str:
        self._count += 1
        name = name or f"w{self._count}"
        whole = np.asarray(array)
        if dtype is not None:
            whole = whole.astype(dtype)
        elif whole.dtype.kind in "iu":
            whole = whole.astype(np.int64)
        elif whole.dtype == np.float64:
            whole = whole.astype(np.float32)
        self.weights.append(numpy_helper.from_array(whole, name))
        return name

    def random(self, *shape: int, scale: float = 0.5, dtype: str = "float32") -> str:
        return self.value((self.rng.standard_normal(shape) * scale).astype(dtype))

    def linear(self, x: str, given: int, made: int, dtype: str = "float32") -> str:
        """``[..., given]`` -> ``[..., made]``."""
        return self.op(
            "Add", self.op("MatMul", x, self.random(given, made, dtype=dtype)), self.random(made, dtype=dtype)
        )

    def lstm(self, x: str, h: str, c: str, given: int, units: int, hn: str, cn: str, direction: str = "forward") -> str:
        """ONNX's own, ``[T, B, given]`` -> ``[T, D, B, units]``."""
        ways = 2 if direction == "bidirectional" else 1
        w, r, b = self.random(ways, 4 * units, given), self.random(ways, 4 * units, units), self.random(ways, 8 * units)
        y = f"y{self._count}"
        self.op("LSTM", x, w, r, b, "", h, c, outs=[y, hn, cn], hidden_size=units, direction=direction)
        return y

    def model(self, ir_version: int = 8) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "made", self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_version)
        onnx.checker.check_model(model)
        return model

    def save(self, folder: Path, name: str = "made", **settings: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.onnx"
        onnx.save(self.model(**settings), str(file))
        return file


def lstm(
    folder: Path,
    x: list[int | str],
    state: list[int | str],
    names: tuple[str, ...] = ("x", "h", "c", "y", "hn", "cn"),
    order: tuple[int, ...] = (0, 1, 2),
    direction: str = "forward",
    opset: int = 17,
) -> Path:
    """LSTM of 16 units over ``[T, B, 8]``, declared as ``x`` and ``state`` say; outputs in ``order``."""
    m = Maker(opset)
    ways = 2 if direction == "bidirectional" else 1
    m.give(names[0], x)
    m.give(names[1], state)
    m.give(names[2], state)
    y = m.lstm(names[0], names[1], names[2], 8, 16, names[4], names[5], direction)
    y = m.op("Transpose", y, perm=[0, 2, 1, 3])
    y = m.op("Reshape", y, m.value([0, 0, 16 * ways]))
    m.op("Add", m.op("MatMul", y, m.random(16 * ways, 4)), m.random(4), out=names[3])
    shown = [(names[3], ["t", "b", 4]), (names[4], state), (names[5], state)]
    for i in order:
        m.show(*shown[i])
    return m.save(folder)


def integrators(
    folder: Path, names: list[tuple[str, str]], order: list[int], dims: list[int | str] | None = None
) -> Path:
    """``s_k' = d_k s_k + (1 - d_k) tanh(W_k x)``, y from all of them: states of one shape, told apart by running."""
    m = Maker()
    m.give("x", ["b", 6])
    total = ""
    for k, (given, made) in enumerate(names):
        m.give(given, dims or ["b", 5])
        fresh = m.op("Tanh", m.linear("x", 6, 5))
        share = (k + 1) / (len(names) + 1)
        kept = m.op("Mul", given, m.value(share))
        m.op("Add", kept, m.op("Mul", fresh, m.value(1 - share)), out=made)
        term = m.linear(made, 5, 3)
        total = term if not total else m.op("Add", total, term)
    m.op("Identity", total, out="y")
    m.show("y", ["b", 3])
    for k in order:
        m.show(names[k][1], dims or ["b", 5])
    return m.save(folder)


def elman(
    folder: Path, names: tuple[str, str, str, str] = ("x", "h", "y", "hn"), width: int = 6, batch: int | str = "b"
) -> Path:
    """``h' = tanh(W x + U h)``, ``y = V h'``, in single operations; ``y`` has the width of ``x``."""
    x, h, y, hn = names
    m = Maker()
    m.give(x, [batch, width])
    m.give(h, [batch, 10])
    m.op("Tanh", m.op("Add", m.linear(x, width, 10), m.op("MatMul", h, m.random(10, 10))), out=hn)
    m.op("Add", m.op("MatMul", hn, m.random(10, width)), m.random(width), out=y)
    m.show(y, [batch, width])
    m.show(hn, [batch, 10])
    return m.save(folder)
