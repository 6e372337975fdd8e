"""Prefix beam search as books tell it, and what it approaches: the sum over all alignments. For comparison only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

Text = tuple[int, ...]
Added = Callable[[Text, int], float]
"""What a label adds to the logarithm of a text when it goes on from it."""


def prefix_search(y: Sequence[Sequence[float]], blank: int, width: int, added: Added) -> list[tuple[Text, float]]:
    """The likeliest texts with their logarithms, of steps ``y[t][c]``, logarithms of the labels' probabilities."""
    beam: dict[Text, tuple[float, float]] = {(): (0.0, -math.inf)}
    for step in y:
        grown: dict[Text, list[float]] = defaultdict(lambda: [-math.inf, -math.inf])

        def add(text: Text, ending: int, log: float, grown: dict[Text, list[float]] = grown) -> None:
            grown[text][ending] = float(np.logaddexp(grown[text][ending], log))

        for text, (by_blank, by_label) in beam.items():
            total = float(np.logaddexp(by_blank, by_label))
            for label, log in enumerate(step):
                if label == blank:
                    add(text, 0, total + log)
                elif text and label == text[-1]:
                    add(text, 1, by_label + log)
                    add((*text, label), 1, by_blank + log + added(text, label))
                else:
                    add((*text, label), 1, total + log + added(text, label))
        ranked = sorted(grown.items(), key=lambda item: -float(np.logaddexp(*item[1])))
        beam = {text: (logs[0], logs[1]) for text, logs in ranked[:width]}
    return [(text, float(np.logaddexp(*logs))) for text, logs in beam.items()]


def every_alignment(y: Sequence[Sequence[float]], blank: int, added: Added) -> dict[Text, float]:
    """Of every text, the logarithm of the sum of all its alignments' probabilities, and what its labels add."""
    sums: dict[Text, float] = defaultdict(lambda: -math.inf)
    for labels in product(range(len(y[0])), repeat=len(y)):
        text = tuple(c for i, c in enumerate(labels) if c != blank and (i == 0 or labels[i - 1] != c))
        log = sum(step[c] for step, c in zip(y, labels))
        sums[text] = float(np.logaddexp(sums[text], log))
    return {text: log + sum(added(text[:i], c) for i, c in enumerate(text)) for text, log in sums.items()}
