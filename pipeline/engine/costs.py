"""What runs cost on this machine, learnt from those that were. No clock: the engine says how long they took."""

from __future__ import annotations

import math
from dataclasses import dataclass

STREAM_S = 0.004
"""One stream's steps in a poll take about so long, from half of it to twice: its neighbours wait for them (S3)."""


@dataclass(slots=True)
class Few:
    """A thread's calls of a few streams in one run."""

    calls: int = 0
    took_s: float = 0.0
    """What all of them took for each of their streams."""
    least_s: float = math.inf
    """What the quickest took."""
    longest: tuple[int, float] = (0, 0.0)
    """Of the one with the largest T: that, and what it took for each of its streams."""

    def add(self, steps: int, streams: int, took_s: float) -> None:
        """A call with T = ``steps`` and B = ``streams``."""
        self.calls += 1
        self.took_s += took_s / streams
        self.least_s = min(self.least_s, took_s)
        if steps > self.longest[0]:
            self.longest = steps, took_s / streams

    @property
    def part(self) -> tuple[int, float]:
        """One stream's steps and what they took: a call, or without a time axis as many calls as steps."""
        return self.longest if self.longest[0] > 1 else (self.calls, self.took_s)


class Costs:
    """See the module."""

    def __init__(self) -> None:
        self._run_s = [1e-5 * 2.0**size for size in range(64)]
        """Expected seconds of a run by its size, the number of bits of its steps: a call costs before its first one."""
        self._stream_steps = math.inf
        self._call_s = math.inf
        """Of the quickest call; one of more steps never takes less."""

    def ran(self, steps: int, took_s: float) -> None:
        """A run of ``steps`` took so long, all its threads together."""
        size = steps.bit_length()
        # Sooner believed when it is less: on a thread a run also waits for the interpreter's lock.
        weight = 0.05 if took_s > self._run_s[size] else 0.5
        self._run_s[size] += weight * (took_s - self._run_s[size])

    def ran_few(self, few: Few) -> None:
        """The same run's calls of a few streams, of one thread.

        A stream's part shrinks where it took too long, and grows again where it had all it may have and took little. A
        device with a high price for each call would only get more of them: such a part may take as long as two calls.
        """
        self._call_s = min(few.least_s, self._call_s * 1.001)  # what it was long ago is forgotten
        aim_s = max(STREAM_S, self._call_s)
        steps, took_s = few.part
        if took_s > 2 * aim_s:
            # To a quarter at most: one may have been late.
            fitting = max(1.0, steps / 4, steps * aim_s / took_s)
            self._stream_steps = min(self._stream_steps, fitting)
        elif took_s < aim_s / 2 and steps >= self._stream_steps / 2:
            self._stream_steps *= 2

    def run_s(self, steps: int) -> float:
        """What a run of so many steps takes, seconds."""
        return self._run_s[steps.bit_length()]

    def stream_steps(self, most: int) -> int:
        """Of one stream in a poll, at most ``most``."""
        return int(min(most, self._stream_steps))
