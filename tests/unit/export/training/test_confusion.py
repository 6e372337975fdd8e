"""Confusion matrices: numbers against a table done by hand and against scikit-learn, and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.metrics import precision_recall_fscore_support

from export.training.confusion import Confusion

LABELS = ("a", "b", "c")


def test_by_hand() -> None:
    found = Confusion.of(LABELS, [0, 0, 0, 1, 1], [0, 0, 1, 1, 2])
    assert found.counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert found.accuracy == 3 / 5
    assert found.precision.tolist() == [1, 1 / 2, 0]
    assert found.recall.tolist() == [2 / 3, 1 / 2, 0]
    assert found.f1.tolist() == [4 / 5, 1 / 2, 0]
    assert found.macro_f1 == pytest.approx((4 / 5 + 1 / 2) / 3)
    assert found.table() == [
        ("class", "items", "precision", "recall", "F1", "most often taken for"),
        ("a", "3", "1.000", "0.667", "0.800", "b (1)"),
        ("b", "2", "0.500", "0.500", "0.500", "c (1)"),
        ("c", "0", "0.000", "0.000", "0.000", "-"),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_learn_counts(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, said = random.integers(0, 6, 80), random.integers(0, 6, 80)
    found = Confusion.of("abcdef", truth, said)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, said, labels=range(6), zero_division=0)
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1, f1)


@pytest.mark.parametrize("classes", [3, 40])
def test_picture(tmp_path: Path, classes: int) -> None:
    truth = np.arange(classes)
    labels = [f"class {i}" for i in range(classes)]
    Confusion.of(labels, truth, truth).write_png(tmp_path / "right.png", "all right")
    Confusion.of(labels, truth, np.roll(truth, 1)).write_png(tmp_path / "wrong.png", "all wrong")
    right, wrong = imread(tmp_path / "right.png"), imread(tmp_path / "wrong.png")
    assert min(right.shape[:2]) > 300
    assert (right != wrong).any()


@pytest.mark.parametrize(("truth", "said"), [([0, 3], [0, 0]), ([0], [-1]), ([0, 1], [0])])
def test_what_cannot_be_counted(truth: list[int], said: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels|expected one of each"):
        Confusion.of(LABELS, truth, said)
