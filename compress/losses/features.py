"""Losses between the activations of two networks; any dtype, computed in float32."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from compress.losses.logits import Scalar


def hint(student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Scalar:
    """Mean over all elements of (student − teacher)²; >= 0.

    FitNets (Romero et al., ICLR 2015), Eq. 3 without its 1/2; the student's map is the regressor's output.
    """
    return F.mse_loss(student.float(), teacher.float())


def attention(student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n d h w"]) -> Scalar:
    """Mean over images and positions of (a_S − a_T)², a = m / ‖m‖₂, m the mean over channels of a map's squares.

    In [0, 2 / (h · w)]; independent of scale. Attention transfer (Zagoruyko and Komodakis, ICLR 2017), squared and
    averaged as in ZSKT's code (Micaelli and Storkey 2019); the papers use a norm.
    """
    a_S, a_T = (F.normalize(maps.float().square().mean(1).flatten(1)) for maps in (student, teacher))
    return (a_S - a_T).square().mean()


def activation(penultimate: Float[Tensor, "n d"]) -> Scalar:
    """Mean over all elements of |f|; >= 0.

    DAFL's L_a (Chen et al. 2019) with opposite sign. The paper sums over the d features; its code takes this mean.
    """
    return penultimate.float().abs().mean()
