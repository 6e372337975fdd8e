"""What runs cost on this machine, learnt from those that were. No clock: the engine says how long they took."""

from __future__ import annotations

from dataclasses import dataclass

STREAM_S = 0.004
"""One stream's steps in a poll take about so long: its neighbours wait for them (S3)."""
STREAM_STEPS_MIN = 16
"""However slow the model is: a call has a price of its own."""
LONG_S = 0.05
"""Calls that took so long were not late by chance."""


@dataclass(slots=True)
class Alone:
    """Calls of a few streams: their steps one behind the other, and how long they took, seconds."""

    calls: int = 0
    steps: int = 0
    took_s: float = 0.0

    def add(self, steps: int, took_s: float) -> None:
        self.calls += 1
        self.steps += steps
        self.took_s += took_s


class Costs:
    """See the module. What took less than expected is believed at half, since what goes on beside it only ever adds;
    what took more the less, the shorter it was."""

    def __init__(self) -> None:
        self._run_s = [1e-5 * 2.0**size for size in range(64)]
        """Expected seconds of a run by its size, the number of bits of its steps: a call costs before its first one."""
        self._first_s: float | None = None
        """Of a call of few streams with one step, seconds."""
        self._next_s: float | None = None
        """Of each step more in it, which waits for the one before, seconds."""

    def ran(self, steps: int, took_s: float) -> None:
        """A run of ``steps`` took so long, all its threads together."""
        size = steps.bit_length()
        self._run_s[size] = _closer(self._run_s[size], took_s, 0.05)

    def ran_alone(self, of: Alone) -> None:
        """Some of it were these calls."""
        weight = of.took_s / LONG_S
        if of.steps == of.calls:
            self._first_s = _closer(self._first_s or 0.0, of.took_s / of.calls, weight)
        else:
            more_s = max(0.0, of.took_s - of.calls * (self._first_s or 0.0))
            self._next_s = _closer(self._next_s or 0.0, more_s / (of.steps - of.calls), weight)

    def run_s(self, steps: int) -> float:
        """What a run of so many steps takes, seconds."""
        return self._run_s[steps.bit_length()]

    def stream_steps(self, most: int) -> int:
        """Of one stream in a poll, at most ``most``."""
        # As long as nobody has had several steps at once, one more is taken to cost as much as the first.
        step_s = self._next_s if self._next_s is not None else self._first_s
        return min(most, max(STREAM_STEPS_MIN, int(STREAM_S / step_s))) if step_s else most


def _closer(expected: float, found: float, weight: float) -> float:
    return expected + (0.5 if found < expected else min(weight, 0.5)) * (found - expected)
