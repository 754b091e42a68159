"""Losses of model inversion against the formulas in numpy's float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compress.losses import inversion, logits

RNG = np.random.default_rng(0)


def pair(*shape, scale=1.0):
    """(numpy float64, torch float32) with the same values."""
    values = (RNG.standard_normal(shape) * scale).astype(np.float32)
    return values.astype(np.float64), torch.from_numpy(values)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def four(x):
    """Differences to the neighbours by shifting the whole image, the edge cut off afterwards."""
    right, below = np.roll(x, -1, 3)[..., :, :-1], np.roll(x, -1, 2)[..., :-1, :]
    across = np.roll(np.roll(x, -1, 2), -1, 3)[..., :-1, :-1]
    back = np.roll(np.roll(x, -1, 2), 1, 3)[..., :-1, 1:]
    return x[..., :, :-1] - right, x[..., :-1, :] - below, x[..., :-1, :-1] - across, x[..., :-1, 1:] - back


def test_total_variation_is_formula():
    x, x32 = pair(3, 2, 5, 7)
    l2 = sum(np.linalg.norm(d.ravel()) for d in four(x))
    l1 = sum(np.abs(d).mean() for d in four(x))
    assert inversion.total_variation_l2(x32).item() == pytest.approx(l2, rel=1e-5)
    assert inversion.total_variation_l1(x32).item() == pytest.approx(l1, rel=1e-5)


def test_total_variation_of_constant_images():
    x = torch.full((2, 3, 6, 6), 0.3, requires_grad=True)
    (inversion.total_variation_l2(x) + inversion.total_variation_l1(x)).backward()
    assert inversion.total_variation_l2(x).item() == pytest.approx(0, abs=1e-5)
    assert inversion.total_variation_l1(x).item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_total_variation_is_flip_invariant():
    _, x = pair(2, 3, 8, 8)
    for loss in (inversion.total_variation_l1, inversion.total_variation_l2):
        for mirrored in (x.flip(3), x.flip(2), x.transpose(2, 3)):
            assert loss(mirrored).item() == pytest.approx(loss(x).item(), rel=1e-5)


def test_image_l2_is_formula():
    x, x32 = pair(4, 3, 5, 5)
    expected = np.mean([np.linalg.norm(image.ravel()) for image in x])
    assert inversion.image_l2(x32).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("T", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(7, 5), (16, 100)])
def test_jensen_shannon_is_formula(shape, T):
    (s, s32), (t, t32) = pair(*shape, scale=4), pair(*shape, scale=4)
    p, q = softmax(t / T), softmax(s / T)
    m = (p + q) / 2
    expected = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)).mean() / 2
    assert inversion.jensen_shannon(s32, t32, T).item() == pytest.approx(expected, rel=1e-5)
    assert inversion.jensen_shannon(t32, s32, T).item() == pytest.approx(expected, rel=1e-5)


def test_jensen_shannon_bounds():
    a, b = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[0.0, 1e4, 0.0]])
    assert inversion.jensen_shannon(a, b).item() == pytest.approx(math.log(2), rel=1e-6)
    assert inversion.jensen_shannon(a, a).item() == pytest.approx(0, abs=1e-7)


def test_jensen_shannon_gradient_for_all_classes():
    """The published clamp to [0.01, 0.99] leaves none for a probability below 0.01, which most of a hundred are."""
    _, s = pair(8, 100)
    s.requires_grad_()
    inversion.jensen_shannon(s, pair(8, 100)[1]).backward()
    assert (s.grad.abs() > 0).double().mean() > 0.99


def test_agreement_kl_is_formula():
    (s, s32), (t, t32) = pair(64, 4, scale=2), pair(64, 4, scale=2)
    p, q = softmax(t), softmax(s)
    agree = t.argmax(1) == s.argmax(1)
    assert 0 < agree.sum() < 64
    expected = ((p * np.log(p / q)).sum(1) * agree).sum() / 64
    assert inversion.agreement_kl(s32, t32).item() == pytest.approx(expected, rel=1e-5)
    assert inversion.agreement_kl(t32, t32).item() == pytest.approx(0, abs=1e-7)


def test_agreement_kl_ignores_disagreeing_rows():
    s, t = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]], requires_grad=True)
    inversion.agreement_kl(s, t).backward()
    assert t.grad[0].abs().sum() > 0
    assert torch.equal(t.grad[1], torch.zeros(2))
    assert inversion.agreement_kl(s[:1], t[:1]).item() == pytest.approx(logits.kl(s[:1], t[:1]).item())


@pytest.mark.parametrize(("m", "new"), [(6, 6), (9, 4)])
def test_contrastive_loss_is_formula(m, new):
    (a, a32), (b, b32) = pair(m, 5), pair(m, 5)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    costs = -np.log(np.diag(softmax(a @ b.T / 0.2)))
    expected = costs[:new].mean() + (costs[new:].mean() if new < m else 0)
    assert inversion.contrastive_loss(a32, b32, new, T=0.2).item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_gradient_and_minimum():
    views, anchors = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    inversion.contrastive_loss(views, anchors, 5).backward()
    assert views.grad is not None
    assert anchors.grad is None
    axes = torch.eye(5)
    assert (
        inversion.contrastive_loss(axes, axes, 5, T=0.05)
        < 1e-6
        < inversion.contrastive_loss(axes, axes.roll(1, 0), 5, T=0.05)
    )
    assert inversion.contrastive_loss(torch.ones(5, 3), torch.ones(5, 3), 5).item() == pytest.approx(
        math.log(5), rel=1e-5
    )
