"""Losses between rows of logits, in nats.

A row is one decision (an image, a pixel, a token), with classes along dim 1. Further dimensions hold more rows:
[n, c, m] are n · m rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "n c *m"]
Scalar = Float[Tensor, ""]


def kl(student: Rows, teacher: Rows, T: float = 1.0) -> Scalar:
    """T² · mean over rows of Σ_c p_c (log p_c − log q_c), p = softmax(teacher/T), q = softmax(student/T).

    KL(teacher ‖ student); >= 0, and 0 if the rows are equal up to a constant. Hinton et al. 2015; MosaicKD Eq. 7.
    """
    log_q = (student.float() / T).log_softmax(1)
    log_p = (teacher.float() / T).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() * T**2


def l1(student: Rows, teacher: Rows) -> Scalar:
    """Mean over rows and classes of |t − s|, of the logits; >= 0. L_S of DFAD (Fang et al. 2019)."""
    return (student.float() - teacher.float()).abs().mean()


def one_hot(rows: Rows) -> Scalar:
    """Mean over rows of −log p at the largest p, p = softmax(rows): cross entropy with the predicted class.

    In [0, ln C]; 0 if every row is certain. L_oh of DAFL (Chen et al. 2019).
    """
    return -rows.float().log_softmax(1).amax(1).mean()


def entropy(rows: Rows) -> Scalar:
    """Mean over rows of −Σ_c p_c log p_c, p = softmax(rows); in [0, ln C]. MosaicKD Eq. 4 (L_align).

    Uses log_softmax, because p · log p is NaN if a probability underflows to 0.
    """
    log_p = rows.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def marginal_entropy(rows: Rows, *, per_position: bool = False) -> Scalar:
    """−Σ_c p̄_c log p̄_c of the mean distribution p̄ over the rows; in [0, ln C], ln C if the batch is balanced.

    MosaicKD, appendix (the balance term, with opposite sign). 0 · log 0 counts as 0.

    Args:
        rows: Rows of logits; [n, c] have one position.
        per_position: Average over dim 0 alone, and then the entropies of the positions. An image with all classes then
            does not balance a batch of equal images.
    """
    p = rows.float().softmax(1)
    mean = p.mean(0) if per_position else p.transpose(0, 1).flatten(1).mean(1)
    return torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum(0).mean()
