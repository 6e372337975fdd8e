"""``eddy demo video``: a digit moves over a canvas, frame by frame; which one is it, and where does it go?

The digits are drawn with Pillow's own font and sent as PNG frames; the model learnt from handwriting.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.contract import Contract
from pipeline.errors import ContractError
from services.demos.base import Came, Demo, Sent, percent
from services.screen import Screen

FRAMES = 8
PACE_S = 0.2
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
"""Name -> rows and columns that it moves by, a frame."""
SIZE = 8
"""Rows and columns of a digit."""
FINE = 4
"""Drawn so many times finer, then averaged: soft edges, as a scanned digit has."""


class VideoDemo(Demo):
    """See the module."""

    name = "video"
    about = "frames of a moving digit in; which digit, moving which way, after every frame"
    model = "video"
    head = "classify"
    topics = ("frames", "motions")
    waits = "frame to its answer"

    def __init__(self) -> None:
        ways = list(DIRECTIONS)
        self._wanted = {f"camera-{digit}": f"{digit} {ways[digit % len(ways)]}" for digit in range(10)}
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
            for number, frame in enumerate(_film(wanted, rows))
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
        return f"digit and direction right for {said} frames, of {len(self._wanted)} streams"


def _film(wanted: str, rows: int) -> list[bytes]:
    """PNG frames of one digit moving one way, over the edge and in again on the other side."""
    digit, way = wanted.split()
    down, right = DIRECTIONS[way]
    drawn = _digit(digit)
    canvas = np.zeros((rows, rows), np.uint8)
    canvas[:SIZE, :SIZE] = drawn
    start = (rows - SIZE) // 2
    frames = []
    for number in range(FRAMES):
        picture = np.roll(canvas, (start + 2 * number * down, start + 2 * number * right), (0, 1))
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        frames.append(file.getvalue())
    return frames


def _digit(digit: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 ``[8, 8]``, white on black."""
    side = SIZE * FINE
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).text((side / 2, side / 2), digit, 255, ImageFont.load_default(side), anchor="mm")
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))
