"""Another sample rate, in a stream: a windowed sinc, whose memory is a bounded number of samples.

Filter after J. O. Smith, "Digital Audio Resampling Home Page" (band-limited interpolation): h(t) = sinc(c t) w(t), c
the cutoff over the input's Nyquist frequency and w a Kaiser window over ``ZEROS`` zero crossings of the slower rate on
each side. Its coefficients are whole numbers, so every sum is exact in float64: a stream's samples are the same however
its bytes were cut, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipeline.columns import AnyArray

ZEROS = 16
BETA = 8.0
"""Of the Kaiser window: what lies beyond the cutoff is about 80 dB down."""
ROLLOFF = 0.91
"""Cutoff over the slower rate's Nyquist frequency: the window's transition ends there."""
UNIT = 2**18
"""What a phase's coefficients add up to; times an int16 and added up it stays far below 2**53."""
TABLE_MAX = 2**18
"""Coefficients of one pair of rates."""
PHASE_MIN = 16
"""Samples of one fraction of a place that are worth a call of their own."""


@dataclass(slots=True)
class Position:
    """Where a stream stands between two rates. ``behind``: how many samples of those that came lie behind the place of
    the next one to be computed; ``phase``: that place's fraction, in parts of ``Resampler.up``. New: 0, 0."""

    behind: int = 0
    phase: int = 0


class Resampler:
    """From ``source`` to ``target`` samples a second. Raises ValueError where their ratio needs too large a table."""

    def __init__(self, source: int, target: int) -> None:
        common = math.gcd(source, target)
        self.up, self.down = target // common, source // common
        self.reach = math.ceil(ZEROS * max(1.0, source / target))
        """Samples on each side that one sample is computed from; also the delay of the last one."""
        self.memory = 2 * self.reach - 1
        """Samples to be kept of a stream."""
        if self.up * 2 * self.reach > TABLE_MAX:
            raise ValueError(f"{source} to {target} a second are {self.up}/{self.down}: too many different places")
        cutoff = ROLLOFF * min(1.0, target / source)
        # Row p: a sample at the place i + p / up, from the samples i - reach + 1 to i + reach.
        t = np.arange(self.up)[:, None] / self.up - np.arange(1 - self.reach, self.reach + 1)
        window = np.i0(BETA * np.sqrt(np.clip(1 - (t / self.reach) ** 2, 0, None))) / np.i0(BETA)
        taps = np.sinc(cutoff * t) * window
        self._taps = np.rint(taps / taps.sum(axis=1, keepdims=True) * UNIT)
        # Silence stays silence and full scale full scale, exactly: what rounding left goes to the middle.
        self._taps[:, self.reach - 1] += UNIT - self._taps.sum(axis=1)

    def run(self, kept: AnyArray, position: Position, samples: AnyArray) -> tuple[AnyArray, AnyArray]:
        """int16 ``[n]`` -> int16 ``[m]``, and the samples to keep, int16 ``[memory]``; moves ``position``.

        ``kept``: int16 ``[memory]``, those of the call before (zeros: a new stream). All that can be computed is.
        """
        line = np.concatenate([kept, samples])
        here = len(line) - position.behind - len(samples)  # of the next sample, in the line
        last = len(line) - self.reach - 1
        # The k-th next sample is at here + (phase + k * down) / up.
        n = max(0, -(-((last - here + 1) * self.up - position.phase) // self.down))
        out = np.empty(n, np.int16)
        if n:
            windows = sliding_window_view(line.astype(np.float64), 2 * self.reach)[here - self.reach + 1 :]
            compute = self._by_phases if n >= PHASE_MIN * self.up else self._one_by_one
            np.clip(np.rint(compute(windows, position.phase, n) / UNIT), -32768, 32767, out=out, casting="unsafe")
        moved, position.phase = divmod(position.phase + n * self.down, self.up)
        position.behind += len(samples) - moved
        return out, line[len(line) - self.memory :]

    def _by_phases(self, windows: AnyArray, phase: int, n: int) -> AnyArray:
        """The sums of ``n`` samples, float64; those of one fraction lie evenly apart and share their coefficients."""
        sums = np.empty(n)
        for k in range(self.up):
            place, fraction = divmod(phase + k * self.down, self.up)
            count = len(sums[k :: self.up])
            sums[k :: self.up] = np.einsum("ij,j->i", windows[place :: self.down][:count], self._taps[fraction])
        return sums

    def _one_by_one(self, windows: AnyArray, phase: int, n: int) -> AnyArray:
        """The same, of few samples: their windows and coefficients are gathered."""
        place, fraction = np.divmod(phase + np.arange(n) * self.down, self.up)
        sums: AnyArray = np.einsum("ij,ij->i", windows[place], self._taps[fraction])
        return sums
