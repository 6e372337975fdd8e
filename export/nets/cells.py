"""Recurrent layers, one definition each: trained over whole sequences, served step by step or over the time axis.

A layer takes ``[T, B, inputs]`` and its states, ``[B, units]`` each, and gives ``[T, B, units]`` and its states.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from export.nets.nodes import gru_node, rnn_node
from pipeline.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda x: x,
}
STARTS = ("uniform", "orthogonal", "identity")
"""What the recurrent weights of an Elman layer begin as."""


class Layer(nn.Module, ABC):
    """One recurrent layer."""

    names: ClassVar[tuple[str, ...]] = ("h",)
    """Of its states."""
    units: int

    @abstractmethod
    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """steps float32 ``[T, B, inputs]``, states ``[B, units]`` -> ``[T, B, units]``, states."""


class ElmanLayer(Layer):
    """h_t = s(W_hh h_{t-1} + W_hx x_t + b_h): the hidden layer of Elman's network (Finding structure in time, 1990)."""

    def __init__(self, inputs: int, units: int, activation: str = "tanh", start: str = "uniform") -> None:
        """``activation``: s, one of ``ACTIVATIONS``; ``start``: of W_hh, one of ``STARTS``. Raises ConfigError.

        An orthogonal W_hh keeps the length of what it is given (Saxe et al., arXiv:1312.6120); the identity suits ReLU
        (Le et al., arXiv:1504.00941).
        """
        super().__init__()
        self.units, self.activation = units, _known(activation, "activation", tuple(ACTIVATIONS))
        bound = 1 / math.sqrt(units)
        self.W_hx = nn.Parameter(torch.empty(units, inputs).uniform_(-bound, bound))
        self.W_hh = nn.Parameter(torch.empty(units, units).uniform_(-bound, bound))
        self.b_h = nn.Parameter(torch.zeros(units))
        if _known(start, "start", STARTS) == "orthogonal":
            nn.init.orthogonal_(self.W_hh)
        elif start == "identity":
            nn.init.eye_(self.W_hh)

    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        (h,) = states
        if torch.onnx.is_in_onnx_export():
            return rnn_node(steps, h, (self.W_hx, self.W_hh, self.b_h), self.units, self.activation)
        s = ACTIVATIONS[self.activation]
        driven = steps @ self.W_hx.T + self.b_h  # W_hx x_t + b_h of all steps at once
        hidden = []
        for drive in driven.unbind(0):
            h = s(h @ self.W_hh.T + drive)
            hidden.append(h)
        return torch.stack(hidden), h


class Elman(nn.Module):
    """The whole network of the textbooks: o_t = s_o(W_ho h_t + b_o) on top of the hidden layer; can be exported."""

    state_names = ("h",)
    output_names = ("o",)

    def __init__(
        self,
        inputs: int,
        units: int,
        outputs: int,
        activation: str = "tanh",
        output_activation: str | None = None,
        start: str = "uniform",
    ) -> None:
        """``output_activation``: s_o, where it is not the hidden layer's s. Raises ConfigError for an unknown name."""
        super().__init__()
        self.hidden = ElmanLayer(inputs, units, activation, start)
        self.output_activation = _known(output_activation or activation, "activation", tuple(ACTIVATIONS))
        bound = 1 / math.sqrt(units)
        self.W_ho = nn.Parameter(torch.empty(outputs, units).uniform_(-bound, bound))
        self.b_o = nn.Parameter(torch.zeros(outputs))

    def forward(self, steps: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """steps float32 ``[T, B, inputs]``, h ``[B, units]`` -> o ``[T, B, outputs]``, h."""
        hidden, h = self.hidden(steps, h)
        return ACTIVATIONS[self.output_activation](hidden @ self.W_ho.T + self.b_o), h

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.hidden.units)


class LSTMLayer(Layer):
    """torch's LSTM. Its cell state c is carried by a sum, which a forget gate near 1 leaves alone."""

    names: ClassVar[tuple[str, ...]] = ("h", "c")

    def __init__(self, inputs: int, units: int, memory: int = 0) -> None:
        """``memory``: the longest time, in steps, that the gates are set to keep at first.

        Then the biases of the forget gates are log U(1, memory), those of the input gates their opposite (chrono
        initialisation, Tallec & Ollivier, arXiv:1804.11188); else the forget gates' are 1.
        """
        super().__init__()
        self.units = units
        self.cell = nn.LSTM(inputs, units)
        with torch.no_grad():
            bias = self.cell.get_parameter("bias_ih_l0").zero_()
            self.cell.get_parameter("bias_hh_l0").zero_()
            forget = chrono(units, memory) if memory else torch.ones(units)
            bias[units : 2 * units] = forget
            if memory:
                bias[:units] = -forget

    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        h, c = states
        hidden, (h, c) = self.cell(steps, (h[None], c[None]))
        return hidden, h[0], c[0]


class GRULayer(Layer):
    """torch's GRU; ``memory`` as in the LSTM, for the update gates."""

    def __init__(self, inputs: int, units: int, memory: int = 0) -> None:
        super().__init__()
        self.units = units
        self.cell = nn.GRU(inputs, units)
        if memory:
            with torch.no_grad():
                self.cell.get_parameter("bias_ih_l0")[units : 2 * units] = chrono(units, memory)

    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        (h,) = states
        hidden, h = self.cell(steps, h[None])
        return hidden, h[0]


class MinGRULayer(Layer):
    """a_t = sigmoid(W_a x_t + b_a), v_t = W_v x_t + b_v, h_t = a_t h_{t-1} + (1 - a_t) v_t.

    The minimal GRU of Feng et al., "Were RNNs All We Needed?", arXiv:2410.01201, whose z_t is 1 - a_t. Gates and values
    do not depend on h, so the recurrence is linear in it: in training all steps are computed side by side (``scan``).
    """

    def __init__(self, inputs: int, units: int, memory: int = 0) -> None:
        """``memory``: as in the LSTM, for a_t."""
        super().__init__()
        self.units = units
        self.gate = nn.Linear(inputs, units)
        self.value = nn.Linear(inputs, units)
        if memory:
            with torch.no_grad():
                self.gate.bias.copy_(chrono(units, memory))

    def forward(self, steps: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        (h,) = states
        gate, value = self.gate(steps), self.value(steps)
        if torch.onnx.is_in_onnx_export():
            return gru_node(gate, value, h, self.units)
        keep = torch.sigmoid(gate)
        hidden = scan(keep, (1 - keep) * value, h)
        return hidden, hidden[-1]


def scan(keep: Tensor, add: Tensor, h: Tensor) -> Tensor:
    """h_t = keep_t h_{t-1} + add_t for all t: keep and add ``[T, B, U]``, h ``[B, U]`` -> ``[T, B, U]``.

    In about 2 sqrt(T) operations one after the other instead of T: the sequence is cut into sqrt(T) blocks which run
    side by side from zero; then what each block hands on is added to the next. Only products of ``keep`` are formed, so
    nothing overflows where they are at most 1.
    """
    time = len(keep)
    length = math.isqrt(max(time - 1, 0)) + 1
    blocks = -(-time // length)
    missing = blocks * length - time
    if missing:
        keep = torch.cat([keep, keep.new_ones(missing, *keep.shape[1:])])
        add = torch.cat([add, add.new_zeros(missing, *add.shape[1:])])
    keeps, adds = (torch.unflatten(x, 0, (blocks, length)).unbind(1) for x in (keep, add))
    inside, product = [adds[0]], [keeps[0]]
    for a, b in zip(keeps[1:], adds[1:]):
        inside.append(a * inside[-1] + b)
        product.append(a * product[-1])
    entering = [h]
    for last, kept in zip(inside[-1][:-1], product[-1][:-1]):
        entering.append(kept * entering[-1] + last)
    whole = torch.stack(inside, 1) + torch.stack(product, 1) * torch.stack(entering)[:, None]
    return whole.flatten(0, 1)[:time]


def chrono(units: int, memory: int) -> Tensor:
    """Gate biases with which units forget over 1 to ``memory`` steps: log U(1, memory), float32 ``[units]``."""
    return torch.log(torch.empty(units).uniform_(1, max(2, memory)))


def _known(name: str, what: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ConfigError(f"{what} {name!r}: expected one of {', '.join(names)}")
    return name
