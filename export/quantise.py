"""Smaller files: weights stored in 16 or 8 bits, computed with in float32.

Only weights. An activation quantised at run time takes its scale from the whole batch, and then a stream's result
depends on its neighbours: that is never done here. A stored weight becomes float32 again by two nodes of plain ONNX
(``Cast``, ``Mul``) over constants, which onnxruntime computes once, when it loads the graph: a step costs what it did,
and the graph needs no special kernels.

- ``float16``: the nearest half. What is too large for it stays as it was.
- ``int8``: ``w = scale * q``, q from -127 to 127, symmetric, one scale for each slice along the axes that fit the
  weight best. A vector (a bias), and a weight that 8 bits would change by more than ``ERROR_MAX``, is stored in 16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.arguments import PRECISIONS
from pipeline.errors import ConfigError

Array: TypeAlias = NDArray[Any]
ELEMENTS_MIN = 512
"""Smaller weights (biases, gains) stay as they are: they cost nothing, and the result hangs on them."""
SCALES_MAX = 1 / 16
"""Scales for an element, at the most: they are stored, too."""
ERROR_MAX = 0.02
"""Root mean square of what int8 changes, as a share of the weight's own."""
LEVELS = 127
HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Stored:
    """How one weight is kept. ``error``: root mean square of its change, as a share of its own."""

    name: str
    precision: str
    error: float


def store_weights(
    model: onnx.ModelProto, precision: str, keep: Collection[str] = ()
) -> tuple[onnx.ModelProto, tuple[Stored, ...]]:
    """A copy of ``model`` whose float32 weights are stored in ``precision``, and what became of each.

    Those named in ``keep`` stay. Raises ConfigError for a precision that there is not.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    small = onnx.ModelProto()
    small.CopyFrom(model)
    if precision == "float32":
        return small, ()
    graph, said, nodes = small.graph, [], []
    weights = [w for w in graph.initializer if _is_weight(w) and w.name not in keep]
    for weight in weights:
        values = numpy_helper.to_array(weight)
        packed = _in_int8(values) if precision == "int8" else None
        if packed is not None and packed.error > ERROR_MAX:
            packed = None
        packed = packed or _in_half(values)
        if packed is None:
            continue
        said.append(Stored(weight.name, packed.stored.dtype.name, packed.error))
        graph.initializer.remove(weight)
        nodes += _unpacking(graph, weight.name, packed)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    return small, tuple(said)


def restored(model: onnx.ModelProto) -> dict[str, Array]:
    """The float32 weights that ``store_weights`` packed, as a run computes with them, by name."""
    given = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    found: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in given and node.name.startswith(_NODE):
            found[node.output[0]] = given[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and node.name.startswith(_NODE):
            found[node.output[0]] = found.pop(node.input[0]) * given[node.input[1]]
    return found


def with_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy with these constants in place of those of their names."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return changed


_NODE = "stored:"
"""Nodes and constants that unpack begin with it."""


@dataclass(frozen=True)
class _Packed:
    stored: Array
    scale: Array | None
    error: float


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims, dtype=np.int64)) >= ELEMENTS_MIN


def _in_half(values: Array) -> _Packed | None:
    if not np.isfinite(values).all() or np.abs(values).max() > HALF_MAX:
        return None
    stored = values.astype(np.float16)
    return _Packed(stored, None, _error(values, stored.astype(np.float32)))


def _in_int8(values: Array) -> _Packed | None:
    """The best of all ways to share scales; None where no way is small enough, for vectors, and what is not finite."""
    if sum(d > 1 for d in values.shape) < 2 or not np.isfinite(values).all():
        return None
    best: _Packed | None = None
    for axes in _shared(values.ndim):
        top = np.abs(values).max(axis=axes, keepdims=True)
        if top.size > values.size * SCALES_MAX:
            continue
        scale = np.where(top > 0, top / LEVELS, 1.0).astype(np.float32)
        stored = np.clip(np.rint(values / scale), -LEVELS, LEVELS).astype(np.int8)
        error = _error(values, stored.astype(np.float32) * scale)
        if best is None or error < best.error:
            best = _Packed(stored, scale, error)
    return best


def _shared(dimensions: int) -> Iterator[tuple[int, ...]]:
    """Axes along which a scale is shared: every choice of at least one."""
    for n in range(1, dimensions + 1):
        yield from combinations(range(dimensions), n)


def _error(values: Array, again: Array) -> float:
    whole = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    return float(np.sqrt(np.square(values - again, dtype=np.float64).mean())) / whole if whole else 0.0


def _unpacking(graph: onnx.GraphProto, name: str, packed: _Packed) -> list[onnx.NodeProto]:
    """Adds the packed constants to the graph -> the nodes that make ``name`` of them."""
    stored = f"{_NODE}{name}"
    graph.initializer.append(numpy_helper.from_array(packed.stored, stored))
    if packed.scale is None:
        return [helper.make_node("Cast", [stored], [name], f"{stored}:cast", to=TensorProto.FLOAT)]
    graph.initializer.append(numpy_helper.from_array(packed.scale, f"{stored}:scale"))
    return [
        helper.make_node("Cast", [stored], [f"{stored}:values"], f"{stored}:cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{stored}:values", f"{stored}:scale"], [name], f"{stored}:mul"),
    ]
