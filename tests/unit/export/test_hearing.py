"""How a transcript is judged: edits, rates, and the likelihood of a word."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from export.edits import Rates, edits, rates
from export.tasks.hearing import choose, likelihood


@pytest.mark.parametrize(
    ("found", "wanted", "count"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), (["a", "b"], ["b"], 1)],
)
def test_edits(found: str, wanted: str, count: int) -> None:
    assert edits(found, wanted) == edits(wanted, found) == count


def test_rates_are_of_all_texts_together() -> None:
    assert rates(["press on", ""], ["press one", "no"]) == Rates(cer=3 / 11, wer=2 / 3)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x for i, x in enumerate(path) if x and (i == 0 or x != path[i - 1]))


@pytest.mark.parametrize("labels", [(), (1,), (1, 2), (1, 1), (2, 1, 2), (1, 1, 1, 1)])
def test_a_likelihood_is_the_sum_over_all_ways_to_say_it(labels: tuple[int, ...]) -> None:
    p = np.random.default_rng(5).dirichlet(np.ones(3), size=5)
    total = sum(
        float(np.prod([p[t, x] for t, x in enumerate(path)]))
        for path in product(range(3), repeat=5)
        if collapsed(path) == labels
    )
    with np.errstate(divide="ignore"):
        assert likelihood(np.log(p), labels, 0) == pytest.approx(np.log(total))


def test_the_likeliest_of_a_closed_list_needs_not_be_what_was_heard() -> None:
    logits = np.full((6, 4), -3.0)
    for t, label in enumerate((2, 0, 1, 0, 3, 3)):
        logits[t, label] = 3.0
    assert choose(logits, ["no", "on", "nn"], ("", "n", "o", "e")) == 1  # "one" was heard
