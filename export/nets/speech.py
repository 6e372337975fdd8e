"""The net that hears: samples in, scores of characters out, a step being a hop of 30 ms.

Log-mel energies, two causal convolutions, recurrent layers, one linear layer. What a step needs of the steps before it
(samples that frames overlap, the convolutions' last inputs, h and c) is its state, so a stream cut into single steps
gives what the whole sound gives at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

RATE = 8000
"""Samples a second."""
FRAME, HOP, FFT = 200, 80, 256
"""Samples: the energies of 25 ms every 10 ms."""
STRIDE = 3
STEP = STRIDE * HOP
"""Samples of a step."""
STEP_S = STEP / RATE
KERNEL = 5
"""Inputs that a convolution looks at: the newest and four before it."""
_LOWEST_HZ = 60.0
_FLOOR = 1e-5
"""Added to an energy before its logarithm: about what 16-bit silence has."""


@dataclass(frozen=True)
class SpeechNetShape:
    """Everything that is needed to build a net again from a checkpoint."""

    outputs: int = 29
    """The blank, and the characters."""
    mels: int = 40
    channels: int = 192
    layers: int = 3
    units: int = 256
    dropout: float = 0.2
    sounds: int = 0
    """Outputs of the second linear layer, which helps in training and is not exported; 0: none."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Heard(NamedTuple):
    """What ``SpeechNet.hear`` gives: float32 ``[T, B, units]`` after the last and the middle layer; then states."""

    last: Tensor
    middle: Tensor
    features: Tensor
    hidden: Tensor
    h: Tensor
    c: Tensor


class LogMel(nn.Module):
    """Log energies in mel bands, by convolution, the weights being a Hann window times the Fourier matrix.

    Mel scale: 2595 log10(1 + Hz / 700) (O'Shaughnessy, Speech Communication, 1987); the bands are triangles of height 1
    that begin and end at their neighbours' peaks. Scaled so that speech lies about -2..2.
    """

    fourier: Tensor
    bank: Tensor

    def __init__(self, mels: int) -> None:
        super().__init__()
        sample = torch.arange(FRAME, dtype=torch.float64)
        frequency = torch.arange(FFT // 2 + 1, dtype=torch.float64)
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * (sample + 0.5) / FRAME)
        angle = 2 * math.pi * frequency[:, None] * sample / FFT
        fourier = torch.cat([torch.cos(angle), torch.sin(angle)]) * window
        scale = torch.linspace(_mel(_LOWEST_HZ), _mel(RATE / 2), mels + 2, dtype=torch.float64)
        edges = 700 * (10 ** (scale / 2595) - 1)
        low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        hertz = frequency * RATE / FFT
        bank = torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)).clamp(min=0)
        # They follow from the constants above, so a checkpoint does without them.
        self.register_buffer("fourier", fourier[:, None].float(), persistent=False)
        self.register_buffer("bank", bank[:, :, None].float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """float32 ``[B, n]``, full scale being 1 -> ``[B, mels, (n - FRAME) // HOP + 1]``."""
        waves = nn.functional.conv1d(samples[:, None], self.fourier, stride=HOP)
        real, imaginary = waves.chunk(2, dim=1)
        energy = nn.functional.conv1d(real * real + imaginary * imaginary, self.bank)
        return (torch.log(energy + _FLOOR) + 4) / 4


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


class Dropout(nn.Module):
    """One mask for all of a clip: what is dropped stays dropped over time, so nothing can look past it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, time_axis: int) -> Tensor:
        """Any shape, unchanged in eval mode."""
        if not self.training or not self.share:
            return x
        shape = list(x.shape)
        shape[time_axis] = 1
        return x * ((torch.rand(shape) >= self.share).to(x.dtype) / (1 - self.share))


class SpeechNet(nn.Module):
    """See the module."""

    state_names = ("overlap", "features", "hidden", "h", "c")
    output_names = ("logits",)

    def __init__(self, shape: SpeechNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.logmel = LogMel(shape.mels)
        self.first = nn.Conv1d(shape.mels, shape.channels, KERNEL)
        self.second = nn.Conv1d(shape.channels, shape.channels, KERNEL, stride=STRIDE)
        self.enter = nn.Linear(shape.channels, shape.units)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.units) for _ in range(shape.layers))
        self.recurrent = nn.ModuleList(nn.LSTM(shape.units, shape.units) for _ in range(shape.layers))
        self.drop = Dropout(shape.dropout)
        self.logits = nn.Linear(shape.units, shape.outputs)
        self.sounds = nn.Linear(shape.units, shape.sounds) if shape.sounds else None

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        shape = self.shape
        return (
            torch.zeros(batch, FRAME - HOP),
            torch.zeros(batch, shape.mels, KERNEL - 1),
            torch.zeros(batch, shape.channels, KERNEL - STRIDE),
            torch.zeros(shape.layers, batch, shape.units),
            torch.zeros(shape.layers, batch, shape.units),
        )

    def forward(
        self, pcm: Tensor, overlap: Tensor, features: Tensor, hidden: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Tensor, ...]:
        """pcm float32 ``[T, B, STEP]``, full scale being 1 -> logits float32 ``[T, B, outputs]``, states."""
        samples = torch.cat([overlap, pcm.transpose(0, 1).flatten(1)], 1)
        heard = self.hear(self.logmel(samples), features, hidden, h, c)
        return self.logits(heard.last), samples[:, HOP - FRAME :], heard.features, heard.hidden, heard.h, heard.c

    def hear(self, mels: Tensor, features: Tensor, hidden: Tensor, h: Tensor, c: Tensor) -> Heard:
        """From log-mel energies ``[B, mels, STRIDE * T]`` on."""
        mels = torch.cat([features, mels], 2)
        first = torch.cat([hidden, self.drop(torch.relu(self.first(mels)), 2)], 2)
        x = self.enter(self.drop(torch.relu(self.second(first)).permute(2, 0, 1), 0))
        middle, hs, cs = x, [], []
        for i, (norm, layer) in enumerate(zip(self.norms, self.recurrent)):
            y, (last_h, last_c) = layer(norm(x), (h[i : i + 1], c[i : i + 1]))
            x = x + self.drop(y, 0)
            hs.append(last_h)
            cs.append(last_c)
            if i == (self.shape.layers - 1) // 2:
                middle = x
        return Heard(x, middle, mels[:, :, 1 - KERNEL :], first[:, :, STRIDE - KERNEL :], torch.cat(hs), torch.cat(cs))
