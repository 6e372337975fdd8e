"""How to train, as plain numbers: they are the flags that all trainings share. Nothing here needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Two runs with equal schedules, settings, data and torch give equal weights on one machine."""

    epochs: int = 20
    """At most so many passes over the data."""
    learning_rate: float = 2e-3
    """The highest, of AdamW."""
    weight_decay: float = 0.01
    warm_up: float = 0.02
    """Share of all updates in which the learning rate rises."""
    clip_norm: float = 1.0
    """Longest that the gradient of all weights together may be; longer ones are shortened. 0: as long as they are."""
    clip_value: float = 0.0
    """Largest that one number of the gradient may be, applied after the norm. 0: as large as they are."""
    ema: float = 0.0
    """Share of itself that the moving average of the weights keeps at an update; the average is then what is scored and
    exported. 0: the weights themselves."""
    patience: int = 0
    """Epochs without a better score on the development data after which training ends. 0: never."""
    seed: int = 0
    """Of the weights, of dropout and of the order of the data."""


def learning_rate(schedule: Schedule, update: int, total: int) -> float:
    """Of one update of ``total``: a short rise, then half a cosine down to a hundredth."""
    rise = max(1, int(total * schedule.warm_up + 1e-9))
    if update < rise:
        return schedule.learning_rate * (update + 1) / rise
    share = (update - rise) / max(1, total - rise)
    return schedule.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
