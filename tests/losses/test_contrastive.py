"""Noise-contrastive estimation against its formula in float64, with the quotients that CRD's paper has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compress.losses import contrastive

RNG = np.random.default_rng(0)


def formula(log_h, images):
    h, c = np.exp(log_h), (log_h.shape[1] - 1) / images
    true = np.log(h[:, 0] / (h[:, 0] + c))
    noise = np.log(c / (h[:, 1:] + c)).sum(1)
    return -(true + noise).mean()


@pytest.mark.parametrize(("n", "m", "images"), [(1, 2, 5), (6, 9, 9), (4, 65, 10_000)])
def test_nce_is_formula(n, m, images):
    log_h = (RNG.standard_normal((n, m)) * 3 - 4).astype(np.float32)
    expected = formula(log_h.astype(np.float64), images)
    assert contrastive.nce(torch.from_numpy(log_h), images).item() == pytest.approx(expected, rel=1e-5)


def test_nce_uninformed_scores():
    """h = K/N everywhere: every pair is as likely noise as not, ln 2 each."""
    assert contrastive.nce(torch.full((3, 9), math.log(8 / 50)), 50).item() == pytest.approx(9 * math.log(2), rel=1e-6)


def test_nce_perfect_scores_are_zero():
    log_h = torch.full((3, 9), -40.0)
    log_h[:, 0] = 40
    assert contrastive.nce(log_h, 50).item() == pytest.approx(0, abs=1e-6)


def test_nce_gradient_signs():
    log_h = torch.randn(4, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(contrastive.nce(log_h, 30), log_h)
    assert (gradient[:, 0] < 0).all()
    assert (gradient[:, 1:] > 0).all()


def test_nce_extreme_scores_are_finite():
    log_h = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    value = contrastive.nce(log_h, 10)
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, log_h)[0]).all()


def test_nce_without_noise_raises():
    with pytest.raises(ValueError, match="noise"):
        contrastive.nce(torch.randn(3, 1), 10)
