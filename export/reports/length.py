"""Long sequences: how far the error must go back, what a linear recurrence changes, what running along time gains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.nets.text import TextNet
from export.reports.gradients import Study, accuracy_of, candidates, range_of
from export.reports.texts import TextStudy, serving_rates
from export.reports.writing import write_picture, write_table

NETS: Mapping[str, Mapping[str, Any]] = {
    "Elman, written out": {"kind": "elman", "layers": 2, "start": "orthogonal"},
    "LSTM": {"kind": "lstm", "layers": 2},
    "minGRU": {"kind": "mingru", "layers": 2, "residual": True, "norm": True},
}
"""Whose speed is measured, as text nets."""


def report(
    folder: Path,
    study: Study | None = None,
    text: TextStudy | None = None,
    units: int = 128,
    lengths: tuple[int, ...] = (1, 4, 16, 64, 256, 1024),
    tokens: int = 4096,
) -> None:
    """The tables ``truncation``, ``training-speed`` and ``serving-speed``, and ``length.png``.

    ``lengths``: steps in one call; ``tokens``: steps times streams of a batch in training.
    """
    study, text = study or Study(), text or TextStudy()
    _truncation(folder, study)
    _speed(folder, text, units, lengths, tokens)


def _truncation(folder: Path, study: Study) -> None:
    """Copy memory, where the error cannot always reach the step that it is about."""
    length = study.lengths[len(study.lengths) // 2]
    steps = length + 2
    windows, rows = (steps // 4, steps // 2, steps), []
    for candidate in candidates(study.units):
        if candidate.growth == 1:
            found = [accuracy_of(candidate, length, folder, study, window) for window in windows]
            rows.append([candidate.name, *map(range_of, found)])
    header = [f"net (asked after {steps} steps)", *(f"window of {window}" for window in windows)]
    write_table(folder, "truncation", header, rows)


def _speed(folder: Path, text: TextStudy, units: int, lengths: tuple[int, ...], tokens: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    training, serving = figure.subplots(1, 2)
    trained: dict[str, list[float]] = {}
    served: dict[str, list[float]] = {}
    for name, shape in NETS.items():
        torch.manual_seed(0)
        net = TextNet(text.shape(units=units, **shape))
        trained[name] = [training_rate(net, n, max(1, tokens // n), text.measure_s) for n in lengths]
        served[name] = serving_rates(net, [(n, 1) for n in lengths], text.measure_s)
        training.plot(lengths, trained[name], marker="o", label=name)
        serving.plot(lengths, served[name], marker="o", label=name)
    for what, rates, axes in (("training", trained, training), ("serving", served, serving)):
        rows = [[n, *(f"{rates[name][i]:,.0f}" for name in NETS)] for i, n in enumerate(lengths)]
        write_table(folder, f"{what}-speed", [f"steps in one call, {what}", *(f"{n}, steps/s" for n in NETS)], rows)
        axes.set_xlabel("steps of a stream in one call")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
    training.set_ylabel(f"steps/s in training, {tokens} steps a batch")
    serving.set_ylabel("steps/s served, one stream")
    write_picture(folder, "length", figure)


def training_rate(net: TextNet, steps: int, batch: int, measure_s: float) -> float:
    """Steps a second of processor time, forward and back, in batches ``[steps, batch]``."""
    tokens = torch.zeros(steps, batch, dtype=torch.int64)
    net.train()
    calls, begun = -1, time.process_time()
    while calls < 1 or time.process_time() - begun < measure_s:
        logits, *_ = net(tokens, *net.initial_state(batch))
        torch.autograd.backward(nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
        calls += 1
        if not calls:  # the first one sets things up
            begun = time.process_time()
    return calls * steps * batch / (time.process_time() - begun)
