"""From what was found to a graph and a contract that serve: axes moved to where the contract has them.

The contract knows ``[T, B, ...]``, ``[B, T, ...]`` and ``[B, ...]``. A step input or output that is laid out otherwise
(channels before time, several elements a step along its time axis, no streams' axis at all) gets a Transpose or Reshape
at the graph's edge; states stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.adopt.file import Array, Port, every_graph
from export.adopt.lifting import Lifted
from export.adopt.pairing import Pairs
from export.adopt.runs import Bench
from export.adopt.sequence import Timing
from pipeline.contract import DTYPES, CodecSpec, Constant, Contract, HeadSpec, Output, State, StepInput


@dataclass(frozen=True)
class Place:
    """One step input or output as the file has it: ``shape`` of one step of one stream, and its axes there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    batch: int | None
    time: int | None
    """None where a call has one step."""
    free: tuple[int, ...] = ()
    """Axes that the file declares without a number."""

    @property
    def hop(self) -> int:
        return 1 if self.time is None else self.shape[self.time]

    @property
    def step_axes(self) -> list[int]:
        """Axes that are a step's own: neither streams nor time, but a hop of several elements."""
        return [i for i in range(len(self.shape)) if i != self.batch and (i != self.time or self.hop > 1)]

    @property
    def step_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in self.step_axes)

    def fits(self, layout: tuple[int | None, int]) -> bool:
        """Whether it is laid out so already."""
        return (self.time, self.batch) == layout and self.hop == 1


@dataclass(frozen=True)
class Plan:
    """What the contract is made of."""

    pairs: Pairs
    timing: Timing
    lifted: Lifted
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    layout: tuple[int | None, int]
    """Time axis and batch axis of the contract."""
    initial: Mapping[str, Array] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        """Whether one call takes several steps of a stream."""
        return self.layout[0] is not None


def plan(
    bench: Bench,
    pairs: Pairs,
    timing: Timing,
    lifted: Lifted,
    initial: Mapping[str, Array],
    headers: Mapping[str, str],
    given: Mapping[str, Array],
) -> Plan:
    """``headers``: stream constants; ``given``: values of constants that are known."""
    base = bench.run(bench.feed(np.random.default_rng(5)))
    steps = [n for n in bench.shapes if n not in pairs.states and n not in headers]
    timed = bool(timing.axes)

    def place(port: Port, shape: tuple[int, ...], batches: Mapping[str, int], times: Mapping[str, int]) -> Place:
        time = times.get(port.name) if timed else None
        if lifted.axes is not None:
            return Place(port.name, port.dtype, shape, batches[port.name], time, port.free)
        ones = [i for i, d in enumerate(shape) if d == 1 and i != time]
        first = ones[0] if ones and (ones[0] == 0 or (timed and ones[0] == 1)) else None
        return Place(port.name, port.dtype, shape, first, time, port.free)

    axes = lifted.axes
    ports = bench.file.inputs
    inputs = tuple(place(ports[n], bench.shapes[n], axes.inputs if axes else {}, timing.axes) for n in steps)
    shown = [p for o, p in bench.file.outputs.items() if o not in pairs.states.values()]
    outputs = tuple(place(p, base[p.name].shape, axes.outputs if axes else {}, timing.outputs) for p in shown)
    layout: tuple[int | None, int] = (None, 0)
    if timed:
        first = all(p.fits((0, 1)) for p in (*inputs, *outputs))
        layout = (0, 1) if first else (1, 0)
    return Plan(pairs, timing, lifted, inputs, outputs, layout, initial, given, headers)


def contract_of(bench: Bench, plan: Plan, name: str, version: str, codec: CodecSpec, head: HeadSpec) -> Contract:
    """The contract, memories of codec and head still to be filled in."""
    axes = plan.lifted.axes
    states = tuple(
        State(
            n,
            o,
            bench.file.inputs[n].dtype,
            bench.shapes[n],
            axes.inputs[n] if axes else None,
            _flat(plan.initial[n]) if n in plan.initial and plan.initial[n].any() else None,
        )
        for n, o in plan.pairs.states.items()
    )
    constants = [
        Constant(n, str(v.dtype), v.shape, _flat(v)) for n, v in plan.constants.items() if n not in plan.headers
    ]
    for n, header in plan.headers.items():
        value = _flat(plan.constants[n]) if n in plan.constants else ()
        axis = axes.inputs[n] if axes else None
        constants.append(Constant(n, bench.file.inputs[n].dtype, bench.shapes[n], value, header, axis))
    outputs = [Output(p.name, p.dtype, p.step_shape) for p in plan.outputs]
    outputs += [Output(name, s.dtype, shown) for name, s, shown in _shown_states(plan, states)]
    time_axis, batch_axis = plan.layout
    return Contract(
        name,
        version,
        tuple(StepInput(p.name, p.dtype, p.step_shape) for p in plan.inputs),
        states,
        tuple(outputs),
        codec,
        head,
        batch_axis,
        time_axis,
        "batched" if axes else "single",
        tuple(constants),
    )


def _flat(value: Array) -> tuple[float | int | bool, ...]:
    return tuple(value.reshape(-1).tolist())


def _shown_states(plan: Plan, states: Sequence[State]) -> list[tuple[str, State, tuple[int, ...]]]:
    """A model whose only outputs are its states shows them: as outputs of their own, ``[B, ...]``."""
    if plan.outputs:
        return []
    return [(f"{s.output}_shown", s, tuple(d for i, d in enumerate(s.shape) if i != s.batch_axis)) for s in states]


# ---- the graph


def build(plan: Plan, contract: Contract) -> onnx.ModelProto:
    """The graph that the contract describes, without metadata."""
    model = onnx.ModelProto()
    model.CopyFrom(plan.lifted.model)
    graph = model.graph
    edge = _Edge(graph)
    for one in plan.inputs:
        if not one.fits(plan.layout):
            edge.give(one, plan.layout)
    for one in plan.outputs:
        if not one.fits(plan.layout):
            edge.take(one, plan.layout)
    states = {s.input for s in contract.states}
    kept = [i for i in graph.initializer if i.name not in states]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, state, _ in _shown_states(plan, contract.states):
        edge.show(state, name)
    nodes = [*edge.before, *graph.node, *edge.after]
    del graph.node[:]
    graph.node.extend(nodes)
    _declare(model, contract, {p.name: p for p in plan.inputs if p.fits(plan.layout)})
    return model


class _Edge:
    """Nodes to put before and after the graph's own."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []

    def give(self, place: Place, layout: tuple[int | None, int]) -> None:
        """What the contract gives -> what the file takes."""
        inner = f"{place.name}.given"
        self._rename(place.name, inner)
        axes: list[int | str] = ["B", *place.step_axes]
        if layout[0] is not None:
            axes[0:1] = ["B", "T"] if layout[1] == 0 else ["T", "B"]
        chain = _Chain(self, self.before, place.name, axes)
        others = [i for i in range(len(place.shape)) if i not in (place.batch, place.time)]
        dims = [place.shape[i] for i in others]
        if place.time is None:
            if place.batch is None:
                chain.reshape([*dims], [*others])
            else:
                chain.relabel({"B": place.batch})
        else:
            chain.transpose(["B", "T", *([place.time] if place.hop > 1 else []), *others])
            if place.batch is None:
                chain.reshape([-1, *dims], [place.time, *others])
            elif place.hop > 1:
                chain.reshape([0, -1, *dims], [place.batch, place.time, *others])
            else:
                chain.relabel({"B": place.batch, "T": place.time})
        chain.transpose(sorted(chain.axes))
        chain.end(inner)

    def take(self, place: Place, layout: tuple[int | None, int]) -> None:
        """What the file gives -> what the contract shows."""
        inner = f"{place.name}.made"
        self._rename(place.name, inner)
        chain = _Chain(self, self.after, inner, list(range(len(place.shape))))
        others = [i for i in range(len(place.shape)) if i not in (place.batch, place.time)]
        dims = [place.shape[i] for i in others]
        lead = [] if place.batch is None else [place.batch]
        if place.time is None:
            chain.transpose([*lead, *others])
            if place.batch is None:
                chain.reshape([1, *dims], ["B", *others])
            else:
                chain.relabel({place.batch: "B"})
        else:
            chain.transpose([*lead, place.time, *others])
            if place.hop > 1:
                chain.reshape([0 if lead else 1, -1, place.hop, *dims], ["B", "T", place.time, *others])
            elif place.batch is None:
                chain.reshape([1, -1, *dims], ["B", "T", *others])
            else:
                chain.relabel({place.batch: "B", place.time: "T"})
            first = ["B", "T"] if layout[1] == 0 else ["T", "B"]
            chain.transpose([*first, *place.step_axes])
        chain.end(place.name)

    def show(self, state: State, name: str) -> None:
        chain = _Chain(self, self.after, state.output, list(range(len(state.shape))))
        rest = [i for i in range(len(state.shape)) if i != state.batch_axis]
        if state.batch_axis is None:
            chain.reshape([1, *state.shape], ["B", *rest])
        else:
            chain.transpose([state.batch_axis, *rest])
        chain.end(name)
        self.graph.output.append(onnx.ValueInfoProto(name=name))

    def constant(self, value: Sequence[int], name: str) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def _rename(self, name: str, inner: str) -> None:
        for graph in every_graph(self.graph):
            for node in graph.node:
                for values in (node.input, node.output):
                    for i, value in enumerate(values):
                        if value == name:
                            values[i] = inner
            if graph is not self.graph:
                for output in graph.output:
                    if output.name == name:
                        output.name = inner
            for info in graph.value_info:
                if info.name == name:
                    info.name = inner


class _Chain:
    """Nodes one after the other, and what each axis is by now."""

    def __init__(self, edge: _Edge, nodes: list[onnx.NodeProto], name: str, axes: list[int | str]) -> None:
        self.edge, self.nodes, self.name, self.axes = edge, nodes, name, axes
        self._stem, self._count = name, 0

    def transpose(self, axes: Sequence[int | str]) -> None:
        if list(axes) != self.axes:
            self._add("Transpose", [self.name], perm=[self.axes.index(a) for a in axes])
            self.axes = list(axes)

    def reshape(self, target: Sequence[int], axes: Sequence[int | str]) -> None:
        shape = self.edge.constant(target, f"{self._stem}.shape{self._count}")
        self._add("Reshape", [self.name, shape])
        self.axes = list(axes)

    def relabel(self, names: Mapping[int | str, int | str]) -> None:
        self.axes = [names.get(a, a) for a in self.axes]

    def end(self, name: str) -> None:
        self.nodes.append(helper.make_node("Identity", [self.name], [name]))

    def _add(self, op: str, inputs: list[str], **attributes: Any) -> None:
        self._count += 1
        name = f"{self._stem}.edge{self._count}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.name = name


def _declare(model: onnx.ModelProto, contract: Contract, plain: Mapping[str, Place]) -> None:
    """Inputs and outputs with the axes that the contract means, and only those that it names.

    ``plain``: step inputs that are the file's own. An axis that the file leaves open stays open: a branch that is not
    taken may not load with the number.
    """
    lead: list[str] = ["B"] if contract.time_axis is None else ["T", "B"] if contract.time_axis == 0 else ["B", "T"]
    shapes: dict[str, tuple[str, list[str | int]]] = {s.name: (s.dtype, [*lead, *s.shape]) for s in contract.steps}
    for name, place in plain.items():
        dtype, whole = shapes[name]
        own: list[str | int] = [f"{name}.{i}" if i in place.free else place.shape[i] for i in place.step_axes]
        shapes[name] = (dtype, [*whole[: len(lead)], *own])
    shapes |= {o.name: (o.dtype, [*lead, *o.shape]) for o in contract.outputs}
    for state in contract.states:
        dims: list[str | int] = ["B" if i == state.batch_axis else d for i, d in enumerate(state.shape)]
        shapes[state.input] = shapes[state.output] = (state.dtype, dims)
    for c in contract.constants:
        shapes[c.name] = (c.dtype, ["B" if c.header and i == c.batch_axis else d for i, d in enumerate(c.shape)])
    weights = {i.name for i in model.graph.initializer}
    for values in (model.graph.input, model.graph.output):
        kept = [v for v in values if v.name in shapes or v.name in weights]
        del values[:]
        for value in kept:
            if value.name in weights and value.name not in shapes:
                values.append(value)
                continue
            dtype, axes = shapes[value.name]
            values.append(helper.make_tensor_value_info(value.name, DTYPES[dtype], axes))
