"""Recurrences as ONNX nodes, with a free time axis.

Traced as they are written, their loops would be frozen at one length. ONNX's RNN and GRU nodes say the same, and
onnxruntime runs them whole; the exporter compares them with the written layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RNN_ACTIVATIONS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "identity": "Affine"}
WIDTHS = (16, 8, 4, 2, 1)
"""Units of one group, the best first (measured with 256 units: 6 us a step in groups of 16, 10 us ungrouped)."""


def rnn_node(
    steps: Tensor, h: Tensor, weights: tuple[Tensor, Tensor, Tensor], units: int, activation: str
) -> tuple[Tensor, ...]:
    """``s(W_hh h + W_hx x_t + b_h)`` over ``[T, B, inputs]`` -> ``[T, B, units]``, ``[B, units]``.

    ``weights``: W_hx, W_hh, b_h.
    """
    W_hx, W_hh, b_h = weights
    biases = torch.cat([b_h, torch.zeros_like(b_h)])[None]
    return _node("RNN", units, (RNN_ACTIVATIONS[activation],), steps, W_hx[None], W_hh[None], biases, h)


def gru_node(gate: Tensor, value: Tensor, h: Tensor, units: int) -> tuple[Tensor, ...]:
    """``a h + (1 - a) v``, a = sigmoid(gate), over ``[T, B, units]`` -> ``[T, B, units]``, ``[B, units]``.

    A GRU node without recurrent weights and with an identity for its tanh. Units do not touch each other, so groups of
    them are laid out as further rows of the batch: the node's two products, one with unit columns and one with zeros,
    are then small.
    """
    width = next(w for w in WIDTHS if units % w == 0)
    time, one, zero = gate.shape[0], torch.eye(width), torch.zeros(width, width)
    # Rows: update gate z = a, reset gate (unused), hidden h~ = v.
    W = torch.cat([torch.cat([one, zero], 1), torch.zeros(width, 2 * width), torch.cat([zero, one], 1)])[None]
    R, B = torch.zeros(1, 3 * width, width), torch.zeros(1, 6 * width)
    grouped = torch.cat([x.reshape(time, -1, width) for x in (gate, value)], 2)
    hidden, after = _node("GRU", width, ("Sigmoid", "Affine"), grouped, W, R, B, h.reshape(-1, width))
    return hidden.reshape(time, -1, units), after.reshape(-1, units)


def _node(op: str, units: int, activations: tuple[str, ...], steps: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    *weights, h = given
    apply: Any = _Node.apply  # typed in some versions of torch
    hidden, after = apply(op, units, activations, steps, *weights, h[None])
    return hidden.squeeze(1), after.squeeze(0)


class _Node(torch.autograd.Function):
    """A recurrent node in the traced graph: steps ``[T, B, I]``, weights with a leading axis of directions (one), h
    ``[1, B, U]`` -> ``[T, 1, B, U]``, ``[1, B, U]``."""

    @staticmethod
    def forward(
        ctx: Any, op: str, units: int, activations: tuple[str, ...], steps: Tensor, *given: Tensor
    ) -> tuple[Tensor, ...]:
        """Tracing asks for shapes alone; what the node computes is compared with the layer afterwards."""
        h = given[-1]
        return h.new_zeros(steps.shape[0], *h.shape), h.new_zeros(h.shape)

    @staticmethod
    def symbolic(
        g: Any, op: str, units: int, activations: tuple[str, ...], steps: Any, W: Any, R: Any, B: Any, h: Any
    ) -> Any:
        none = g.op("prim::Constant")
        none.setType(torch._C.OptionalType.ofTensor())
        affine = {"activation_alpha_f": [1.0], "activation_beta_f": [0.0]} if "Affine" in activations else {}
        return g.op(
            op, steps, W, R, B, none, h, hidden_size_i=units, activations_s=list(activations), outputs=2, **affine
        )
