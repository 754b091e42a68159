"""Noise-contrastive losses, computed in float32, in nats."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.losses.logits import Scalar


def nce(log_h: Float[Tensor, "n m"], images: int) -> Scalar:
    """−mean over rows of log h₀/(h₀ + K/N) + Σ_k log (K/N)/(h_k + K/N), K = m − 1 and N = `images`; >= 0.

    Noise-contrastive estimation as in CRD (Tian et al., ICLR 2020), Eq. 18. From log h, so that no eps is needed.

    Args:
        log_h: Log scores. Column 0 is the true pair, the other K are noise, drawn from N images.
        images: N.

    Raises:
        ValueError: If there is no noise column.
    """
    noise = log_h.shape[1] - 1
    if noise < 1:
        raise ValueError("found no noise column, expected one or more besides the true pair")
    odds = log_h.float() - math.log(noise / images)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()
