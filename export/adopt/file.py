"""An ONNX file as it is found: what goes in, what comes out, and hints that its graph holds.

Nothing here is believed: declared dimensions say which sizes to try first, the graph's nodes say what to ask about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.adopt.verdict import Refused
from pipeline.contract import DTYPES, METADATA_KEY, RESERVED
from pipeline.model_file import load_graph

Array: TypeAlias = NDArray[Any]
Dims: TypeAlias = tuple[int | str, ...]
"""A declared shape; an axis without a number has its symbol, or ``?`` and its place where it has none."""

NAMES = {number: name for name, number in DTYPES.items()}
RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
SHAPELY = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split", "Concat")
"""They move values about, or change their type."""
DRAWS = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
WHOLE_SCALE = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
"""Their scale is taken over all that one call holds."""
COMPARES = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")


@dataclass(frozen=True)
class Port:
    """An input or output of the graph. ``default``: the initialiser of the same name, which an input overrides."""

    name: str
    dtype: str
    dims: Dims
    default: Array | None = None

    @property
    def free(self) -> tuple[int, ...]:
        """Axes that are declared without a number."""
        return tuple(i for i, d in enumerate(self.dims) if isinstance(d, str))

    def __str__(self) -> str:
        shown = ["?" if isinstance(d, str) and d.startswith("?") else str(d) for d in self.dims]
        return f"{self.name} {self.dtype}[{', '.join(shown)}]"


@dataclass
class File:
    """The graph with its ports, in its order.

    ``inputs`` must be given; ``optional`` ones have an initialiser of the same name: a weight, or a state's beginning.
    """

    path: Path
    model: onnx.ModelProto
    inputs: dict[str, Port] = field(default_factory=dict)
    optional: dict[str, Port] = field(default_factory=dict)
    outputs: dict[str, Port] = field(default_factory=dict)


def read_file(path: Path) -> File:
    """Raises ModelError for what is no ONNX model, Refused for what no stream of numbers could feed."""
    model = load_graph(path)
    if METADATA_KEY in [entry.key for entry in model.metadata_props]:
        raise Refused(f"{path} has a contract already: `eddy inspect` shows it, `eddy run` serves it")
    file = File(path, model)
    defaults = {i.name: i for i in model.graph.initializer}
    for value in model.graph.input:
        if value.name in defaults:
            file.optional[value.name] = _port(value, numpy_helper.to_array(defaults[value.name]))
        else:
            file.inputs[value.name] = _port(value, None)
    for value in model.graph.output:
        file.outputs[value.name] = _port(value, None)
    reserved = [n for n in [*file.inputs, *file.outputs] if n.startswith(RESERVED)]
    if reserved:
        raise Refused(f"the graph uses {reserved[0]!r}; names beginning with {RESERVED!r} are Eddy's own")
    if not file.inputs:
        raise Refused("the graph has no inputs: nothing could be streamed into it")
    return file


def _port(value: onnx.ValueInfoProto, default: Array | None) -> Port:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in NAMES:
        kind = "no tensor" if not value.type.HasField("tensor_type") else f"of type {tensor.elem_type}"
        raise Refused(f"{value.name} is {kind}: Eddy streams {', '.join(DTYPES)}")
    if default is not None:
        return Port(value.name, NAMES[tensor.elem_type], default.shape, default)
    if not tensor.HasField("shape"):
        raise Refused(f"{value.name} is declared without a rank: export it with its axes, named or numbered")
    dims: Dims = tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else (d.dim_param or f"?{value.name}.{i}")
        for i, d in enumerate(tensor.shape.dim)
    )
    return Port(value.name, NAMES[tensor.elem_type], dims)


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all that its branches and loops hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_graph(attribute.g)


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for one in every_graph(graph):
        yield from one.node


def ops(model: onnx.ModelProto, kinds: tuple[str, ...]) -> list[str]:
    """Those of ``kinds`` that the graph holds, its functions included."""
    found = {n.op_type for n in every_node(model.graph)}
    for function in model.functions:
        found |= {n.op_type for n in function.node}
    return [kind for kind in kinds if kind in found]


def opened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which nothing is declared of any size: only runs tell which ones it takes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for one in every_graph(copy.graph):
        del one.value_info[:]
        for value in one.output:
            if value.type.tensor_type.HasField("shape"):
                value.type.tensor_type.ClearField("shape")
    names = {i.name for i in copy.graph.initializer}
    for value in copy.graph.input:
        if value.name not in names:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
    return copy


def require(file: File, name: str) -> None:
    """An input with a default becomes one that must be given."""
    file.inputs[name] = file.optional.pop(name)
    kept = [i for i in file.model.graph.initializer if i.name != name]
    del file.model.graph.initializer[:]
    file.model.graph.initializer.extend(kept)


# ---- hints


def _aliases(graph: onnx.GraphProto, name: str) -> set[str]:
    """Everything that holds only this value, moved about."""
    held = {name}
    for one in every_graph(graph):
        for node in one.node:
            if node.op_type in SHAPELY and node.op_type != "Concat" and node.input and node.input[0] in held:
                held.update(node.output)
    return held


def compared_with(model: onnx.ModelProto, name: str) -> list[float]:
    """Numbers that the graph compares an input with: values that it was meant to take."""
    held = _aliases(model.graph, name)
    numbers: dict[str, Array] = {}
    for one in every_graph(model.graph):
        numbers |= {i.name: numpy_helper.to_array(i) for i in one.initializer if int(np.prod(i.dims)) == 1}
        for node in one.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                numbers[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Constant" and node.attribute[0].name in ("value_int", "value_float"):
                numbers[node.output[0]] = np.array(onnx.helper.get_attribute_value(node.attribute[0]))
            elif node.op_type in ("Cast", "Identity") and node.input[0] in numbers:
                numbers[node.output[0]] = numbers[node.input[0]]
    found: list[float] = []
    for node in every_node(model.graph):
        if node.op_type in COMPARES and any(i in held for i in node.input):
            found += [float(numbers[i].reshape(-1)[0]) for i in node.input if i in numbers and numbers[i].size == 1]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Carrier:
    """A recurrent node's initial and last states, as places ``(node, which)``: the same place is the same state."""

    begins: dict[str, set[tuple[int, int]]]
    """Input of the graph -> initial states that it is."""
    ends: dict[str, set[tuple[int, int]]]
    """Output of the graph -> last states that it holds."""
    backwards: set[int]
    """Nodes that run backwards over their sequence, too or only."""


def carriers(model: onnx.ModelProto) -> Carrier:
    """Follows values through nodes that only move them, from the inputs to recurrent nodes and on to the outputs."""
    trace = _Trace()
    for value in model.graph.input:
        trace.held[value.name] = {value.name}
    trace.walk(model.graph)
    inputs, outputs = ([v.name for v in values] for values in (model.graph.input, model.graph.output))
    return Carrier(
        {i: trace.begins.get(i, set()) for i in inputs},
        {o: trace.last.get(o, set()) for o in outputs},
        trace.backwards,
    )


class _Trace:
    """By name of a value: the inputs that it is moved from, the last states that it is moved from."""

    def __init__(self) -> None:
        self.held: dict[str, set[str]] = {}
        self.last: dict[str, set[tuple[int, int]]] = {}
        self.begins: dict[str, set[tuple[int, int]]] = {}
        self.backwards: set[int] = set()
        self._nodes = 0

    def walk(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            self._nodes += 1
            if node.op_type in RECURRENT:
                self._recurrent(node)
            elif node.op_type in SHAPELY:
                origins = node.input if node.op_type == "Concat" else node.input[:1]
                for name in node.output:
                    self._move(origins, name)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    self.walk(attribute.g)
                    if node.op_type == "If":
                        for inner, outer in zip(attribute.g.output, node.output):
                            self._move([inner.name], outer)

    def _move(self, origins: Sequence[str], name: str) -> None:
        for origin in origins:
            self.held.setdefault(name, set()).update(self.held.get(origin, ()))
            self.last.setdefault(name, set()).update(self.last.get(origin, ()))

    def _recurrent(self, node: onnx.NodeProto) -> None:
        for which in range(2 if node.op_type.endswith("LSTM") else 1):
            if 5 + which < len(node.input):
                for origin in self.held.get(node.input[5 + which], ()):
                    self.begins.setdefault(origin, set()).add((self._nodes, which))
            if which + 1 < len(node.output) and node.output[which + 1]:
                self.last[node.output[which + 1]] = {(self._nodes, which)}
        if any(a.name == "direction" and a.s in (b"bidirectional", b"reverse") for a in node.attribute):
            self.backwards.add(self._nodes)
