"""Random colours, light and mirrors for a batch on the device, so that few images stand for many."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: contrast in [1 - LIGHT, 1 + LIGHT], brightness in [-LIGHT / 2, LIGHT / 2], of the range of a channel
LIGHT = 0.6


def recolour(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Every image in [0, 1] with its colour channels mixed and lit anew, half of them mirrored; in [0, 1] again.

    A new channel is a weighted mean of the old ones with weights softmax(2 N(0, 1)): often nearly one of them, so that
    colours are exchanged rather than lost. Then each gets a contrast, around the middle of the range, and a brightness
    of its own. Draws from the global random state, which a run keeps.
    """
    n = len(x)
    mix = (2 * torch.randn(n, 3, 3, device=x.device)).softmax(2).to(x.dtype)
    mirrored = torch.rand(n, 1, 1, 1, device=x.device) < 0.5
    contrast, light = (LIGHT * (2 * torch.rand(2, n, 3, 1, 1, device=x.device) - 1)).to(x.dtype)
    mixed = torch.einsum("nij,njhw->nihw", mix, x)
    lit = ((mixed - 0.5) * (1 + contrast) + 0.5 + light / 2).clamp(0, 1)
    return torch.where(mirrored, lit.flip(3), lit).contiguous(memory_format=torch.channels_last)
