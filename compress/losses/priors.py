"""Losses from what a teacher reveals about its training images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from compress.losses.logits import Scalar

Vector = Float[Tensor, " c"]


def batchnorm(stats: Sequence[tuple[Vector, Vector, Vector, Vector]]) -> Scalar:
    """Σ_layers ‖μ − μ̂‖₂ + ‖σ² − σ̂²‖₂ between the statistics of a batch and BatchNorm's running statistics; >= 0.

    DeepInversion (Yin et al., CVPR 2020), Eq. 4.

    Args:
        stats: (mean, variance, running mean, running variance) of each layer's inputs.

    Raises:
        ValueError: If there are no layers.
    """
    if not stats:
        raise ValueError("found a teacher without BatchNorm layers, expected running statistics; set method.bn to 0")
    gaps = [
        safe_norm(mean - old_mean) + safe_norm(variance - old_variance)
        for mean, variance, old_mean, old_variance in stats
    ]
    return torch.stack(gaps).sum()


def safe_norm(x: Tensor) -> Scalar:
    """‖x‖₂, with a gradient of 0 instead of NaN at x = 0."""
    return x.square().sum().clamp_min(1e-12).sqrt()
