"""Several sources of data in one training: how much of each an epoch sees, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError


def mix(
    sizes: Sequence[int], shares: Sequence[float], count: int, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``count`` examples of an epoch, in a random order -> source and index in it of each, int64 ``[count]``.

    ``sizes``: examples of each source; ``shares``: how much of the epoch is to come from each, in any unit. A source
    gives each of its examples once before it gives one again. A function of the arguments alone. Raises ConfigError for
    a source that is to give something and has nothing.
    """
    total = sum(shares)
    for i, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        if share < 0 or not total > 0 or (share and not size):
            raise ConfigError(f"source {i} has {size} examples and a share of {share:g} in {total:g}: nothing to draw")
    random = np.random.default_rng([seed, epoch])
    edges = np.rint(np.cumsum(shares) / total * count).astype(int)
    sources = np.repeat(np.arange(len(sizes)), np.diff(edges, prepend=0))
    indices = [
        np.concatenate([random.permutation(size) for _ in range(-(-int(n) // size))] or [np.empty(0, int)])[:n]
        if size
        else np.empty(0, int)
        for size, n in zip(sizes, np.bincount(sources, minlength=len(sizes)))
    ]
    order = random.permutation(count)
    return sources[order].astype(np.int64), np.concatenate(indices)[order].astype(np.int64)
