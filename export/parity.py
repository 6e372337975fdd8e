"""The proof: the exported graph does what the module does, in every way that a worker will run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from export.measure import Array, Arrays, measure
from export.probe import Layout, Misfit, Subject, Tensors, first_line
from export.quantise import restored, with_weights
from pipeline.contract import Contract
from pipeline.errors import ModelError

LOUDER = 4
"""How much larger the steps of the second run are."""
PROOF_STEPS, PROOF_BATCH = 24, 4
"""Other numbers than those of the traced call, so that what was frozen shows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ``largest``: the largest absolute difference; ``excess``: above 1 it is more than allowed."""

    what: str
    where: str
    largest: float
    excess: float


@dataclass(frozen=True)
class Parity:
    """All comparisons, and how much each state changes what follows (largest absolute difference without it)."""

    rows: tuple[Row, ...]
    matters: tuple[tuple[str, float], ...]
    tolerance: float

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of text: comparison, where the largest difference is, its size."""
        shown = [(r.what, r.where, f"{r.largest:.2g}") for r in self.rows]
        return shown + [
            (f"state {name} left out", "what follows changes" if size else "nothing else changes", f"{size:.2g}")
            for name, size in self.matters
        ]


class Runner:
    """The exported graph, run plainly: states in, states out. Steps and outputs time first, ``[T, B, ...]``."""

    def __init__(self, model: onnx.ModelProto, contract: Contract, layout: Layout) -> None:
        """Raises ModelError when onnxruntime cannot load the graph."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base
            raise ModelError(f"onnxruntime cannot load the exported graph: {first_line(error)}") from None
        self.contract = contract
        self.axis = contract.time_axis

    def whole(self, steps: Arrays, states: Arrays) -> tuple[Arrays, Arrays]:
        """Raises Misfit for what onnxruntime says."""
        c = self.contract
        feed = {s.name: np.ascontiguousarray(self._give(a)) for s, a in zip(c.steps, steps)}
        feed |= {s.input: np.ascontiguousarray(a) for s, a in zip(c.states, states)}
        names = [o.name for o in c.outputs] + [s.output for s in c.states]
        try:
            values = self.session.run(names, feed)
        except Exception as error:  # noqa: BLE001 - see above
            raise Misfit(first_line(error)) from None
        count = len(c.outputs)
        return tuple(self._take(v) for v in values[:count]), tuple(values[count:])

    def _give(self, steps: Array) -> Array:
        return steps[0] if self.axis is None else np.moveaxis(steps, 0, self.axis)

    def _take(self, output: Array) -> Array:
        return output[None] if self.axis is None else np.moveaxis(output, self.axis, 0)

    def stepped(self, steps: Arrays, states: Arrays) -> tuple[Arrays, Arrays]:
        rows = []
        for t in range(len(steps[0])):
            outputs, states = self.whole(tuple(s[t : t + 1] for s in steps), states)
            rows.append(outputs)
        return tuple(np.concatenate(column) for column in zip(*rows)), states

    def run(self, steps: Arrays, states: Arrays) -> tuple[Arrays, Arrays]:
        return self.stepped(steps, states) if self.axis is None else self.whole(steps, states)

    def initial(self, batch: int) -> Arrays:
        """States of new streams, as the contract has them."""
        return tuple(
            np.repeat(
                np.array(s.initial if s.initial is not None else np.zeros(s.size), s.dtype).reshape(s.shape),
                batch,
                axis=s.batch_axis,
            )
            for s in self.contract.states
        )


def prove(of: Subject, layout: Layout, model: onnx.ModelProto, contract: Contract, tolerance: float) -> Parity:
    """Runs module and graph side by side. Raises Misfit when they differ by more than ``tolerance``, or do not run."""
    runner = Runner(model, contract, layout)
    steps = of.sample(PROOF_STEPS, PROOF_BATCH, 5)
    arrays = tuple(_array(s) for s in steps)
    torch_run = _arrays(of.run(layout, steps, of.initial(PROOF_BATCH)))
    graph_run = runner.run(arrays, runner.initial(PROOF_BATCH))
    rows = [_row(contract, "PyTorch against onnxruntime", torch_run, graph_run, tolerance)]
    # Other values, going on from where the first left off: a branch that tracing froze may fit one run by chance.
    louder = tuple(s * LOUDER if s.is_floating_point() else s for s in of.sample(PROOF_STEPS, PROOF_BATCH, 6))
    onward = _arrays(of.run(layout, louder, tuple(map(torch.from_numpy, torch_run[1]))))
    again = runner.run(tuple(map(_array, louder)), graph_run[1])
    rows.append(_row(contract, "the same, going on with larger steps", onward, again, tolerance))
    if contract.time_axis is not None:
        stepped = runner.stepped(arrays, runner.initial(PROOF_BATCH))
        rows.append(_row(contract, "whole sequence against step by step", graph_run, stepped, tolerance))
    rows.append(_alone(runner, contract, arrays, graph_run, tolerance))
    _hold(rows, tolerance)
    matters = _matters(of, layout, torch_run, steps)
    if not any(size > 0 for _, size in matters):
        raise ModelError("no state changes what follows: forward must use the states it is given")
    return Parity(tuple(rows), matters, tolerance)


def prove_stored(
    of: Subject,
    layout: Layout,
    model: onnx.ModelProto,
    small: onnx.ModelProto,
    contract: Contract,
    tolerance: float,
    precision: str,
) -> tuple[Row, ...]:
    """``small`` is ``model`` with its weights stored in ``precision``: it must compute with what was stored, alike in
    every way that a worker runs it. How far it is from ``model`` is a row without a limit: the model's figures judge
    that. Raises Misfit.
    """
    plain, stored = Runner(model, contract, layout), Runner(small, contract, layout)
    rounded = Runner(with_weights(model, restored(small)), contract, layout)
    arrays = tuple(_array(s) for s in of.sample(PROOF_STEPS, PROOF_BATCH, 5))
    result = stored.run(arrays, stored.initial(PROOF_BATCH))
    meant = rounded.run(arrays, rounded.initial(PROOF_BATCH))
    rows = [_row(contract, f"{precision} as stored against as meant", result, meant, tolerance)]
    if contract.time_axis is not None:
        stepped = stored.stepped(arrays, stored.initial(PROOF_BATCH))
        rows.append(_row(contract, f"{precision}, whole sequence against step by step", result, stepped, tolerance))
    alone = _alone(stored, contract, arrays, result, tolerance)
    rows.append(replace(alone, what=f"{precision}, {alone.what}"))
    _hold(rows, tolerance)
    full = plain.run(arrays, plain.initial(PROOF_BATCH))
    return (*rows, replace(_row(contract, f"{precision} against float32", result, full, tolerance), excess=0.0))


def _hold(rows: Sequence[Row], tolerance: float) -> None:
    worst = max(rows, key=lambda r: r.excess)
    if worst.excess > 1:
        raise Misfit(f"{worst.what}: {worst.where} differs by {worst.largest:.3g}, more than allowed ({tolerance:g})")


def _alone(runner: Runner, contract: Contract, steps: Arrays, batched: tuple[Arrays, Arrays], tolerance: float) -> Row:
    """Each stream by itself, its steps in one call, against what it gave in the batch."""
    runs = [runner.run(tuple(s[:, i : i + 1] for s in steps), runner.initial(1)) for i in range(steps[0].shape[1])]
    outputs = tuple(np.concatenate(column, axis=1) for column in zip(*(r[0] for r in runs)))
    states = tuple(
        np.concatenate(column, axis=s.batch_axis) for s, column in zip(contract.states, zip(*(r[1] for r in runs)))
    )
    return _row(contract, "alone against in a batch", (outputs, states), batched, tolerance)


def _matters(of: Subject, layout: Layout, run: tuple[Arrays, Arrays], steps: Tensors) -> tuple[tuple[str, float], ...]:
    """Goes on after ``run`` once with all its states, and once for each state with that one as in a new stream."""
    carried = tuple(torch.from_numpy(s.copy()) for s in run[1])
    fresh = of.initial(steps[0].shape[1])
    kept = _arrays(of.run(layout, steps, carried))
    sizes = []
    for i, state in enumerate(of.states):
        mixed = tuple(fresh[j] if j == i else s for j, s in enumerate(carried))
        without = _arrays(of.run(layout, steps, mixed))
        others = [j for j in range(len(of.states)) if j != i]
        pairs = [*zip(kept[0], without[0]), *((kept[1][j], without[1][j]) for j in others)]
        sizes.append((state.input, max(measure(a, b, 1.0)[0] for a, b in pairs)))
    return tuple(sizes)


def _row(contract: Contract, what: str, a: tuple[Arrays, Arrays], b: tuple[Arrays, Arrays], tolerance: float) -> Row:
    names = [o.name for o in contract.outputs] + [f"state {s.input}" for s in contract.states]
    found = [(measure(x, y, tolerance), n) for x, y, n in zip((*a[0], *a[1]), (*b[0], *b[1]), names)]
    (_, excess), _ = max(found, key=lambda f: f[0][1])
    (largest, _), where = max(found, key=lambda f: f[0][0])
    return Row(what, where, largest, excess)


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _arrays(run: tuple[Tensors, Tensors]) -> tuple[Arrays, Arrays]:
    return tuple(map(_array, run[0])), tuple(map(_array, run[1]))
