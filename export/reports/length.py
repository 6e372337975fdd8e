"""Long sequences: how far the error should go back, what a linear recurrence changes, what running along time gains."""

from __future__ import annotations

from pathlib import Path

from export.reports.texts import TextStudy, Trained
from export.reports.writing import write_picture, write_table

NETS = {
    "LSTM": {"kind": "lstm", "layers": 2},
    "minGRU": {"kind": "mingru", "layers": 3, "residual": True, "norm": True, "memory": 100},
}


def report(
    folder: Path,
    study: TextStudy | None = None,
    units: int = 128,
    windows: tuple[int, ...] = (10, 50, 250),
    lengths: tuple[int, ...] = (1, 4, 16, 64, 256),
) -> None:
    """``truncation`` (bits per character and speed by window) and ``along-time`` (speed of serving one stream by T).

    The streams of a batch are fewer where the window is longer, so that every update sees as many tokens.
    """
    from matplotlib.figure import Figure

    study = study or TextStudy()
    tokens = study.lanes * study.window
    trained: dict[tuple[str, int], Trained] = {}
    for name, shape in NETS.items():
        for window in windows:
            trained[name, window] = study.train(
                f"{name}-{window}",
                study.shape(units=units, **shape),  # type: ignore[arg-type]
                folder,
                window=window,
                lanes=max(1, tokens // window),
            )
    header = ["window", *(f"{name}, {what}" for name in NETS for what in ("bits per character", "steps/s in training"))]
    cells = [
        [f"{w} steps", *(c for n in NETS for c in (f"{trained[n, w].bits:.3f}", f"{trained[n, w].training_rate:,.0f}"))]
        for w in windows
    ]
    write_table(folder, "truncation", header, cells)

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    bits, speed = figure.subplots(1, 2)
    rates = {}
    for name in NETS:
        bits.plot(windows, [trained[name, w].bits for w in windows], marker="o", label=name)
        longest = trained[name, windows[-1]]
        rates[name] = longest.serving_rates([(n, 1) for n in lengths], study.measure_s)
        speed.plot(lengths, rates[name], marker="o", label=name)
    rows = [[f"{n} steps", *(f"{rates[name][i]:,.0f}" for name in NETS)] for i, n in enumerate(lengths)]
    write_table(folder, "along-time", ["in one call", *(f"{name}, steps/s" for name in NETS)], rows)
    bits.set_xlabel("window of truncated back-propagation, steps")
    bits.set_ylabel(f"bits per character after {study.epochs} epochs")
    speed.set_xlabel("steps of one stream in one call")
    speed.set_ylabel("steps/s served, one core")
    speed.set_yscale("log")
    for axes in (bits, speed):
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
    write_picture(folder, "length", figure)
