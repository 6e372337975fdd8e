"""``eddy demo video``: a digit moves over a canvas, frame by frame; which one is it, and where does it go?

The digits are handwriting that the model did not learn from, where scikit-learn, its source, is installed; else they
are drawn in Pillow's own font. They are sent as PNG frames.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.contract import Contract
from pipeline.errors import ContractError
from services.demos.base import Came, Demo, Sent, percent
from services.screen import Screen

Picture: TypeAlias = NDArray[np.uint8]
FRAMES = 8
PACE_S = 0.2
STEPS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}
"""Direction -> rows and columns; two words, ``down left``, are both."""
WAYS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
SPEED = 2
"""Pixels a frame."""
SIZE = 8
"""Rows and columns of a digit."""
DRAWN_COLUMNS = 5
"""Of a drawn digit: as wide as most that are written."""


class VideoDemo(Demo):
    """See the module."""

    name = "video"
    about = "frames of a moving digit in; which digit, moving which way, after every frame"
    model = "video"
    head = "classify"
    topics = ("frames", "motions")
    waits = "frame to its answer"

    def __init__(self) -> None:
        self._wanted = {f"camera-{digit}": f"{digit} {WAYS[digit % len(WAYS)]}" for digit in range(10)}
        self._digits, self._origin = _written() if find_spec("sklearn") is not None else _drawn()
        self._answers: dict[str, list[str]] = {key: [] for key in self._wanted}

    def streams(self) -> Sequence[str]:
        return list(self._wanted)

    def records(self, contract: Contract) -> Sequence[Sent]:
        shape = contract.steps[0].shape
        if contract.codec.kind != "video" or len(shape) != 3:
            raise ContractError(f"{contract.label}: this demo shows models with the codec video")
        missing = sorted(set(self._wanted.values()) - set(contract.head.labels))
        if missing:
            raise ContractError(
                f"{contract.label}: its labels lack {missing[0]!r}; this demo shows models of moving digits"
            )
        rows = sorted(shape)[1]  # of [H, W, C] and of [C, H, W]: the canvas is square
        sent = [
            Sent(key, frame, at_s=PACE_S * number)
            for key, wanted in self._wanted.items()
            for number, frame in enumerate(_film(self._digits, wanted, rows))
        ]
        return sorted(sent, key=lambda record: record.at_s)

    def show(self, came: Came, screen: Screen) -> bool:
        said = json.loads(came.value)
        answers = self._answers[came.key]
        answers.append(said["label"])
        right = "right" if said["label"] == self._wanted[came.key] else "wrong"
        if len(answers) in (1, 2, 4, FRAMES):
            screen.line(
                came.key,
                f"{said['label']} {percent(said['probability'])} after {len(answers)} frames: {right}",
            )
        return False

    def summary(self) -> str:
        def right(frames: int) -> int:
            return sum(a[frames - 1 : frames] == [self._wanted[key]] for key, a in self._answers.items())

        said = ", ".join(f"{right(n)} after {n}" for n in (1, 2, 4, FRAMES))
        streams = len(self._wanted)
        return f"digit and direction right for {said} frames, of {streams} streams; the digits are {self._origin}"


def _film(digits: Sequence[Picture], wanted: str, rows: int) -> list[bytes]:
    """PNG frames of one digit moving one way, over the edge and in again on the other side."""
    digit, way = wanted.split(" ", 1)
    down, right = np.sum([STEPS[word] for word in way.split()], axis=0).tolist()
    canvas = np.zeros((rows, rows), np.uint8)
    canvas[:SIZE, :SIZE] = digits[int(digit)]
    start = (rows - SIZE) // 2
    frames = []
    for number in range(FRAMES):
        shift = (start + SPEED * number * down, start + SPEED * number * right)
        file = io.BytesIO()
        Image.fromarray(np.roll(canvas, shift, (0, 1))).save(file, "PNG")
        frames.append(file.getvalue())
    return frames


def _written() -> tuple[list[Picture], str]:
    """The first held-out image of each digit, uint8 ``[8, 8]``, white on black."""
    from export.data.digits import load_digits

    data = load_digits("held_out")
    first = [int(np.flatnonzero(data.digits == digit)[0]) for digit in range(10)]
    return [np.rint(255 * data.images[i]).astype(np.uint8) for i in first], "held-out handwriting"


def _drawn() -> tuple[list[Picture], str]:
    """The same, drawn."""
    pictures = []
    for digit in range(10):
        fine = Image.new("L", (16 * SIZE, 16 * SIZE))
        ImageDraw.Draw(fine).text((8 * SIZE, 8 * SIZE), str(digit), 255, ImageFont.load_default(8 * SIZE), anchor="mm")
        columns = 2 if digit == 1 else DRAWN_COLUMNS
        small = fine.crop(fine.getbbox()).resize((columns, SIZE), Image.Resampling.BOX)
        whole = Image.new("L", (SIZE, SIZE))
        whole.paste(small, ((SIZE - columns) // 2, 0))
        pictures.append(np.asarray(whole))
    return pictures, "drawn in a font (install scikit-learn for handwriting)"
