"""Losses of model inversion, computed in float32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.losses.logits import Rows, Scalar
from compress.losses.priors import safe_norm

Images = Float[Tensor, "n c h w"]


def neighbor_differences(x: Images) -> list[Tensor]:
    """Return each pixel minus its neighbor to the right, below, below left, and below right."""
    x = x.float()
    return [
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    ]


def total_variation_l2(x: Images) -> Scalar:
    """Σ over four directions of ‖neighbor difference‖₂ over the whole batch; >= 0.

    R_TV of DeepInversion (Yin et al., CVPR 2020) as its authors compute it: one norm per batch, so it grows with the
    square root of the batch size.
    """
    return torch.stack([safe_norm(d) for d in neighbor_differences(x)]).sum()


def total_variation_l1(x: Images) -> Scalar:
    """Σ over four directions of the mean absolute neighbor difference; >= 0, independent of the batch size.

    The other variation of DeepInversion's code.
    """
    return torch.stack([d.abs().mean() for d in neighbor_differences(x)]).sum()


def image_l2(x: Images) -> Scalar:
    """Mean over images of ‖x‖₂; >= 0. R_l2 of DeepInversion."""
    return x.float().flatten(1).square().sum(1).clamp_min(1e-12).sqrt().mean()


def jensen_shannon(student: Rows, teacher: Rows, T: float = 3.0) -> Scalar:
    """Mean over rows of ½ KL(p ‖ m) + ½ KL(q ‖ m), p = softmax(teacher/T), q = softmax(student/T), m = (p + q)/2.

    In [0, ln 2] nats. Adaptive DeepInversion's R_compete is 1 minus this. Its code clamps p, q and m to [0.01, 0.99]
    and reverses the divergences; with 100 classes, most probabilities are below 0.01 and get no gradient. Here
    logarithms come from log_softmax, so no clamp is needed.
    """
    log_p, log_q = ((rows.float() / T).log_softmax(1) for rows in (teacher, student))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergences = [(log.exp() * (log - log_m)).sum(1) for log in (log_p, log_q)]
    return (divergences[0] + divergences[1]).mean() / 2


def agreement_kl(student: Rows, teacher: Rows) -> Scalar:
    """Mean over all rows of KL(teacher ‖ student) if both predict the same class, else 0; >= 0, in nats.

    The decision-adversarial loss of CMI (Fang et al., IJCAI 2021) with opposite sign.
    """
    log_q, log_p = student.float().log_softmax(1), teacher.float().log_softmax(1)
    agree = (log_q.argmax(1) == log_p.argmax(1)).float()
    return ((log_p.exp() * (log_p - log_q)).sum(1) * agree).mean()


def contrastive_loss(views: Float[Tensor, "m d"], anchors: Float[Tensor, "m d"], new: int, T: float = 0.1) -> Scalar:
    """Cross entropy of identifying each row's own anchor among all m by cosine similarity / T; >= 0, in nats.

    Mean over the first `new` rows plus mean over the others, if any. Gradients reach the views, not the anchors. CMI's
    L_cr.
    """
    cosines = F.normalize(views.float(), dim=1) @ F.normalize(anchors.detach().float(), dim=1).T
    losses = -torch.diagonal((cosines / T).log_softmax(1))
    return losses[:new].mean() + (losses[new:].mean() if new < len(losses) else 0.0)
