"""The net that watches a digit move: a small CNN over each frame, a recurrent layer over what it saw, two answers.

Convolutions go around the edges of a frame, as the digits do: what a digit looks like does not depend on where it is.
Motion is no sum of what two frames show but their product: the glance at a frame is multiplied by the one before it,
which is part of the state.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

CELLS = 144
"""Places of the map that glances are cast at: 12 x 12."""


@dataclass(frozen=True)
class VideoNetShape:
    """Everything that is needed to build a net again from a checkpoint."""

    digits: int = 10
    directions: int = 8
    channels: int = 16
    """Of the first convolution; the others have twice as many."""
    where: int = 4
    """Channels of the map that glances are cast at."""
    glances: int = 64
    """Numbers that say where the digit is."""
    units: int = 128
    dropout: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class VideoNet(nn.Module):
    """Frames to the logits of digit and direction together, ``directions * digit + direction``, after each of them."""

    steps_name = "frames"
    state_names = ("h", "glance")
    output_names = ("logits",)

    def __init__(self, shape: VideoNetShape) -> None:
        super().__init__()
        self.shape = shape
        few, many = shape.channels, 2 * shape.channels
        self.first = nn.Conv2d(1, few, 3)
        self.second = nn.Conv2d(few, many, 3)
        self.third = nn.Conv2d(many, many, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (few, many, many))
        self.places = nn.Conv2d(few, shape.where, 1)
        self.now = nn.Linear(CELLS * shape.where, shape.glances)
        self.next = nn.Linear(CELLS * shape.where, shape.glances)
        self.seen = nn.Linear(many + shape.glances, shape.units)
        self.recurrent = nn.GRU(shape.units, shape.units)
        self.drop = nn.Dropout(shape.dropout)
        self.digit = nn.Linear(shape.units, shape.digits)
        self.direction = nn.Linear(shape.units, shape.directions)

    def forward(self, frames: Tensor, h: Tensor, glance: Tensor) -> tuple[Tensor, ...]:
        """frames uint8 ``[T, B, 24, 24, 1]``, h float32 ``[1, B, units]``, glance float32 ``[1, B, glances]`` ->
        logits float32 ``[T, B, 80]``, h, glance."""
        digit, direction, *states = self.both(frames, h, glance)
        joint = digit[..., :, None] + direction[..., None, :]
        return joint.flatten(-2), *states

    def both(self, frames: Tensor, h: Tensor, glance: Tensor) -> tuple[Tensor, ...]:
        """The logits of each, ``[T, B, digits]`` and ``[T, B, directions]``, and the states: they are learned apart."""
        time, batch = frames.shape[:2]
        x = frames.reshape(time * batch, 1, *frames.shape[2:4]).to(torch.float32) / 255
        # Light and contrast are the camera's, not the digit's.
        x = x - x.mean(dim=(2, 3), keepdim=True)
        x = x * torch.rsqrt((x * x).mean(dim=(2, 3), keepdim=True) + 1e-4)
        x = nn.functional.max_pool2d(torch.relu(self.norms[0](self.first(around(x)))), 2)
        places = self.places(x).flatten(1)
        x = nn.functional.max_pool2d(torch.relu(self.norms[1](self.second(around(x)))), 2)
        what = torch.relu(self.norms[2](self.third(around(x)))).amax(dim=(2, 3))
        before = torch.cat([glance, self.next(places).reshape(time, batch, -1)])
        moved = self.now(places).reshape(time, batch, -1) * before[:time]
        seen = torch.cat([what.reshape(time, batch, -1), moved], 2)
        hidden, after = self.recurrent(torch.relu(self.seen(self.drop(seen))), h)
        hidden = self.drop(hidden)
        return self.digit(hidden), self.direction(hidden), after, before[time:]

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, batch, self.shape.units), torch.zeros(1, batch, self.shape.glances)


def around(x: Tensor) -> Tensor:
    """``[N, C, H, W]`` with a border of one pixel from the opposite side: ``[N, C, H + 2, W + 2]``."""
    x = torch.cat([x[:, :, -1:], x, x[:, :, :1]], 2)
    return torch.cat([x[..., -1:], x, x[..., :1]], 3)
