"""Modules as users write them: good ones, odd ones, and ones that cannot be served."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """LSTM, GRU or Elman, 2 x 128, 64 floats in, 10 out."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, batch_first: bool = False) -> None:
        super().__init__()
        self.layers = kind(64, 128, 2, batch_first=batch_first)  # type: ignore[call-arg]
        self.out = nn.Linear(128, 10)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(2, batch, 128) for _ in range(2 if isinstance(self.layers, nn.LSTM) else 1))

    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        y, after = self.layers(steps, states if len(states) > 1 else states[0])
        return self.out(y), *(after if isinstance(after, tuple) else (after,))


class Cell(nn.Module):
    """One step at a time, no time axis; its output is its state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 16)
        self.drop = nn.Dropout(0.5)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 16)

    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(self.drop(steps), h)
        return h, h


class Odd(nn.Module):
    """Batch first, a float16 state that begins elsewhere than at zero, a position counter, a running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.GRU(8, 16, batch_first=True)
        self.start = nn.Parameter(torch.linspace(-1, 1, 16))
        self.place = nn.Embedding(32, 8)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        h = self.start.detach().expand(1, batch, 16).half()
        return h, torch.zeros(batch, dtype=torch.int64), torch.full((batch, 2), -3.0)

    def forward(
        self, x: Tensor, h: Tensor, position: Tensor, total: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        at = position[:, None] + torch.arange(x.shape[1])[None]
        y, after = self.layers(x + self.place(at % 32), h.float())
        totals = total[:, None] + x[..., :2].cumsum(1)
        return (y + totals.sum(-1, keepdim=True), at), after.half(), position + x.shape[1], totals[:, -1]


class Peak(nn.Module):
    """A running maximum that begins at minus infinity, in whole numbers too; no weights at all."""

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.full((batch, 3), float("-inf")), torch.full((2, batch), -(2**62), dtype=torch.int64)

    def forward(self, steps: Tensor, peak: Tensor, most: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        peak = torch.maximum(peak, steps)
        most = torch.maximum(most, steps[:, :2].t().round().long())
        return peak + most.sum(0)[:, None], peak, most


class Loop(nn.Module):
    """Loops over its steps in Python: tracing freezes how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 16), torch.zeros(batch, 16)

    def forward(self, steps: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = []
        for step in steps:
            h, c = self.cell(step, (h, c))
            rows.append(h)
        return torch.stack(rows), h, c


class OneStep(Cell):
    """Has a time axis, but insists on a single step."""

    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps.squeeze(0), h)
        return h[None], h


class Two(Cell):
    """Takes two step inputs as a tuple."""

    def forward(self, steps: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps[0] * steps[1][..., None], h)
        return h, h


class NoInitialState(nn.Module):
    def forward(self, steps: Tensor) -> Tensor:
        return steps


class NoState(Cell):
    def initial_state(self, batch: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        return ()


class ReturnsOne(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        return self.cell(steps, h)


class ReturnsThree(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return h, h, h


class Forgets(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return steps, self.cell(steps, torch.zeros_like(h))


class Draws(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps, h) + torch.rand(1)
        return h, h


class Neighbours(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps, h)
        return h - h.mean(0), h


class LooksAhead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.GRU(8, 16, bidirectional=True)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(2, batch, 16)

    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.layers(steps, h))


class Branches(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        if bool(steps.sum() > 0):
            h = h * 0.5
        h = self.cell(steps, h)
        return h, h


class FixedBatch(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps, h)
        return h.reshape(int(steps.shape[0]), 16) * 1.0, h


class Unsupported(Cell):
    """Uses what ONNX has no operator for."""

    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps, h).cummax(1).values
        return h, h


class Unused(Cell):
    """One of its states is written and never read."""

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return torch.zeros(batch, 16), torch.zeros(batch, 2)

    def forward(self, steps: Tensor, h: Tensor, idle: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps, h)
        return h, h, h[:, :2]


class TakesTuple(Cell):
    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return torch.zeros(batch, 16), torch.zeros(batch, 16)

    def forward(self, steps: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:  # type: ignore[override]
        return states[0], *states


class ChangesDtype(Cell):
    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        h = self.cell(steps, h)
        return h, h.double()


class DifferentStarts(Cell):
    def initial_state(self, batch: int) -> Tensor:
        return torch.arange(batch)[:, None].expand(batch, 16).float()


class Bfloat(Cell):
    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 16, dtype=torch.bfloat16)


class NoBatch(Cell):
    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(16)


class Tokens(nn.Module):
    """An embedding inside, so that the limit of the tokens shows."""

    def __init__(self, labels: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layers = nn.RNN(8, 16)
        self.out = nn.Linear(16, labels)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(1, batch, 16)

    def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = self.layers(self.embedding(tokens), h)
        return self.out(y), h


class Words(nn.Module):
    """Tokens of a tokenizer to logits of the next."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, 8)
        self.layer = nn.GRU(8, 16)
        self.out = nn.Linear(16, size)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(1, batch, 16)

    def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, after = self.layer(self.embedding(tokens), h)
        return self.out(y), after


def words_400() -> Words:
    return Words(400)


def words_100() -> Words:
    return Words(100)


def build() -> nn.Module:
    return Cell()


def needs_argument(size: int) -> nn.Module:
    return Cell()


NOT_A_MODULE = 3
