"""Loss curves: a PNG to look at, and the CSV it was drawn from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TypeAlias

Curve: TypeAlias = list[tuple[int, float, float, float]]
"""epoch, seconds so far, loss in training, loss on the development part."""


def write_curves(folder: Path, curve: Curve, step: str, unit: str) -> None:
    """``loss.csv`` and ``loss.png`` in ``folder``, replacing those of the epoch before."""
    with (folder / "loss.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([step, "seconds", f"train ({unit})", f"development ({unit})"])
        rows.writerows((n, f"{s:.1f}", f"{t:.5f}", f"{d:.5f}") for n, s, t, d in curve)

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    steps = [row[0] for row in curve]
    axes.plot(steps, [row[2] for row in curve], marker=".", label="train")
    axes.plot(steps, [row[3] for row in curve], marker=".", label="development")
    axes.set_xlabel(step)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
