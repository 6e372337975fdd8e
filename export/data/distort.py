"""Sound made worse on purpose, so that a net hears what stays: tempo, colour, loudness, noise, a narrow line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.data.prompts import RATE

F32 = NDArray[np.float32]
FULL_SCALE = 32768.0
_BANDS = 6


@dataclass(frozen=True)
class Distortion:
    """How far each goes; 0 leaves it out."""

    tempo: float = 0.15
    """Largest change of the logarithm of tempo and pitch together, as when a tape runs faster."""
    colour_db: float = 6.0
    """Largest boost or cut of each of six bands."""
    quieter_db: float = 12.0
    louder_db: float = 4.0
    noise: float = 0.3
    """Share of the sounds with noise, white or dull, 8 to 35 dB below them."""
    line: float = 0.0
    """Share that keeps only what an old telephone line carries, 300 to 3400 Hz."""


def distort(pcm: NDArray[np.int16], how: Distortion, rng: np.random.Generator) -> F32:
    """int16 ``[n]`` -> float32 ``[m]``, full scale being 1; drawn from ``rng``."""
    sound = pcm.astype(np.float32) / np.float32(FULL_SCALE)
    pace = math.exp(rng.uniform(-how.tempo, how.tempo))
    places = np.arange(int(len(sound) / pace)) * pace
    sound = np.interp(places, np.arange(len(sound)), sound).astype(np.float32)
    on_line = rng.random() < how.line
    if (how.colour_db and rng.random() < 0.5) or on_line:
        gains = rng.uniform(-how.colour_db, how.colour_db, _BANDS)
        size = -(-len(sound) // 512) * 512
        spectrum = np.fft.rfft(sound, size)
        hertz = np.linspace(0, RATE / 2, len(spectrum))
        curve = 10 ** (np.interp(hertz, np.linspace(0, RATE / 2, _BANDS), gains) / 20)
        if on_line:
            curve *= 1 / (1 + (300 / np.maximum(hertz, 1)) ** 6) / (1 + (hertz / 3400) ** 12)
        sound = np.fft.irfft(spectrum * curve, size)[: len(sound)].astype(np.float32)
    sound *= np.float32(10 ** (rng.uniform(-how.quieter_db, how.louder_db) / 20))
    if rng.random() < how.noise:
        sound = sound + noise(len(sound), rng) * _level(sound) * np.float32(10 ** (-rng.uniform(8, 35) / 20))
    return sound


def noise(count: int, rng: np.random.Generator) -> F32:
    """float32 ``[count]`` of level 1: white, or a mean over a few samples of it, which is duller."""
    white = rng.standard_normal(count + 8, np.float32)
    width = int(rng.integers(1, 8))
    summed = np.cumsum(white, dtype=np.float64)
    dull = (summed[width : width + count] - summed[:count]).astype(np.float32)
    return dull / np.float32(math.sqrt(width))


def _level(sound: F32) -> np.float32:
    """Root of the mean square, never quite 0."""
    return np.float32(math.sqrt(float(np.mean(sound * sound)) + 1e-9)) if len(sound) else np.float32(0)
