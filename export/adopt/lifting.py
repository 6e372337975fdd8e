"""A batch of one that was baked in, lifted where a run proves that streams then stay apart.

Three graphs are tried, the least changed first: the file's own (*batched*), the same with no sizes declared
(*relaxed*), and that with constant shapes of Reshape nodes rewritten so that the streams' axis is free, and recurrent
nodes left to begin with zeros of their own (*rewritten*).
What none of them does is served one stream at a time (*single*), and the reason is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from export.adopt.batch import Axes, Batches, Failure
from export.adopt.file import RECURRENT, WHOLE_SCALE, Array, every_graph, every_node, opened, ops
from export.adopt.runs import Session
from export.adopt.verdict import Fails

REWRITES = 120
"""Graphs tried at most, for each choice of axes."""
CHOICES = 2
"""Choices of axes that are tried with rewritten graphs."""


@dataclass(frozen=True)
class Lifted:
    """``batching``: batched, relaxed, rewritten or single; ``axes`` is None where it is single."""

    batching: str
    model: onnx.ModelProto
    axes: Axes | None
    reason: str = ""


def lift(batches: Batches, allowed: bool = True) -> Lifted:
    """``allowed`` False: the user wants one stream at a time."""
    model = batches.bench.file.model
    if not allowed:
        return Lifted("single", model, None, "asked for")
    failure = Failure()
    for batching, graph in (("batched", model), ("relaxed", opened(model))):
        if not failure.differs:
            failure = Failure()  # what the graph says is more than that its declared sizes are not met
        try:
            session = Session(graph)
        except Fails as fails:
            failure.note(str(fails), False)
            continue
        axes = batches.find(session, failure)
        if axes is not None:
            return Lifted(batching, graph, axes)
    scales = ops(model, WHOLE_SCALE)
    if failure.differs and scales:
        return Lifted(
            "single", model, None, f"{failure.reason}: {scales[0]} takes its scale over all streams of a call"
        )
    for choice in list(batches.choices())[:CHOICES]:
        found = _rewritten(batches, choice)
        if found is not None:
            return found
    for name in batches.streamed:
        if not batches.able(name):
            beside = " beside its time axis" if name in batches.timing.axes else ""
            failure = Failure(f"{name} {list(batches.bench.shapes[name])} has no axis for streams{beside}")
    return Lifted("single", model, None, failure.reason)


# ---- Reshape


@dataclass
class _Shape:
    """A Reshape whose target is constant. ``given`` and ``gave``: its shapes at one stream."""

    name: str
    target: Array
    given: tuple[int, ...] | None = None
    gave: tuple[int, ...] | None = None

    def variants(self) -> Iterator[Array]:
        """Targets with a free streams' axis, the likeliest first."""
        gave = self.gave if self.gave is not None else tuple(self.target.tolist())
        ones = [i for i, d in enumerate(gave) if d == 1]
        for i in ones:
            if self.given is not None and i < len(self.given) and self.given[i] == 1 and self.target[i] == 1:
                yield self._with(i, 0)  # the same place of what goes in: what is -1 may stay so
        if any(d < 0 for d in gave):
            return
        for i in [*ones, *(i for i, d in enumerate(gave) if d != 1)]:
            free = np.array(gave, np.int64)
            free[i] = -1
            yield free

    def _with(self, place: int, value: int) -> Array:
        target = self.target.copy()
        target[place] = value
        return target


class _Rewriter:
    """Reshape nodes by name, and graphs with other targets for some of them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.model = opened(batches.bench.file.model)
        for number, node in enumerate(every_node(self.model.graph)):
            node.name = f"node{number}"
        self._known = self._constants()
        self._begin_with_nothing()
        self.shapes = self._constant_shapes()
        self._observe()

    def _constants(self) -> dict[str, Array]:
        known: dict[str, Array] = {}
        for graph in every_graph(self.model.graph):
            known |= {i.name: numpy_helper.to_array(i) for i in graph.initializer}
            for node in graph.node:
                if node.op_type == "Constant" and node.attribute[0].name == "value":
                    known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
                elif node.op_type == "Constant" and node.attribute[0].name == "value_ints":
                    known[node.output[0]] = np.array(node.attribute[0].ints, np.int64)
        return known

    def _begin_with_nothing(self) -> None:
        """A recurrent node that begins with constant zeros begins so by itself, for any number of streams."""
        for node in every_node(self.model.graph):
            if node.op_type in RECURRENT:
                for i in range(5, min(7, len(node.input))):
                    zeros = self._known.get(node.input[i])
                    if zeros is not None and not zeros.any():
                        node.input[i] = ""

    def _constant_shapes(self) -> dict[str, _Shape]:
        known = self._known
        return {
            n.name: _Shape(n.name, np.asarray(known[n.input[1]], np.int64))
            for n in every_node(self.model.graph)
            if n.op_type == "Reshape" and len(n.input) > 1 and n.input[1] in known and known[n.input[1]].ndim == 1
        }

    def _observe(self) -> None:
        """Shapes of the outer graph's Reshape nodes at one stream."""
        probe = onnx.ModelProto()
        probe.CopyFrom(self.model)
        nodes = [n for n in probe.graph.node if n.name in self.shapes]
        wanted = {name for n in nodes for name in (n.input[0], n.output[0])}
        there = {v.name for v in [*probe.graph.output, *probe.graph.input, *probe.graph.initializer]}
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - there))
        feed = self.batches.alone.feeds[0]
        try:
            found = Session(probe, optimise=False).run(feed)
        except Fails:
            return
        for node in nodes:
            given, gave = found.get(node.input[0]), found.get(node.output[0])
            shape = self.shapes[node.name]
            shape.given = (
                given.shape if given is not None else feed[node.input[0]].shape if node.input[0] in feed else None
            )
            shape.gave = gave.shape if gave is not None else None

    def graph(self, targets: dict[str, Array]) -> onnx.ModelProto:
        """A copy in which these nodes have these targets, and names as in the file."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        for graph in every_graph(copy.graph):
            for node in graph.node:
                if node.name in targets:
                    name = f"{node.output[0]}.target"
                    graph.initializer.append(numpy_helper.from_array(targets[node.name], name))
                    node.input[1] = name
                    for attribute in list(node.attribute):
                        if attribute.name == "allowzero":
                            node.attribute.remove(attribute)
        return copy


def _rewritten(batches: Batches, choice: dict[str, int]) -> Lifted | None:
    """Rewrites the node that fails, again and again, and goes back where that leads nowhere."""
    rewriter = _Rewriter(batches)
    waiting: list[dict[str, Array]] = [{}]
    seen: set[str] = set()
    for _ in range(REWRITES):
        if not waiting:
            return None
        targets = waiting.pop()
        model = rewriter.graph(targets)
        failure = Failure()
        try:
            axes = batches.attempt(Session(model, optimise=False), choice, failure)
        except Fails as fails:
            failure.note(str(fails), False)
            axes = None
        if axes is not None:
            return Lifted("rewritten", model, axes)
        where = re.search(r"Name:'(node\d+)'", failure.reason)
        failed = where[1] if where else None
        if failed in rewriter.shapes and failed not in targets:
            suspects = [failed]
        else:
            limit = int(failed[4:]) if failed else len(rewriter.shapes) + 10**6
            suspects = [n for n in rewriter.shapes if n not in targets and int(n[4:]) < limit]
        for name in suspects:
            for variant in reversed(list(rewriter.shapes[name].variants())):
                more = {**targets, name: variant}
                key = str(sorted((k, v.tolist()) for k, v in more.items()))
                if key not in seen:
                    seen.add(key)
                    waiting.append(more)
    return None
