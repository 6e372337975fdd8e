"""A probed module as an ONNX graph that keeps the contract: inputs and outputs by name, T and B free, no branches.

The tracing exporter is used on purpose: it turns torch's recurrent layers into ONNX's own LSTM, GRU and RNN nodes,
which onnxruntime runs whole. What tracing freezes by mistake (a Python loop over the steps, a batch size), the proof
finds.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from torch import Tensor, nn

from export.probe import BATCH, STEPS, Layout, Subject, first_line, split
from pipeline.contract import DTYPES, Contract
from pipeline.errors import ModelError

OPSET = 17
FORBIDDEN = ("If", "Loop", "Scan")
"""They hide their work from the loader and from quantisation, and run node by node."""


class _Flat(nn.Module):
    """The module as the graph has it: step inputs and states in one row, outputs and states in another."""

    def __init__(self, of: Subject, layout: Layout) -> None:
        super().__init__()
        self.module = of.module
        self.inputs, self.states, self.layout = len(of.steps), len(of.states), layout

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
        steps, states = flat[: self.inputs], flat[self.inputs :]
        axis = self.layout.time_axis
        if self.layout.stepwise and axis is not None:
            steps = tuple(s.unsqueeze(axis) for s in steps)
        outputs, after = split(self.module(steps[0] if self.inputs == 1 else steps, *states), self.states)
        if self.layout.stepwise and axis is not None:
            outputs = tuple(o.squeeze(axis) for o in outputs)
        return (*outputs, *after)


@dataclass(frozen=True)
class Traced:
    """A graph, and where in the user's code a value became a Python number or branch: ``file:line``."""

    model: onnx.ModelProto
    frozen: tuple[str, ...]


def to_onnx(of: Subject, layout: Layout, contract: Contract) -> Traced:
    """The graph, without metadata. Raises ModelError for what torch cannot export and for nodes that are refused."""
    samples = of.sample(STEPS if layout.many else 1, BATCH, 4)
    steps = [layout.give(s) if layout.many else s[0] for s in samples]
    inputs = [s.name for s in contract.steps] + [s.input for s in contract.states]
    outputs = [o.name for o in contract.outputs] + [s.output for s in contract.states]
    lead = {contract.batch_axis: "B"} | ({} if contract.time_axis is None else {contract.time_axis: "T"})
    axes = dict.fromkeys([s.name for s in contract.steps] + [o.name for o in contract.outputs], lead)
    axes |= {name: {s.batch_axis or 0: "B"} for s in contract.states for name in (s.input, s.output)}
    try:
        with TemporaryDirectory() as folder, _quiet() as frozen, _no_stdout(), torch.no_grad():
            file = str(Path(folder) / "model.onnx")
            torch.onnx.export(
                _Flat(of, layout).eval(),
                (*steps, *of.initial(BATCH)),
                file,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
            model = onnx.load(file)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the exporter raises its own, torch's and plain errors
        raise ModelError(f"torch cannot export the module to ONNX opset {OPSET}: {first_line(error)}") from None
    given = {v.name for v in model.graph.input}
    for name in inputs:
        if name not in given:
            raise ModelError(f"forward makes no use of its input {name}: leave it out")
    refuse_branches(model.graph)
    _tidy(model, contract, axes)
    return Traced(model, tuple(dict.fromkeys(frozen)))


def refuse_branches(graph: onnx.GraphProto) -> None:
    """Raises ModelError naming the first node that branches or loops."""
    for node in graph.node:
        if node.op_type in FORBIDDEN:
            raise ModelError(
                f"the graph has a node {node.op_type} ({node.name}): forward branches on values or loops in"
                " TorchScript; write it with tensor operations (torch.where), or as one step"
            )


def _tidy(model: onnx.ModelProto, contract: Contract, axes: dict[str, dict[int, str]]) -> None:
    """Names the axes of inputs and outputs as the contract means them; the tracer invents names or omits shapes."""
    lead = [""] * (1 if contract.time_axis is None else 2)
    shapes: dict[str, tuple[str, Sequence[int | str]]] = {}
    shapes |= {s.name: (s.dtype, [*lead, *s.shape]) for s in contract.steps}
    shapes |= {o.name: (o.dtype, [*lead, *o.shape]) for o in contract.outputs}
    for state in contract.states:
        shapes[state.input] = shapes[state.output] = (state.dtype, state.shape)
    for values in (model.graph.input, model.graph.output):
        for value in values:
            if value.name not in shapes:
                continue
            dtype, dims = shapes[value.name]
            named = [axes[value.name].get(i, d) for i, d in enumerate(dims)]
            if value.type.tensor_type.elem_type == DTYPES[dtype]:
                value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, DTYPES[dtype], named))
    model.graph.name = contract.name
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Of all that tracing warns of, keeps where the user's own code froze a value; the proof judges if it matters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    frozen: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger.setLevel(logging.ERROR)
        try:
            yield frozen
        finally:
            logger.setLevel(level)
            inside = str(Path(torch.__file__).parent)
            frozen += [
                f"{w.filename}:{w.lineno}"
                for w in caught
                if w.category.__name__ == "TracerWarning" and not w.filename.startswith(inside)
            ]


@contextmanager
def _no_stdout() -> Iterator[None]:
    """A failing export writes its whole intermediate graph to the process's stdout, below Python."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
