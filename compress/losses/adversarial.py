"""Losses between generator and patch discriminator, on logits [n, 1, a, b]; positive means real.

Summed over the patches of an image and averaged over images, as in MosaicKD's Eq. 3: L_local = n_p · ln 2 for an
undecided discriminator.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.losses.logits import Scalar


def real(judged: Float[Tensor, "n 1 a b"]) -> Scalar:
    """Σ_patches −log σ(judged), mean over images: the loss if these images should be judged real. >= 0, in nats."""
    return F.softplus(-judged.float()).sum() / judged.shape[0]


def fake(judged: Float[Tensor, "n 1 a b"]) -> Scalar:
    """Σ_patches −log(1 − σ(judged)), mean over images: the loss if these should be judged fake. >= 0, in nats."""
    return F.softplus(judged.float()).sum() / judged.shape[0]
