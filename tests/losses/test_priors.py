"""What the teacher's BatchNorm remembers, against numpy; and how it is read off by hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compress.engine.hooks import capture_batchnorm_stats, compute_central_moments
from compress.losses import priors


def test_batchnorm_is_formula():
    rng = np.random.default_rng(0)
    moments = [tuple(rng.standard_normal(c).astype(np.float32) for _ in range(4)) for c in (3, 8)]
    expected = sum(np.linalg.norm(m - om) + np.linalg.norm(v - ov) for m, v, om, ov in moments)
    found = priors.batchnorm([tuple(torch.from_numpy(one) for one in layer) for layer in moments])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_batchnorm_of_equal_statistics_is_zero():
    x = torch.randn(5, requires_grad=True)
    value = priors.batchnorm([(x, x, x.detach(), x.detach())])
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(0, abs=3e-6)
    assert torch.equal(gradient, torch.zeros(5))


def test_batchnorm_without_layers_raises():
    with pytest.raises(ValueError, match="BatchNorm"):
        priors.batchnorm([])


def test_capture_batchnorm_stats_reads_inputs():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)).eval()
    net[1].running_mean.normal_()
    x = torch.randn(6, 3, 9, 9)
    with capture_batchnorm_stats(net) as moments:
        net(x)
    for (mean, variance, old_mean, old_variance), at in zip(moments, (1, 4), strict=True):
        inside = net[:at](x).detach().double().movedim(1, 0).flatten(1)
        assert torch.allclose(mean.double(), inside.mean(1), atol=1e-5)
        assert torch.allclose(variance.double(), inside.var(1, unbiased=False), rtol=1e-4, atol=1e-6)
        assert old_mean is net[at].running_mean
        assert old_variance is net[at].running_var
    net(x)
    assert len(moments) == 2
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_capture_batchnorm_stats_passes_gradients():
    net = nn.Sequential(nn.BatchNorm2d(3)).eval()
    x = torch.rand(4, 3, 5, 5, requires_grad=True)
    with capture_batchnorm_stats(net) as moments:
        net(x)
    priors.batchnorm(moments).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_central_moments_far_from_zero():
    """Without centring, the difference of squares at a mean of 1000 would lose a variance of 1 in float32."""
    x = torch.randn(64, 2, 8, 8) + 1000
    mean, second = compute_central_moments(x, torch.full((2,), 1000.0))
    exact = x.double().movedim(1, 0).flatten(1)
    assert torch.allclose(mean.double() + 1000, exact.mean(1), atol=1e-3)
    assert torch.allclose((second - mean.square()).double(), exact.var(1, unbiased=False), rtol=1e-3)
