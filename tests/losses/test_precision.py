"""All losses compute in float32, and stay finite for saturated logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.losses import adversarial, contrastive, features, inversion, logits, relations

#: loss -> a function of two tensors, and their shapes
LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "real": (lambda s, t: adversarial.real(s), (6, 1, 64, 64), (1,)),
    "fake": (lambda s, t: adversarial.fake(s), (6, 1, 64, 64), (1,)),
    "nce": (lambda s, t: contrastive.nce(s, 30), (4, 7), (1,)),
    "hint": (features.hint, (4, 6, 5, 5), (4, 6, 5, 5)),
    "attention": (features.attention, (4, 6, 5, 5), (4, 9, 5, 5)),
    "activation": (lambda s, t: features.activation(s), (8, 10), (1,)),
    "kl": (logits.kl, (8, 10), (8, 10)),
    "l1": (logits.l1, (8, 10), (8, 10)),
    "one_hot": (lambda s, t: logits.one_hot(s), (8, 10), (1,)),
    "entropy": (lambda s, t: logits.entropy(s), (8, 10), (1,)),
    "marginal_entropy": (lambda s, t: logits.marginal_entropy(s), (8, 10), (1,)),
    "jensen_shannon": (inversion.jensen_shannon, (4, 6), (4, 6)),
    "agreement_kl": (inversion.agreement_kl, (4, 6), (4, 6)),
    "contrastive_loss": (lambda s, t: inversion.contrastive_loss(s, t, 4), (4, 6), (4, 6)),
    "total_variation_l2": (lambda s, t: inversion.total_variation_l2(s), (2, 3, 4, 4), (1,)),
    "total_variation_l1": (lambda s, t: inversion.total_variation_l1(s), (2, 3, 4, 4), (1,)),
    "image_l2": (lambda s, t: inversion.image_l2(s), (2, 3, 4, 4), (1,)),
    "distance": (relations.distance, (6, 4), (6, 9)),
    "angle": (relations.angle, (6, 4), (6, 9)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_computes_in_float32(name, dtype):
    loss, *shapes = LOSSES[name]
    s, t = ((20 * torch.randn(shape)).to(dtype) for shape in shapes)
    assert loss(s, t).dtype == torch.float32
    assert loss(s, t).item() == pytest.approx(loss(s.float(), t.float()).item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("scale", [1e2, 1e3, 1e4, 1e30])
@pytest.mark.parametrize("name", ["kl", "l1", "one_hot", "entropy", "marginal_entropy"])
def test_saturated_logits_are_finite(name, scale):
    """Gaps above 104 underflow in float32, where p · log p is NaN."""
    loss, *_ = LOSSES[name]
    s = torch.tensor([[scale, 0.0, -scale], [scale, -scale, -scale]], requires_grad=True)
    t = s.detach().flip(1).requires_grad_()
    value = loss(s, t)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(x.grad).all() for x in (s, t) if x.grad is not None)
