"""What is known of the teacher's training images without having them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from compress.losses.logits import Scalar

Moments = tuple[Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"]]


def batchnorm(moments: Sequence[Moments]) -> Scalar:
    """Σ_layers ‖μ − μ̂‖₂ + ‖σ² − σ̂²‖₂ between the statistics of a batch and those that BatchNorm remembers; >= 0.

    `moments`: (mean, variance, running mean, running variance), each [c], one entry a layer. DeepInversion (Yin et al.,
    CVPR 2020), Eq. 4. Raises ValueError for a teacher without BatchNorm.
    """
    if not moments:
        raise ValueError("the teacher has no BatchNorm layers, so it remembers no statistics: set method.bn to 0")
    gaps = [norm(mean - old_mean) + norm(variance - old_variance) for mean, variance, old_mean, old_variance in moments]
    return torch.stack(gaps).sum()


def norm(x: Tensor) -> Scalar:
    """‖x‖₂ with a gradient of 0, not NaN, at x = 0."""
    return x.square().sum().clamp_min(1e-12).sqrt()
