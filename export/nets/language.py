"""The net that tells a text's language: a few bytes at a time, recurrent layers over them, one linear layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.nets.stack import Stack, StackShape


@dataclass(frozen=True)
class LanguageNetShape:
    """Everything that is needed to build a net again from a checkpoint."""

    languages: int
    kind: str = "mingru"
    """Of the recurrent layers."""
    layers: int = 2
    units: int = 192
    embedding: int = 32
    width: int = 6
    """Bytes that are seen at once."""
    grams: int = 256
    """Patterns that are looked for in them."""
    memory: int = 200
    """Bytes that the gates are set to remember at first."""
    dropout: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class LanguageNet(nn.Module):
    """Bytes to the logits of the language of all that came so far, after every byte."""

    output_names = ("logits",)

    def __init__(self, shape: LanguageNetShape) -> None:
        """Raises ConfigError for a kind of layer that there is not."""
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(256, shape.embedding)
        self.grams = nn.Linear(shape.embedding * shape.width, shape.grams)
        # A linear recurrence sees only what one layer below it made of the bytes: two of them, normalised, with a
        # short cut, do what a GRU does at a third of the cost of training.
        self.recurrent = Stack(
            StackShape(
                inputs=shape.grams,
                kind=shape.kind,
                layers=shape.layers,
                units=shape.units,
                memory=shape.memory,
                dropout=shape.dropout,
                residual=True,
                norm=True,
            )
        )
        self.drop = nn.Dropout(shape.dropout)
        self.logits = nn.Linear(shape.units, shape.languages)
        self.state_names = (*self.recurrent.state_names, "before")

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """tokens int64 ``[T, B]``, the layers' states float32 ``[layers, B, units]`` and the embeddings of the bytes
        before, float32 ``[width - 1, B, embedding]`` -> logits float32 ``[T, B, languages]``, states."""
        *carried, before = states
        time, width = tokens.shape[0], self.shape.width
        seen = torch.cat([before, self.embedding(tokens)])
        near = torch.cat([seen[i : i + time] for i in range(width)], 2)
        hidden, *after = self.recurrent(self.drop(torch.relu(self.grams(near))), *carried)
        return self.logits(self.drop(hidden)), *after, seen[time:]

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        before = torch.zeros(self.shape.width - 1, batch, self.shape.embedding)
        return *self.recurrent.initial_state(batch), before
