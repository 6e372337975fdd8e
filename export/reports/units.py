"""How many units, how many layers, connected how: what they gain in bits per character, and what they cost."""

from __future__ import annotations

from pathlib import Path

from export.reports.texts import TextStudy, serving_rates
from export.reports.writing import write_picture, write_table

SERVED = (16, 64)
"""The rectangle that the speed of serving is measured with: 16 steps of 64 streams."""

MEMORY = 20
"""Steps that gates begin with, the same for all: else torch's own stacks would begin otherwise than dense ones."""


def report(
    folder: Path,
    study: TextStudy | None = None,
    units: tuple[int, ...] = (48, 96, 192),
    layers: tuple[int, ...] = (1, 2, 3),
) -> None:
    """``units.md``, ``units.csv`` and ``units.png``: LSTMs of all these sizes, stacked and densely connected."""
    from matplotlib.figure import Figure

    study = study or TextStudy()
    rows = []
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for depth in layers:
        for connect in ("stacked", "dense") if depth > 1 else ("stacked",):
            weights, bits = [], []
            for width in units:
                shape = study.shape("lstm", layers=depth, units=width, connect=connect, memory=MEMORY)
                trained = study.train(f"{depth}-{connect}-{width}", shape, folder)
                (rate,) = serving_rates(trained.net, [SERVED], study.measure_s)
                weights.append(trained.weights)
                bits.append(trained.bits)
                cells = (f"{trained.weights:,}", f"{trained.bits:.3f}", f"{trained.training_rate:,.0f}", f"{rate:,.0f}")
                rows.append([depth, connect if depth > 1 else "-", width, *cells])
            label = f"{depth} layer{'s' * (depth > 1)}" + (f", {connect}" if depth > 1 else "")
            axes.plot(weights, bits, marker="o", linestyle="--" if connect == "dense" else "-", label=label)
    header = ["layers", "connected", "units", "weights", "bits per character", "steps/s in training", "steps/s served"]
    write_table(folder, "units", header, rows)
    axes.set_xscale("log")
    axes.set_xlabel("weights")
    axes.set_ylabel(f"bits per character after {study.epochs} epochs, development text")
    axes.grid(alpha=0.3)
    axes.legend()
    write_picture(folder, "units", figure)
