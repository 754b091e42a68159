"""The game between G and D against binary cross entropy in numpy's float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compress.losses import adversarial


@pytest.fixture
def judged():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((6, 1, 4, 5)).astype(np.float32) * 4)


def test_real_is_formula(judged):
    sigma = 1 / (1 + np.exp(-judged.numpy().astype(np.float64)))
    assert adversarial.real(judged).item() == pytest.approx(-np.log(sigma).sum() / 6, rel=1e-5)


def test_fake_is_formula(judged):
    sigma = 1 / (1 + np.exp(-judged.numpy().astype(np.float64)))
    assert adversarial.fake(judged).item() == pytest.approx(-np.log(1 - sigma).sum() / 6, rel=1e-5)


def test_real_and_fake_are_symmetric(judged):
    assert adversarial.fake(judged).item() == pytest.approx(adversarial.real(-judged).item(), rel=1e-6)


def test_undecided_discriminator_loss_is_ln2():
    for loss in (adversarial.real, adversarial.fake):
        assert loss(torch.zeros(3, 1, 8, 8)).item() == pytest.approx(64 * math.log(2), rel=1e-6)


def test_loss_scales_with_patches_only(judged):
    for loss in (adversarial.real, adversarial.fake):
        assert loss(torch.cat([judged, judged])).item() == pytest.approx(loss(judged).item(), rel=1e-5)
        assert loss(torch.cat([judged, judged], 3)).item() == pytest.approx(2 * loss(judged).item(), rel=1e-5)


def test_confident_discriminator_is_finite():
    """Non-saturating: a generator that is found out at once still learns, with slope -1 a patch."""
    for size in (1e2, 1e4, 1e30):
        for loss in (adversarial.real, adversarial.fake):
            sure = torch.tensor([size, -size]).view(1, 1, 1, 2).requires_grad_()
            value = loss(sure)
            (gradient,) = torch.autograd.grad(value, sure)
            assert torch.isfinite(value)
            assert sorted(gradient.abs().flatten().tolist()) == pytest.approx([0, 1], abs=1e-30)
