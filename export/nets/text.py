"""The net that goes on with a text: an embedding, recurrent layers, one linear layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from export.nets.stack import Stack, StackShape

PLAIN = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
"""torch's own, all layers in one module: the fastest way to train what needs nothing else."""


@dataclass(frozen=True)
class TextNetShape:
    """Everything that is needed to build a net again from a checkpoint."""

    kind: str = "lstm"
    vocabulary: int = 256
    layers: int = 2
    units: int = 256
    embedding: int = 64
    dropout: float = 0.0
    connect: str = "stacked"
    activation: str = "tanh"
    start: str = "uniform"
    memory: int = 0
    residual: bool = False
    norm: bool = False
    learned: bool = False
    """The last seven: as in ``StackShape``."""

    @property
    def stack(self) -> StackShape | None:
        """What torch's own layers cannot do; None: they can."""
        plain = TextNetShape(self.kind, self.vocabulary, self.layers, self.units, self.embedding, self.dropout)
        if self == plain and self.kind in PLAIN:
            return None
        shared = {f.name: getattr(self, f.name) for f in fields(StackShape) if f.name != "inputs"}
        return StackShape(self.embedding, **shared)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TextNet(nn.Module):
    """Embedding, recurrent layers, one linear layer: tokens to the logits of the next token."""

    def __init__(self, shape: TextNetShape) -> None:
        super().__init__()
        self.shape = shape
        between, stack = shape.dropout if shape.layers > 1 else 0.0, shape.stack
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        self.recurrent: nn.Module
        if stack is None:
            self.recurrent = PLAIN[shape.kind](shape.embedding, shape.units, shape.layers, dropout=between)
            width = shape.units
        else:
            self.recurrent = Stack(stack)
            width = self.recurrent.width
        self.drop = nn.Dropout(shape.dropout)
        self.logits = nn.Linear(width, shape.vocabulary)
        self.state_names = ("h", "c") if shape.kind == "lstm" else ("h",)
        self.output_names = ("logits",)

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """tokens int64 ``[T, B]``, states float32 ``[layers, B, units]`` -> logits float32 ``[T, B, V]``, states."""
        given = self.embedding(tokens)
        if isinstance(self.recurrent, Stack):
            hidden, *after = self.recurrent(given, *states)
            return self.logits(self.drop(hidden)), *after
        hidden, carried = self.recurrent(given, states if len(states) > 1 else states[0])
        return self.logits(self.drop(hidden)), *(carried if isinstance(carried, tuple) else (carried,))

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        if isinstance(self.recurrent, Stack):
            return self.recurrent.initial_state(batch)
        zero = torch.zeros(self.shape.layers, batch, self.shape.units)
        return tuple(zero.clone() for _ in self.state_names)
