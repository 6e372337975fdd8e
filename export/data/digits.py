"""Handwritten digits set in motion: which digit, moving which way?

The images are scikit-learn's (8 x 8, 17 shades, 1,797 of them in the order of their writers; the last 360 are held
out). Each moves over a frame that has no edges, what leaves it on one side coming back on the other, so where a digit
stands at one time says nothing of where it goes: of a single frame the direction can only be guessed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.extras import install
from pipeline.errors import ConfigError

Split = Literal["train", "develop", "held_out"]
ROWS: dict[Split, tuple[int, int]] = {"train": (0, 1257), "develop": (1257, 1437), "held_out": (1437, 1797)}
"""Rows of the data set, the last excluded."""
COUNT = 1797
SIZE = 24
"""Height and width of a frame, in pixels."""
DIGIT = 8
DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
"""By turns of an eighth, from right over down."""
LABELS = tuple(f"{digit} {direction}" for digit in range(10) for direction in DIRECTIONS)
"""The class of a sequence: ``3 down left``; number ``8 * digit + direction``."""
SPEEDS = (1.0, 3.0)
"""Least and most pixels a frame."""
NOISE = 12.0
"""Most standard deviation of a pixel, of 255."""
QUALITIES = (60, 95)
"""Of JPEG, where frames are sent through it."""
LICENCE = "BSD-3-Clause (scikit-learn); the digits are from the UCI repository, CC BY 4.0, E. Alpaydin and C. Kaynak"

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Clips:
    """Sequences of frames, ``frames`` uint8 ``[N, T, 24, 24, 1]``, with digit and direction int64 ``[N]`` of each."""

    frames: U8
    digits: I64
    directions: I64

    @property
    def labels(self) -> I64:
        """Numbers of ``LABELS``, int64 ``[N]``."""
        return self.digits * len(DIRECTIONS) + self.directions


@dataclass(frozen=True)
class Digits:
    """Images float32 ``[N, 8, 8]`` from 0 to 1, and what they show, int64 ``[N]``."""

    images: NDArray[np.float32]
    digits: I64

    @property
    def digest(self) -> str:
        """Of images and answers."""
        found = hashlib.sha256(self.images.tobytes())
        found.update(self.digits.tobytes())
        return found.hexdigest()[:16]


def load_digits(split: Split) -> Digits:
    """Images of a split. Raises ConfigError without scikit-learn, or where its data set is another."""
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError:
        raise ConfigError(f"handwritten digits come with the package scikit-learn: {install('export')}") from None
    found = bundled()
    if found.images.shape != (COUNT, DIGIT, DIGIT) or found.target.shape != (COUNT,):
        raise ConfigError(
            f"sklearn.datasets.load_digits: expected {COUNT:,} images of 8 x 8 pixels, found {found.images.shape}"
        )
    first, last = ROWS[split]
    return Digits(found.images[first:last].astype(np.float32) / 16, found.target[first:last].astype(np.int64))


def moving(
    data: Digits, index: I64, frames: int, random: np.random.Generator, *, strength: float = 1.0, jpeg: float = 0.0
) -> Clips:
    """Sets the images ``index`` (int64 ``[N]``) in motion: place, direction, speed, contrast and noise at random.

    ``strength``: how much contrast, background and noise vary, 0 to 1. ``jpeg``: share of the clips whose frames have
    been through JPEG.
    """
    n = len(index)
    # Each as often as the others, so that a guess is right as often as chance has it.
    direction = (random.permutation(n) + random.integers(len(DIRECTIONS))) % len(DIRECTIONS)
    angle = direction * (2 * np.pi / len(DIRECTIONS))
    speed = random.uniform(*SPEEDS, size=n)
    start = random.uniform(0, SIZE, size=(2, n))
    time = np.arange(frames)[:, None]
    y = start[0] + time * speed * np.sin(angle)
    x = start[1] + time * speed * np.cos(angle)
    canvas = np.zeros((n, SIZE, SIZE), np.float32)
    canvas[:, :DIGIT, :DIGIT] = data.images[index]
    shown = _shifted(canvas, y.T, x.T)
    ground = random.uniform(0, 50 * strength, size=(n, 1, 1, 1))
    contrast = random.uniform(255 - 115 * strength, 255, size=(n, 1, 1, 1)) - ground
    noise = random.normal(size=shown.shape) * random.uniform(0, NOISE * strength, size=(n, 1, 1, 1))
    pixels = np.clip(np.rint(ground + contrast * shown + noise), 0, 255).astype(np.uint8)
    for i in np.flatnonzero(random.random(n) < jpeg):
        quality = int(random.integers(*QUALITIES))
        for frame in pixels[i]:
            frame[:] = _through_jpeg(frame, quality)
    return Clips(pixels[..., None], data.digits[index], direction)


def _shifted(canvas: NDArray[np.float32], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float32]:
    """``canvas`` ``[N, S, S]`` moved by ``y`` and ``x`` ``[N, T]`` pixels, bilinear, around the edges."""
    n, frames = y.shape
    whole_y, whole_x = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    part_y = (y - whole_y)[..., None, None].astype(np.float32)
    part_x = (x - whole_x)[..., None, None].astype(np.float32)
    lines = np.arange(SIZE)
    clip = np.arange(n)[:, None, None, None]
    moved = np.zeros((n, frames, SIZE, SIZE), np.float32)
    for step_y, share_y in ((0, 1 - part_y), (1, part_y)):
        for step_x, share_x in ((0, 1 - part_x), (1, part_x)):
            rows = (lines - (whole_y + step_y)[..., None]) % SIZE
            columns = (lines - (whole_x + step_x)[..., None]) % SIZE
            moved += share_y * share_x * canvas[clip, rows[..., :, None], columns[..., None, :]]
    return moved


def encoded(frame: U8, quality: int | None = None) -> bytes:
    """A frame uint8 ``[H, W]`` or ``[H, W, 1]`` as JPEG of a quality, or as PNG."""
    from PIL import Image

    image, coded = Image.fromarray(frame.reshape(frame.shape[:2])), BytesIO()
    if quality is None:
        image.save(coded, "PNG")
    else:
        image.save(coded, "JPEG", quality=quality)
    return coded.getvalue()


def _through_jpeg(frame: U8, quality: int) -> U8:
    from PIL import Image

    return np.asarray(Image.open(BytesIO(encoded(frame, quality))))
