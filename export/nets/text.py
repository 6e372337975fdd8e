"""The net that goes on with a text: an embedding, recurrent layers, one linear layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

KINDS = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True)
class TextNetShape:
    """Everything that is needed to build a net again from a checkpoint."""

    kind: str = "lstm"
    vocabulary: int = 256
    layers: int = 2
    units: int = 256
    embedding: int = 64
    dropout: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TextNet(nn.Module):
    """Embedding, recurrent layers, one linear layer: tokens to the logits of the next token."""

    def __init__(self, shape: TextNetShape) -> None:
        super().__init__()
        self.shape = shape
        between = shape.dropout if shape.layers > 1 else 0.0
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        self.recurrent = KINDS[shape.kind](shape.embedding, shape.units, shape.layers, dropout=between)
        self.drop = nn.Dropout(shape.dropout)
        self.logits = nn.Linear(shape.units, shape.vocabulary)
        self.state_names = ("h", "c") if shape.kind == "lstm" else ("h",)
        self.output_names = ("logits",)

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """tokens int64 ``[T, B]``, states float32 ``[layers, B, units]`` -> logits float32 ``[T, B, V]``, states."""
        carried = states if len(states) > 1 else states[0]
        hidden, after = self.recurrent(self.embedding(tokens), carried)
        return self.logits(self.drop(hidden)), *(after if isinstance(after, tuple) else (after,))

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        zero = torch.zeros(self.shape.layers, batch, self.shape.units)
        return tuple(zero.clone() for _ in self.state_names)
