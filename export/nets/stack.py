"""Recurrent layers in a net: on top of each other, or each connected with all below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.nets.cells import ElmanLayer, GRULayer, Layer, LSTMLayer, MinGRULayer
from pipeline.errors import ConfigError

CONNECTIONS = ("stacked", "dense")


@dataclass(frozen=True)
class StackShape:
    """Everything that is needed to build a stack again."""

    inputs: int
    kind: str = "lstm"
    layers: int = 2
    units: int = 128
    """Of every layer."""
    connect: str = "stacked"
    """``stacked``: a layer sees the one below it, the output the last; ``dense``: a layer sees the input and all layers
    below it, the output all layers (Graves, arXiv:1308.0850, section 2)."""
    activation: str = "tanh"
    """Of Elman layers."""
    start: str = "uniform"
    """Of Elman layers' recurrent weights."""
    memory: int = 0
    """Steps that the gates of the others are set to keep at first."""
    dropout: float = 0.0
    """Share of what goes from layer to layer that is dropped in training; the same units all along a window."""
    residual: bool = False
    """Each layer adds to what the layer below it gave."""
    norm: bool = False
    """Layer normalisation of what each layer sees."""
    learned: bool = False
    """The initial state is learned; else it is zero."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


KINDS: dict[str, Callable[[StackShape, int], Layer]] = {
    "elman": lambda shape, inputs: ElmanLayer(inputs, shape.units, shape.activation, shape.start),
    "lstm": lambda shape, inputs: LSTMLayer(inputs, shape.units, shape.memory),
    "gru": lambda shape, inputs: GRULayer(inputs, shape.units, shape.memory),
    "mingru": lambda shape, inputs: MinGRULayer(inputs, shape.units, shape.memory),
}


class Stack(nn.Module):
    """``[T, B, inputs]`` and states ``[layers, B, units]`` -> ``[T, B, width]`` and states."""

    def __init__(self, shape: StackShape) -> None:
        """Raises ConfigError for a kind or a connection that there is not."""
        super().__init__()
        for what, value, known in (("net", shape.kind, tuple(KINDS)), ("connection", shape.connect, CONNECTIONS)):
            if value not in known:
                raise ConfigError(f"{what} {value!r}: expected one of {', '.join(known)}")
        self.shape = shape
        dense = shape.connect == "dense"
        below = [
            shape.inputs + i * shape.units if dense else (shape.units if i else shape.inputs)
            for i in range(shape.layers)
        ]
        layers = [KINDS[shape.kind](shape, inputs) for inputs in below]
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(inputs) for inputs in below if shape.norm)
        self.drop = nn.Dropout1d(shape.dropout)
        self.width = shape.units * (shape.layers if dense else 1)
        self.state_names = layers[0].names
        initial = torch.zeros(len(self.state_names), shape.layers, 1, shape.units)
        self.initial = nn.Parameter(initial) if shape.learned else None

    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        dense = self.shape.connect == "dense"
        given, outputs, after = steps, list[Tensor](), list[tuple[Tensor, ...]]()
        for i, layer in enumerate(self.layers):
            seen = torch.cat([steps, *outputs], -1) if dense else given
            if i:
                seen = self._dropped(seen)
            if self.shape.norm:
                seen = self.norms[i](seen)
            output, *state = layer(seen, *(s[i] for s in states))
            if self.shape.residual and i:
                output = output + given
            outputs.append(output)
            after.append(tuple(state))
            given = output
        return torch.cat(outputs, -1) if dense else given, *(torch.stack(s) for s in zip(*after))

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """One tensor ``[layers, batch, units]`` for each of ``state_names``."""
        if self.initial is not None:
            return tuple(s.expand(-1, batch, -1) for s in self.initial)
        zero = torch.zeros(self.shape.layers, batch, self.shape.units)
        return tuple(zero.clone() for _ in self.state_names)

    def _dropped(self, seen: Tensor) -> Tensor:
        """The same units at all steps of a window (Gal & Ghahramani, arXiv:1512.05287)."""
        return self.drop(seen.permute(1, 2, 0)).permute(2, 0, 1) if self.training and self.shape.dropout else seen
