"""Copy memory: symbols are shown, nothing happens for a long time, then they are asked for.

What a net can answer, it has kept in its state. The task goes back to Hochreiter & Schmidhuber, Long short-term memory,
1997; its form is that of Arjovsky et al., arXiv:1511.06464.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from export.nets.stack import Stack, StackShape
from export.training.loop import Loss, Problem, Score

Copying: TypeAlias = tuple[Tensor, Tensor]
"""What is shown, float32 ``[T, B, symbols + 2]``, and what was to be kept, int64 ``[items, B]``."""
DEVELOPMENT = 512
"""Streams that the score is taken on."""


@dataclass(frozen=True)
class CopyShape:
    """How much is to be kept, and for how long."""

    length: int
    """Steps between the last symbol shown and the first that is asked for."""
    items: int = 2
    symbols: int = 8
    batch: int = 64
    updates: int = 50
    """Of one epoch."""
    window: int = 0
    """Steps that the error goes back in training; the state is carried on. 0: as far as it must."""

    @property
    def inputs(self) -> int:
        """One for each symbol, one for nothing, one for the question."""
        return self.symbols + 2

    def draw(self, random: np.random.Generator, batch: int) -> Copying:
        """``items`` symbols, ``length`` times nothing, ``items`` times the question."""
        kept = random.integers(self.symbols, size=(self.items, batch))
        blank = np.full((self.length, batch), self.symbols)
        asked = np.full((self.items, batch), self.symbols + 1)
        shown = torch.from_numpy(np.concatenate([kept, blank, asked]))
        return nn.functional.one_hot(shown, self.inputs).float(), torch.from_numpy(kept)


class CopyNet(nn.Module):
    """A stack of recurrent layers and one linear layer."""

    def __init__(self, stack: StackShape, symbols: int) -> None:
        super().__init__()
        self.stack = Stack(stack)
        self.logits = nn.Linear(self.stack.width, symbols)

    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        hidden, *after = self.stack(steps, *states)
        return self.logits(hidden), *after

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return self.stack.initial_state(batch)


class CopyProblem(Problem[Copying]):
    """To answer with the symbols that were shown. The score is the share of wrong answers."""

    task: ClassVar[str] = "copying"
    net: CopyNet
    unit = "bits per symbol"
    perfect: ClassVar[float] = 0.0

    def __init__(self, shape: CopyShape, net: CopyNet) -> None:
        self.shape, self.net = shape, net

    @property
    def score_unit(self) -> str:
        return "wrong answers, share"

    def settings(self) -> dict[str, Any]:
        return {"copying": asdict(self.shape), "stack": self.net.stack.shape.to_dict()}

    def batches(self, epoch: int, seed: int) -> list[Copying]:
        random = np.random.default_rng([seed, epoch])
        return [self.shape.draw(random, self.shape.batch) for _ in range(self.shape.updates)]

    def loss(self, batch: Copying, states: tuple[Tensor, ...] | None) -> Loss:
        given, kept = batch
        nats = self.nats(self.answers(given, self.shape.window), kept)
        return Loss(nats, float(nats.detach()) / float(np.log(2)))

    def answers(self, given: Tensor, window: int = 0) -> Tensor:
        """Logits where a symbol was asked for, ``[items, B, symbols]``, in windows that the error does not cross."""
        states, parts = self.net.initial_state(given.shape[1]), []
        for part in torch.split(given, window or len(given)):
            logits, *after = self.net(part, *states)
            states = tuple(s.detach() for s in after)
            parts.append(logits)
        return torch.cat(parts)[-self.shape.items :]

    @staticmethod
    def nats(answers: Tensor, kept: Tensor) -> Tensor:
        return nn.functional.cross_entropy(answers.flatten(0, 1), kept.flatten())

    def develop(self) -> Score:
        given, kept = self.shape.draw(np.random.default_rng(2**32), DEVELOPMENT)
        wrong = (self.answers(given).argmax(-1) != kept).float().mean()
        return Score(float(wrong))
