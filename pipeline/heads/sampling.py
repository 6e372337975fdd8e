"""Drawing tokens: pure functions of logits, settings and a counter, for a whole batch at once.

Row ``i`` of every argument is one stream; no result depends on which other rows there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.columns import I64, AnyArray, Bools

F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]


def uniform(seed: AnyArray, stream: AnyArray, offset: AnyArray, step: AnyArray) -> F64:
    """float64 ``[B]`` in [0, 1): a function of its four counters and nothing else.

    Counters are integers of at most 64 bits. Each is stirred into what the ones before it gave by SplitMix64 (Steele,
    Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195), which is one-to-one: positions that differ in one
    counter never meet, others meet as two random numbers of 64 bits do.
    """
    mixed: U64 = np.zeros(len(seed), np.uint64)
    for counter in (seed, stream, offset, step):
        mixed = _split_mix(mixed ^ counter.astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _split_mix(x: U64) -> U64:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(logits: AnyArray, temperature: AnyArray, top_k: AnyArray, top_p: AnyArray, u: F64) -> I64:
    """int64 ``[B]``: one token for each row of ``logits [B, V]``.

    Temperature 0 takes the likeliest, the first of equals. Otherwise softmax of logits / temperature, of which the
    ``top_k`` likeliest stay (0: all), of those the fewest that together reach ``top_p`` (1: all); ``u`` in [0, 1)
    picks one of these by their probabilities, in the vocabulary's order. Of equally likely tokens the first stay.
    """
    if not np.isfinite(logits).all():
        # Infinities become the largest numbers there are, and what is no number the least: a token is always drawn.
        logits = np.nan_to_num(logits.astype(np.float64), nan=np.finfo(np.float64).min)
    sampled = np.flatnonzero(temperature > 0)
    if len(sampled) == len(logits):
        return _sample(logits, temperature, top_k, top_p, u)
    tokens: I64 = logits.argmax(axis=1)
    if len(sampled):
        tokens[sampled] = _sample(logits[sampled], temperature[sampled], top_k[sampled], top_p[sampled], u[sampled])
    return tokens


def _sample(logits: AnyArray, temperature: AnyArray, top_k: AnyArray, top_p: AnyArray, u: F64) -> I64:
    x = logits.astype(np.float64, order="C")
    with np.errstate(over="ignore", under="ignore"):  # far below the likeliest: a weight of 0, which is what is meant
        x -= x.max(axis=1, keepdims=True)
        x /= temperature.astype(np.float64)[:, None]
        weights = np.exp(x, out=x)
    size = weights.shape[1]
    cut = np.flatnonzero(((top_k > 0) & (top_k < size)) | (top_p < 1))
    if len(cut):
        kept = weights[cut]
        kept *= _likeliest(kept, top_k[cut], top_p[cut])
        weights[cut] = kept
    sums = np.cumsum(weights, axis=1, out=weights)
    # u is at most 1 - 2**-53, so even rounded the product is below the last sum, and the token found has a weight.
    tokens: I64 = (sums > (u * sums[:, -1])[:, None]).argmax(axis=1)
    return tokens


def _likeliest(weights: F64, top_k: AnyArray, top_p: AnyArray) -> Bools:
    """bool ``[B, V]``: what top-k and then top-p leave."""
    size = weights.shape[1]
    down: NDArray[Any] = np.sort(weights, axis=1)[:, ::-1]
    count = np.where(top_k > 0, np.minimum(top_k, size), size).astype(np.int64)
    if (top_p < 1).any():
        sums = np.cumsum(down, axis=1)
        goal = top_p.astype(np.float64) * np.take_along_axis(sums, count[:, None] - 1, axis=1)[:, 0]
        reached = (sums < goal[:, None]).sum(axis=1) + 1
        count = np.where(top_p < 1, np.minimum(reached, count), count)
    least = np.take_along_axis(down, count[:, None] - 1, axis=1)
    kept: Bools = weights >= least
    tied = np.flatnonzero(np.count_nonzero(kept, axis=1) > count)
    if len(tied):
        above, equal = weights[tied] > least[tied], weights[tied] == least[tied]
        room = count[tied] - np.count_nonzero(above, axis=1)
        kept[tied] = above | (equal & (np.cumsum(equal, axis=1) <= room[:, None]))
    return kept
