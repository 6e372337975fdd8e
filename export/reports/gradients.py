"""Vanishing and exploding gradients, on copy memory: how large dL/dh_t is at each step, and what a net then learns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.nets.cells import ElmanLayer
from export.nets.stack import StackShape
from export.reports.writing import write_numbers, write_picture, write_table
from export.training.checkpoint import Progress
from export.training.copying import CopyNet, CopyProblem, CopyShape
from export.training.loop import clip, fit
from export.training.schedule import Schedule

DESCENT_RATE = 0.3
"""Learning rate of plain gradient descent, where it is set beside AdamW."""


@dataclass(frozen=True)
class Candidate:
    """A net to look at."""

    name: str
    stack: StackShape
    gates: bool = False
    """Its gates begin with a memory as long as the task asks for."""
    growth: float = 1.0
    """What its recurrent weights are multiplied with at first."""

    def sized(self, shape: CopyShape) -> StackShape:
        memory = 2 * shape.length if self.gates else 0
        return replace(self.stack, inputs=shape.inputs, memory=memory)


def candidates(units: int) -> list[Candidate]:
    """One layer each, but for the linear recurrence, whose two layers are as large as one LSTM."""

    def one(kind: str, **more: Any) -> StackShape:
        return StackShape(0, kind, layers=1, units=units, **more)

    linear = StackShape(0, "mingru", layers=2, units=units, residual=True, norm=True)
    orthogonal = one("elman", start="orthogonal")
    return [
        Candidate("Elman, sigmoid", one("elman", activation="sigmoid")),
        Candidate("Elman, tanh", one("elman")),
        Candidate("Elman, tanh, orthogonal start", orthogonal),
        Candidate(
            "Elman, linear, 1.1 x orthogonal", one("elman", activation="identity", start="orthogonal"), growth=1.1
        ),
        Candidate("LSTM", one("lstm")),
        Candidate("LSTM, gates begin open", one("lstm"), gates=True),
        Candidate("GRU", one("gru")),
        Candidate("GRU, gates begin open", one("gru"), gates=True),
        Candidate("minGRU, gates begin open", linear, gates=True),
    ]


@dataclass(frozen=True)
class Study:
    """How much is measured; the defaults take about ten minutes on one core."""

    units: int = 48
    seeds: int = 3
    picture_length: int = 100
    lengths: tuple[int, ...] = (10, 30, 100)
    batch: int = 32
    updates: int = 25
    """Of an epoch."""
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=12, learning_rate=5e-3, weight_decay=0))


def report(folder: Path, study: Study | None = None) -> None:
    """``gradients.png``, and the tables ``gradients``, ``accuracy`` and ``clipping``; runs stay in ``folder/runs``."""
    study = study or Study()
    _picture(folder, study)
    _accuracy(folder, study)
    _clipping(folder, study)


def _picture(folder: Path, study: Study) -> None:
    from matplotlib.figure import Figure

    shape = CopyShape(study.picture_length, items=1, batch=study.batch)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    rows: list[list[object]] = []
    for candidate in candidates(study.units):
        norms = np.stack([gradient_norms(candidate, shape, seed) for seed in range(study.seeds)])
        logs = np.log10(np.maximum(norms, 1e-30))
        middle, low, high = 10 ** logs.mean(0), 10 ** logs.min(0), 10 ** logs.max(0)
        steps = np.arange(1, norms.shape[1] + 1)
        (line,) = axes.plot(steps, middle, label=candidate.name)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
        rows += [
            [candidate.name, t, f"{m:.4g}", f"{a:.4g}", f"{b:.4g}"] for t, m, a, b in zip(steps, middle, low, high)
        ]
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-15)
    axes.set_xlabel(f"step t (the symbol is shown at 1 and asked for at {shape.length + 2})")
    axes.set_ylabel("norm of dL/dh_t before training")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    write_picture(folder, "gradients", figure)
    write_numbers(folder, "gradients", ["net", "step", "norm, geometric mean", "least of the seeds", "largest"], rows)


def gradient_norms(candidate: Candidate, shape: CopyShape, seed: int) -> NDArray[np.float64]:
    """Norm of the loss's derivative by the state after each step but the last, ``[T - 1]``, of an untrained net.

    Of an LSTM the state is h and c together: what is kept goes through c. Of several layers it is that of all.
    """
    net = build(candidate, shape, seed)
    given, kept = shape.draw(np.random.default_rng([seed]), shape.batch)
    states = net.initial_state(shape.batch)
    logits, held = [], []
    for t in range(len(given)):
        answer, *after = net(given[t : t + 1], *states)
        states = tuple(after)
        for state in states:
            state.retain_grad()
        held.append(states)
        logits.append(answer)
    torch.autograd.backward(CopyProblem.nats(torch.cat(logits[-shape.items :]), kept))
    squares = [sum(float((s.grad**2).sum()) for s in states if s.grad is not None) for states in held[:-1]]
    return np.sqrt(np.array(squares, np.float64))


def build(candidate: Candidate, shape: CopyShape, seed: int) -> CopyNet:
    """The candidate's net, initialised from the seed."""
    torch.manual_seed(seed)
    net = CopyNet(candidate.sized(shape), shape.symbols)
    for layer in net.stack.layers:
        if isinstance(layer, ElmanLayer):
            layer.W_hh.data *= candidate.growth
    return net


def accuracy_of(candidate: Candidate, length: int, folder: Path, study: Study, window: int = 0) -> NDArray[np.float64]:
    """Share of right answers after training, for each seed; ``window``: of truncated back-propagation, 0: the whole."""
    runs = [_trained(candidate, length, seed, folder, study, window) for seed in range(study.seeds)]
    return np.array([1 - r.best_score for r in runs])


def range_of(found: NDArray[np.float64]) -> str:
    """Mean of the seeds, and their range."""
    return f"{found.mean():.2f} ({found.min():.2f} to {found.max():.2f})"


def _accuracy(folder: Path, study: Study) -> None:
    rows = []
    for candidate in candidates(study.units):
        cells = []
        for length in study.lengths:
            cells.append(range_of(accuracy_of(candidate, length, folder, study)))
        rows.append([candidate.name, *cells])
    write_table(folder, "accuracy", ["net", *(f"{n} steps" for n in study.lengths)], rows)


def _clipping(folder: Path, study: Study) -> None:
    """Nets whose error grows on its way back, with and without clipping, by two ways of updating the weights."""
    length, rows = study.lengths[len(study.lengths) // 2], []
    for activation, growth in (("tanh", 1.5), ("relu", 1.5), ("identity", 1.1)):
        stack = StackShape(0, "elman", layers=1, units=study.units, activation=activation, start="orthogonal")
        candidate = Candidate(f"Elman, {activation}, {growth:g} x orthogonal", stack, growth=growth)
        cells = []
        for clip_norm in (0.0, 1.0):
            clipped = replace(study, schedule=replace(study.schedule, clip_norm=clip_norm))
            found = [_descended(candidate, length, seed, clipped) for seed in range(study.seeds)]
            lost = sum(not np.isfinite(loss) for _, loss in found)
            cells.append(f"{np.mean([right for right, _ in found]):.2f}" + (f" ({lost} diverged)" if lost else ""))
        for clip_norm in (0.0, 1.0):
            clipped = replace(study, schedule=replace(study.schedule, clip_norm=clip_norm))
            runs = [_trained(candidate, length, seed, folder, clipped) for seed in range(study.seeds)]
            cells.append(f"{np.mean([1 - r.best_score for r in runs]):.2f}")
        cells.append(f"{max(p.gradient_max for r in runs for p in r.curve):.2g}")
        rows.append([candidate.name, *cells])
    ways = [f"{way}, {how}" for way in ("gradient descent", "AdamW") for how in ("not clipped", "clipped to norm 1")]
    write_table(folder, "clipping", [f"net ({length} steps)", *ways, "largest gradient met"], rows)


def _descended(candidate: Candidate, length: int, seed: int, study: Study) -> tuple[float, float]:
    """Plain gradient descent, as many updates as a whole run has -> accuracy, last loss."""
    shape = CopyShape(length, items=1, batch=study.batch, updates=study.updates * study.schedule.epochs)
    problem = CopyProblem(shape, build(candidate, shape, seed))
    optimiser = torch.optim.SGD(problem.net.parameters(), DESCENT_RATE)
    last = 0.0
    for batch in problem.batches(0, seed):
        loss = problem.loss(batch, None)
        optimiser.zero_grad()
        torch.autograd.backward(loss.value)
        clip(problem.net, study.schedule)
        optimiser.step()
        last = loss.shown
    with torch.no_grad():
        return 1 - problem.develop().value, last


def _trained(candidate: Candidate, length: int, seed: int, folder: Path, study: Study, window: int = 0) -> Progress:
    shape = CopyShape(length, items=1, batch=study.batch, updates=study.updates, window=window)
    name = f"{candidate.name.replace(' ', '-').replace(',', '')}-{length}-{seed}-{study.schedule.clip_norm:g}-{window}"
    problem = CopyProblem(shape, build(candidate, shape, seed))
    return fit(problem, replace(study.schedule, seed=seed), folder / "runs" / name, draw=False)
