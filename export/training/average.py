"""A moving average of the weights: it is what the last updates have in common, without their noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Average:
    """The average of a net's weights and buffers that ``update`` has seen, each time keeping ``decay`` of itself.

    It keeps less at first, (1 + n) / (10 + n) after n updates, so that the weights it began with are soon forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        def lean(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
            share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
            for average, weight in zip(averages, weights):
                if average.is_floating_point():
                    average.lerp_(weight, share)
                else:
                    average.copy_(weight)

        self.net = net
        self.model = AveragedModel(net, multi_avg_fn=lean, use_buffers=True)

    def update(self) -> None:
        self.model.update_parameters(self.net)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The net has the average's weights inside, and its own again afterwards."""
        own = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        with torch.no_grad():
            self.net.load_state_dict(self.model.module.state_dict())
        try:
            yield
        finally:
            with torch.no_grad():
                self.net.load_state_dict(own)
