"""Which activation: Elman's network on a text, with each of them and each start of its recurrent weights."""

from __future__ import annotations

from pathlib import Path

from export.nets.cells import ACTIVATIONS
from export.reports.texts import TextStudy
from export.reports.writing import write_picture, write_table
from pipeline.errors import ModelError


def report(folder: Path, study: TextStudy | None = None, units: int = 128) -> None:
    """``activation.md``, ``activation.csv`` and ``activation.png``."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    study = study or TextStudy()
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    shapes, loss = figure.subplots(1, 2)
    x = np.linspace(-4, 4, 200)
    rows = []
    for name in ACTIVATIONS:
        y = _numbers(name, x)
        (line,) = shapes.plot(x, y, label=name)
        starts = ("uniform", "orthogonal") + (("identity",) if name == "relu" else ())
        for start in starts:
            shape = study.shape("elman", layers=1, units=units, activation=name, start=start)
            try:
                trained = study.train(f"{name}-{start}", shape, folder)
            except ModelError:  # the loss is no number any more: what is not bounded may grow without end
                rows.append([name, start, "diverged", "-", "-"])
                continue
            curve = trained.progress.curve
            steepest = max(p.gradient_max for p in curve)
            rows.append([name, start, f"{trained.bits:.3f}", f"{curve[-1].gradient:.2f}", f"{steepest:.2g}"])
            style = {"uniform": "-", "orthogonal": "--", "identity": ":"}[start]
            epochs = [p.epoch for p in curve]
            loss.plot(epochs, [p.develop for p in curve], style, color=line.get_color(), label=f"{name}, {start}")
    header = [
        "activation",
        "recurrent weights begin",
        "bits per character",
        "gradient norm, last epoch",
        "largest ever",
    ]
    write_table(folder, "activation", header, rows)
    shapes.set_xlabel("what goes in")
    shapes.set_ylabel("what comes out")
    shapes.set_ylim(-2, 3)
    shapes.legend()
    loss.set_xlabel("epoch")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set_ylabel("bits per character, development text")
    loss.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (shapes, loss):
        axes.grid(alpha=0.3)
    write_picture(folder, "activation", figure)


def _numbers(name: str, x: object) -> object:
    import torch

    return ACTIVATIONS[name](torch.as_tensor(x)).numpy()
