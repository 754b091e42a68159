"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class ExponentialMovingAverage:
    """An averaged copy of a network, in eval mode.

    Weights and BatchNorm statistics are averaged; integer buffers are copied.

    Args:
        source: The network to copy.
        decay: Share of the old average that each update keeps, in [0, 1).
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.net, self.decay = copy.deepcopy(source).eval(), decay
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average toward the current weights of `net`."""
        for average, current in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(current.to(average), 1 - self.decay)
            else:
                average.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        return self.net.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state)
