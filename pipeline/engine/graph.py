"""Graph surgery: a plain stateful graph becomes one that keeps its states in an arena.

The plain graph takes its states as inputs and gives them back as outputs. The wrapped one takes slots instead::

    row = Gather(arena, Where(fresh, INITIAL, slots))     # [B, row]; a new stream reads the initial row
    states = Split(row), each reshaped to its own batch axis
    ... the model ...
    arena' = ScatterND(arena, slots, Concat(states'))     # arena and arena' are bound to the same memory: in place

One arena per dtype. Slot 0 is scratch, slot 1 holds the initial row, streams begin at slot 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from pipeline.columns import AnyArray
from pipeline.contract import DTYPES, Contract, State
from pipeline.errors import ModelError

SLOTS, FRESH = "eddy.slots", "eddy.fresh"
SCRATCH, INITIAL, FIRST = 0, 1, 2
"""Slots: for padding; the initial row; the first that a stream can have."""
OPSET_LEAST = 11
"""The first with ScatterND. Older graphs are converted, which knows neither branches nor other domains."""
OPSET_SIZES = 13
"""The first whose Split takes its sizes as an input."""

ConstantMaker: TypeAlias = Callable[[str, AnyArray], str]
"""Adds an initialiser to the graph and returns its name."""


def arena_in(dtype: str) -> str:
    """Name of the arena's input."""
    return f"eddy.arena.{dtype}"


def arena_out(dtype: str) -> str:
    """Name of the arena's output."""
    return f"eddy.arena.{dtype}.next"


def wrap(model: onnx.ModelProto, contract: Contract, reads: Sequence[str]) -> onnx.ModelProto:
    """A copy of ``model`` over arenas, with only those outputs that are read. Raises ModelError."""
    model, opset = _at_least_opset(model)
    graph = model.graph
    states = {s.input for s in contract.states}
    constants = {c.name for c in contract.constants if c.header is None}
    kept_inputs = [v for v in graph.input if v.name not in states and v.name not in constants]
    kept_outputs = [v for v in graph.output if v.name in set(reads)]
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    inputs, outputs = [], []

    def constant(name: str, array: AnyArray) -> str:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    for c in contract.constants:
        if c.header is None:
            constant(c.name, c.array())
    if contract.states:
        inputs.append(helper.make_tensor_value_info(SLOTS, TensorProto.INT64, ["B"]))
        inputs.append(helper.make_tensor_value_info(FRESH, TensorProto.BOOL, ["B"]))
        before.append(
            helper.make_node("Where", [FRESH, constant("eddy.initial", np.array(INITIAL)), SLOTS], ["eddy.from"])
        )
        before.append(helper.make_node("Reshape", [SLOTS, constant("eddy.column", np.array([-1, 1]))], ["eddy.to"]))
    for dtype, group in contract.states_by_dtype().items():
        width = sum(s.size for s in group)
        shape: list[str | int | None] = ["slots", width]
        inputs.append(helper.make_tensor_value_info(arena_in(dtype), DTYPES[dtype], shape))
        outputs.append(helper.make_tensor_value_info(arena_out(dtype), DTYPES[dtype], shape))
        pieces = [f"eddy.row.{s.input}" for s in group]
        rows = pieces[0] if len(group) == 1 else f"eddy.rows.{dtype}"
        before.append(helper.make_node("Gather", [arena_in(dtype), "eddy.from"], [rows], axis=0))
        if len(group) > 1:
            before.append(_split(rows, pieces, [s.size for s in group], dtype, constant, opset))
        flat = []
        for state, piece in zip(group, pieces):
            before += _out_of_row(state, piece, constant)
            nodes, name = _into_row(state, constant)
            after += nodes
            flat.append(name)
        if not _carries(graph, group):
            flat.append(f"eddy.nothing.{dtype}")
            after.append(_nothing(rows, flat[-1], constant))
        update = flat[0] if len(flat) == 1 else f"eddy.update.{dtype}"
        if len(flat) > 1:
            after.append(helper.make_node("Concat", flat, [update], axis=1))
        after.append(helper.make_node("ScatterND", [arena_in(dtype), "eddy.to", update], [arena_out(dtype)]))

    nodes = [*before, *graph.node, *after]
    for field, values in (("node", nodes), ("input", kept_inputs + inputs), ("output", kept_outputs + outputs)):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(values)
    return model


def _carries(graph: onnx.GraphProto, group: Sequence[State]) -> bool:
    """Whether any of these states' outputs comes from any of their inputs: then the arena is read before it is written.

    A model whose state is the end of its last step says nothing of the order, and both names are the same memory.
    """
    reached = {s.input for s in group}
    for node in graph.node:
        if not reached.isdisjoint(_taken(node)):
            reached.update(node.output)
    return any(s.output in reached for s in group)


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, what its branches take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _taken(inner)
        yield from (o.name for o in attribute.g.output)


def _nothing(rows: str, name: str, constant: ConstantMaker) -> onnx.NodeProto:
    """``[B, 0]`` of the rows that were read: what is written with it is written after them."""
    ends = [constant(f"{name}.{part}", np.array([at])) for part, at in (("start", 0), ("end", 0), ("axis", 1))]
    return helper.make_node("Slice", [rows, *ends], [name])


def _split(
    rows: str, pieces: list[str], sizes: list[int], dtype: str, constant: ConstantMaker, opset: int
) -> onnx.NodeProto:
    if opset < OPSET_SIZES:
        return helper.make_node("Split", [rows], pieces, axis=1, split=sizes)
    return helper.make_node("Split", [rows, constant(f"eddy.sizes.{dtype}", np.array(sizes))], pieces, axis=1)


def _at_least_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy, and its opset."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= OPSET_LEAST:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy, opset
    try:
        return version_converter.convert_version(model, OPSET_LEAST), OPSET_LEAST
    except Exception as error:  # noqa: BLE001  # the converter raises RuntimeError, IndexError and its own
        raise ModelError(
            f"the model's opset is {opset}, Eddy needs {OPSET_LEAST}, and it cannot be converted ({error});"
            f" export it with opset {OPSET_LEAST} or newer"
        ) from None


def _leads(state: State) -> bool:
    """Whether moving the batch axis to the front is a mere reshape: nothing but ones stands before it."""
    return all(d == 1 for d in state.shape[: state.batch_axis])


def _out_of_row(state: State, piece: str, constant: ConstantMaker) -> list[onnx.NodeProto]:
    """``[B, size]`` -> the state's own shape."""
    target = list(state.shape)
    if state.batch_axis is not None:
        target[state.batch_axis] = -1
    if state.batch_axis is None or _leads(state):
        shape = constant(f"eddy.shape.{state.input}", np.array(target, np.int64))
        return [helper.make_node("Reshape", [piece, shape], [state.input])]
    rest = [d for i, d in enumerate(state.shape) if i != state.batch_axis]
    shape = constant(f"eddy.shape.{state.input}", np.array([-1, *rest]))
    front = f"eddy.front.{state.input}"
    back = list(range(1, len(state.shape)))
    back.insert(state.batch_axis, 0)
    return [
        helper.make_node("Reshape", [piece, shape], [front]),
        helper.make_node("Transpose", [front], [state.input], perm=back),
    ]


def _into_row(state: State, constant: ConstantMaker) -> tuple[list[onnx.NodeProto], str]:
    """The state's own shape -> ``[B, size]``."""
    flat = f"eddy.flat.{state.input}"
    shape = constant(f"eddy.flatten.{state.input}", np.array([-1, state.size]))
    if state.batch_axis is None or _leads(state):
        return [helper.make_node("Reshape", [state.output, shape], [flat])], flat
    front = f"eddy.next.{state.input}"
    perm = [state.batch_axis, *(i for i in range(len(state.shape)) if i != state.batch_axis)]
    return [
        helper.make_node("Transpose", [state.output], [front], perm=perm),
        helper.make_node("Reshape", [front, shape], [flat]),
    ], flat
