"""That tokens are drawn with the probabilities asked for, and that a draw depends on its counters alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.columns import AnyArray
from pipeline.heads.sampling import draw, uniform


def counters(n: int, **given_: AnyArray | int) -> tuple[AnyArray, ...]:
    """Seed, stream, offset, step; 0 where not given."""
    return tuple(np.broadcast_to(np.asarray(given_.get(name, 0)), n) for name in ("seed", "stream", "offset", "step"))


def tokens_of(logits: list[float], n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> AnyArray:
    """``n`` draws from the same logits at the steps 0 to n-1 of one generation."""
    return draw(
        np.tile(np.array(logits, np.float32), (n, 1)),
        np.full(n, temperature, np.float32),
        np.full(n, top_k, np.int32),
        np.full(n, top_p, np.float32),
        uniform(*counters(n, step=np.arange(n))),
    )


# ---- the counter


@pytest.mark.parametrize("name", ["seed", "stream", "offset", "step"])
def test_draws_along_any_counter_are_uniform_and_uncorrelated(name: str) -> None:
    n = 100_000
    u = uniform(*counters(n, **{name: np.arange(n)}))
    assert u.min() >= 0
    assert u.max() < 1
    bins = np.bincount((u * 100).astype(int), minlength=100)
    # Chi-square with 99 degrees of freedom: mean 99, deviation 14; below 160 but for one in ten thousand.
    assert ((bins - n / 100) ** 2 / (n / 100)).sum() < 160
    for lag in (1, 2, 7, 64):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 0.015


def test_neighbouring_positions_of_all_counters_are_independent() -> None:
    """Seeds, streams, offsets and steps 0 to 15 each: no value twice, none of the four seen in the draw."""
    grid = [a.reshape(-1) for a in np.meshgrid(*[np.arange(16)] * 4)]
    u = uniform(*grid)
    assert len(np.unique(u)) == 16**4
    for counter in grid:
        means = [u[counter == value].mean() for value in range(16)]
        assert max(abs(m - 0.5) for m in means) < 0.02


def test_the_order_of_counters_matters_and_nothing_else_does() -> None:
    one = uniform(*counters(1, stream=np.array([5]), offset=np.array([9])))
    other = uniform(*counters(1, stream=np.array([9]), offset=np.array([5])))
    assert one != other
    many = uniform(*counters(3, stream=np.array([1, 5, 7]), offset=np.array([2, 9, 2])))
    assert many[1] == one[0]


def test_counters_of_64_bits() -> None:
    seeds = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert len(np.unique(uniform(*counters(4, seed=seeds)))) == 4


# ---- the draw


def test_temperature_zero_is_the_first_of_the_likeliest() -> None:
    assert set(tokens_of([0, 3, 3, 1], 50, temperature=0)) == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    n, logits = 60_000, [0.0, 1.0, 2.0, -1.0]
    weights = np.exp(np.array(logits) / temperature)
    share = np.bincount(tokens_of(logits, n, temperature), minlength=4) / n
    assert share == pytest.approx(weights / weights.sum(), abs=0.008)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, {0, 1, 2, 3}),
        (1, 1.0, {2}),
        (2, 1.0, {1, 2}),
        (99, 1.0, {0, 1, 2, 3}),
        (0, 0.4, {2}),
        (0, 0.49, {2}),
        (0, 0.6, {1, 2}),
        (0, 0.95, {0, 1, 2, 3}),
        (0, 1e-30, {2}),
        # Of the two that top-k leaves, the first has 5/8: top-p counts after top-k.
        (2, 0.6, {2}),
        (2, 0.65, {1, 2}),
    ],
)
def test_top_k_then_top_p(top_k: int, top_p: float, kept: set[int]) -> None:
    logits = np.log([0.12, 0.3, 0.5, 0.08]).tolist()
    tokens = tokens_of(logits, 4000, top_k=top_k, top_p=top_p)
    assert set(tokens) == kept
    shares = np.exp([logits[t] for t in sorted(kept)])
    got = np.bincount(tokens, minlength=4)[sorted(kept)] / 4000
    assert got == pytest.approx(shares / shares.sum(), abs=0.04)


def test_of_equally_likely_tokens_top_k_keeps_the_first() -> None:
    assert set(tokens_of([1, 1, 1, 1], 300, top_k=2)) == {0, 1}
    assert set(tokens_of([1, 2, 1, 1], 300, top_k=3)) == {0, 1, 2}


@given(
    logits=hnp.arrays(np.float32, (5, 7), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    temperature=hnp.arrays(np.float32, 5, elements=st.sampled_from([0, 2.0**-100, 0.125, 1, 100])),
    top_k=hnp.arrays(np.int32, 5, elements=st.sampled_from([0, 1, 3, 7, 2**31 - 1])),
    top_p=hnp.arrays(np.float32, 5, elements=st.sampled_from([2.0**-100, 0.5, 0.9375, 1])),
    u=hnp.arrays(np.float64, 5, elements=st.sampled_from([0.0, 0.3, 1 - 2**-53])),
)
def test_a_row_is_drawn_the_same_alone_whatever_its_numbers(
    logits: AnyArray, temperature: AnyArray, top_k: AnyArray, top_p: AnyArray, u: AnyArray
) -> None:
    with np.errstate(all="raise", under="ignore"):
        together = draw(logits, temperature, top_k, top_p, u)
        for i in range(5):
            row = slice(i, i + 1)
            assert draw(logits[row], temperature[row], top_k[row], top_p[row], u[row])[0] == together[i]
    assert ((together >= 0) & (together < 7)).all()


@given(
    logits=hnp.arrays(np.float32, (1, 9), elements=st.floats(-30, 30, width=32)),
    top_k=st.integers(0, 10),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    u=st.floats(0, 1, exclude_max=True),
)
def test_it_is_what_the_definition_says(logits: AnyArray, top_k: int, top_p: float, u: float) -> None:
    """Against the definition written out for one row."""
    weights = np.exp(logits[0].astype(np.float64) - logits.max())
    order = sorted(range(9), key=lambda t: (-weights[t], t))[: top_k or 9]
    goal, kept, total = np.float32(top_p) * sum(sorted(weights[order])), [], 0.0
    for token in order:
        kept.append(token)
        total += weights[token]
        if top_p < 1 and total >= goal:
            break
    sums = np.cumsum([weights[t] for t in sorted(kept)])
    margin = np.abs(sums / sums[-1] - u).min()
    token = draw(logits, np.ones(1), np.array([top_k]), np.array([top_p], np.float32), np.array([u]))[0]
    if margin > 1e-9:
        assert token == sorted(kept)[int((sums <= u * sums[-1]).sum())]
    else:  # on the edge between two tokens rounding decides
        assert token in kept


def test_a_masked_token_is_never_drawn() -> None:
    assert set(tokens_of([-np.inf, 0.0, -np.inf, 0.0], 200)) == {1, 3}
    assert set(tokens_of([np.nan, 0.0, np.nan, 0.0], 200)) == {1, 3}
