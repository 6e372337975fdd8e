"""What a classifier takes for what: a matrix as a picture, and precision, recall and F1 of each class.

Needs no torch: it is drawn of an exported model's answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Confusion:
    """``counts`` int64 ``[C, C]``: how often what is of class i (row) was said to be of class j (column)."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]

    @staticmethod
    def of(labels: Sequence[str], truth: ArrayLike, said: ArrayLike) -> Confusion:
        """``truth`` and ``said``: whole numbers ``[n]``, the class of each item, below the number of labels.

        Raises ValueError for a number that has no label, and where there are not as many of both.
        """
        true, guessed, size = np.asarray(truth, np.int64), np.asarray(said, np.int64), len(labels)
        if true.shape != guessed.shape or true.ndim != 1:
            raise ValueError(f"{true.shape} truths for {guessed.shape} answers: expected one of each per item")
        both = np.concatenate([true, guessed])
        if both.size and not (both.min() >= 0 and both.max() < size):
            raise ValueError(f"classes from {both.min()} to {both.max()} for {size} labels")
        return Confusion(tuple(labels), np.bincount(true * size + guessed, minlength=size * size).reshape(size, size))

    @property
    def accuracy(self) -> float:
        """Share of all items that were said to be what they are; NaN of none."""
        return float(_share(np.trace(self.counts), self.counts.sum()))

    @property
    def precision(self) -> NDArray[np.float64]:
        """``[C]``: of what was said to be of the class, the share that is; 0 where nothing was."""
        return np.nan_to_num(_share(np.diag(self.counts), self.counts.sum(axis=0)))

    @property
    def recall(self) -> NDArray[np.float64]:
        """``[C]``: of what is of the class, the share that was said to be; 0 where nothing is."""
        return np.nan_to_num(_share(np.diag(self.counts), self.counts.sum(axis=1)))

    @property
    def f1(self) -> NDArray[np.float64]:
        """``[C]``: the harmonic mean of precision and recall; 0 where both are."""
        return np.nan_to_num(_share(2 * np.diag(self.counts), self.counts.sum(axis=0) + self.counts.sum(axis=1)))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes, each counting the same."""
        return float(self.f1.mean())

    def table(self) -> list[tuple[str, ...]]:
        """Rows of a card's table: class, items, precision, recall, F1, and the class it is most often taken for."""
        rows: list[tuple[str, ...]] = [("class", "items", "precision", "recall", "F1", "most often taken for")]
        others = self.counts - np.diag(np.diag(self.counts))
        for i, label in enumerate(self.labels):
            worst = int(others[i].argmax())
            taken = f"{self.labels[worst]} ({others[i, worst]})" if others[i, worst] else "-"
            numbers = (f"{x[i]:.3f}" for x in (self.precision, self.recall, self.f1))
            rows.append((label, str(self.counts[i].sum()), *numbers, taken))
        return rows

    def append_to(self, card: Path, picture: str, what: str, names: Sequence[str] | None = None) -> None:
        """Adds the picture, which lies beside the card, and the table to a card in Markdown.

        ``what``: was judged, for the heading; ``names``: of the classes, where the labels say too little.
        """
        header, *rows = self.table()
        lines = ["", f"## Classes, {what}", "", f"![what is taken for what]({picture})", ""]
        lines += [f"| {' | '.join(header)} |", f"|{'|'.join('---' for _ in header)}|"]
        lines += [f"| {' | '.join((name, *row[1:]))} |" for name, row in zip(names or self.labels, rows)]
        with card.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def write_png(self, file: Path, title: str) -> None:
        """A square per pair of classes, coloured by its share of the row; numbers in it where there is room."""
        from matplotlib.figure import Figure

        size = len(self.labels)
        inches = 2.2 + 0.34 * max(size, 6)
        figure = Figure(figsize=(inches + 0.8, inches), layout="constrained")
        axes = figure.subplots()
        shares = np.nan_to_num(_share(self.counts, self.counts.sum(axis=1, keepdims=True)))
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(size), self.labels, rotation=90 if max(map(len, self.labels)) > 2 else 0)
        axes.set_yticks(range(size), self.labels)
        axes.set_xlabel("said")
        axes.set_ylabel("is")
        axes.set_title(title)
        if size <= 30:
            for i, j in zip(*np.nonzero(self.counts)):
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(self.counts[i, j]), ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, label="share of the row")
        figure.savefig(file, dpi=100, metadata={"Software": None})


def _share(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part, np.float64) / np.asarray(whole, np.float64)
