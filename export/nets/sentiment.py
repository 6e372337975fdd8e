"""Words of a conversation to the mood of its newest message, by a GRU that a line end resets.

The net begins a message anew by itself: at a line end both gates of the GRU are shut by a weight that is not learned,
so of what went before less than one part in 10^17 is left, and a conversation's twentieth message is read like its
first. The recurrence stays one node with a free time axis, however many messages a call holds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

SHUT = -40.0
"""What a line end adds to the gates before their sigmoid: exp(-40) is 4e-18."""


@dataclass(frozen=True)
class SentimentNetShape:
    """Everything that is needed to build a net again from a checkpoint."""

    vocabulary: int
    newline: int
    """Token of a line end."""
    unknown: int
    """Token of words that are not in the vocabulary."""
    embedding: int = 200
    units: int = 128
    dropout: float = 0.5
    """Share of the last hidden state that is dropped in training."""
    embedding_dropout: float = 0.3
    """Share of a word's numbers that is dropped in training, the same ones for all words of a message."""
    word_dropout: float = 0.1
    """Share of a message's words that are taken for unknown in training."""
    classes: int = 3
    members: int = 3
    """Readers side by side."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class MessageGRU(nn.Module):
    """A GRU over ``[T, B, inputs]`` that begins anew wherever ``ends`` is 1: torch's, with one more input."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.units = units
        bound = 1 / math.sqrt(units)
        self.W_hx = nn.Parameter(torch.empty(3 * units, inputs).uniform_(-bound, bound))
        self.W_hh = nn.Parameter(torch.empty(3 * units, units).uniform_(-bound, bound))
        self.b_hx = nn.Parameter(torch.empty(3 * units).uniform_(-bound, bound))
        self.b_hh = nn.Parameter(torch.empty(3 * units).uniform_(-bound, bound))
        # torch's order: reset gate, update gate, new state. With both gates 0, h' is the new state, and that no
        # longer sees h.
        shut = torch.cat([torch.full((2 * units, 1), SHUT), torch.zeros(units, 1)])
        self.shut: Tensor
        self.register_buffer("shut", shut, persistent=False)

    def forward(self, steps: Tensor, ends: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """steps float32 ``[T, B, inputs]``, ends float32 ``[T, B]``, h ``[1, B, units]`` -> ``[T, B, units]``, h."""
        weights = [torch.cat([self.W_hx, self.shut], 1), self.W_hh, self.b_hx, self.b_hh]
        given = torch.cat([steps, ends[..., None]], -1)
        hidden, after = torch.gru(given, h, weights, True, 1, 0.0, self.training, False, False)
        return hidden, after


class Reader(nn.Module):
    """One member: embedding, GRU, linear layer."""

    def __init__(self, shape: SentimentNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        nn.init.normal_(self.embedding.weight, 0, 0.15)
        self.recurrent = MessageGRU(shape.embedding, shape.units)
        self.drop = nn.Dropout(shape.dropout)
        self.logits = nn.Linear(shape.units, shape.classes)

    def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int64 ``[T, B]``, h float32 ``[1, B, units]`` -> hidden float32 ``[T, B, units]``, h."""
        ends = tokens == self.shape.newline
        if self.training:
            lost = (torch.rand(tokens.shape) < self.shape.word_dropout) & ~ends
            tokens = tokens.masked_fill(lost, self.shape.unknown)
        steps = self.embedding(tokens)
        if self.training:
            kept = 1 - self.shape.embedding_dropout
            steps = steps * torch.bernoulli(torch.full((1, *steps.shape[1:]), kept)) / kept
        hidden, after = self.recurrent(steps, ends.to(steps.dtype), h)
        return hidden, after


class SentimentNet(nn.Module):
    """Several readers that were begun differently, side by side: their logits' mean is the answer (see the module)."""

    state_names = ("h",)
    output_names = ("logits",)

    def __init__(self, shape: SentimentNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.members = nn.ModuleList(Reader(shape) for _ in range(shape.members))

    def readers(self) -> list[Reader]:
        return [m for m in self.members if isinstance(m, Reader)]

    def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int64 ``[T, B]``, h float32 ``[members, B, units]`` -> logits float32 ``[T, B, classes]``, h."""
        logits, after = list[Tensor](), list[Tensor]()
        for i, reader in enumerate(self.readers()):
            hidden, state = reader(tokens, h[i : i + 1])
            logits.append(reader.logits(hidden))
            after.append(state)
        return torch.stack(logits).mean(0), torch.cat(after)

    def at(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Messages side by side, each from its line end on: int64 ``[T, B]``, and where each has its last word, int64
        ``[B]`` -> each member's logits ``[members, B, classes]``."""
        zero = torch.zeros(1, tokens.shape[1], self.shape.units)
        places = last, torch.arange(len(last))
        return torch.stack([r.logits(r.drop(r(tokens, zero)[0][places])) for r in self.readers()])

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """As a line end leaves it: a conversation's first message is read like any other."""
        with torch.no_grad():
            newline, zero = torch.full((1, 1), self.shape.newline), torch.zeros(1, 1, self.shape.units)
            one = torch.ones(1, 1)
            h = torch.cat([r.recurrent(r.embedding(newline), one, zero)[1] for r in self.readers()])
        return (h.expand(-1, batch, -1).clone(),)
