"""Random colours and mirrors for a batch on the device, so that few images stand for many."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def recolour(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Every image in [0, 1] with its colour channels mixed anew, half of them mirrored; in [0, 1] again.

    A new channel is a weighted mean of the old ones with weights softmax(2 N(0, 1)): often nearly one of them, so that
    colours are exchanged rather than lost. Draws from the global random state, which a run keeps.
    """
    mix = (2 * torch.randn(len(x), 3, 3, device=x.device)).softmax(2).to(x.dtype)
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    mixed = torch.einsum("nij,njhw->nihw", mix, x)
    return torch.where(mirrored, mixed.flip(3), mixed).contiguous(memory_format=torch.channels_last)
