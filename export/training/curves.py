"""Curves of a run: a PNG to look at, and the CSV it was drawn from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from export.training.checkpoint import Point

GRADIENT = ("gradient norm, mean", "gradient norm, largest")


def write_numbers(folder: Path, curve: Sequence[Point], unit: str, score_unit: str) -> None:
    """``loss.csv`` in ``folder``, replacing that of the epoch before."""
    extras = list(curve[0].extras) if curve else []
    with (folder / "loss.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "seconds", f"train ({unit})", f"development ({score_unit})", *GRADIENT, *extras])
        for p in curve:
            numbers = (p.train, p.develop, p.gradient, p.gradient_max, *(p.extras[name] for name in extras))
            rows.writerow([p.epoch, f"{p.seconds:.1f}", *(f"{x:.5f}" for x in numbers)])


def draw_curves(folder: Path, curve: Sequence[Point], unit: str, score_unit: str) -> None:
    """``loss.png`` in ``folder``, replacing the older one.

    Above, loss and development score over epochs (on axes of their own where their units differ); below, the mean and
    the largest norm of the gradient before clipping.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    loss, gradient = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    epochs = [p.epoch for p in curve]
    lines = loss.plot(epochs, [p.train for p in curve], marker=".", label="train")
    loss.set_ylabel(unit)
    score = loss
    if score_unit != unit:
        score = loss.twinx()
        score.set_ylabel(score_unit)
    lines += score.plot(epochs, [p.develop for p in curve], marker=".", color="tab:orange", label="development")
    loss.legend(handles=lines)
    gradient.plot(epochs, [p.gradient for p in curve], marker=".", color="tab:green", label="mean")
    gradient.plot(epochs, [p.gradient_max for p in curve], linestyle=":", color="tab:green", label="largest")
    gradient.set_yscale("log")
    gradient.set_ylabel("gradient norm")
    gradient.set_xlabel("epoch")
    gradient.xaxis.set_major_locator(MaxNLocator(integer=True))
    gradient.legend()
    for axes in (loss, gradient):
        axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=120)
