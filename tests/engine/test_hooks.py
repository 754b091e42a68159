"""Hooks: BatchNorm statistics, their divergence against torch's, and instance means."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from compress.engine.hooks import RunningStats, capture_batchnorm_stats, capture_instance_means, capture_last_batchnorm


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    net = nn.Sequential(*layers)
    for _ in range(60):
        net(torch.rand(64, 3, 12, 12))
    return net.eval()


def test_kl_divergence_equals_torch():
    net = network()
    x = torch.rand(20, 3, 12, 12) * 0.5
    with capture_last_batchnorm(net) as seen, torch.no_grad():
        net(x[:13])
        net(x[13:])
    assert seen is not None
    last = net[4]
    with torch.no_grad():
        inputs = net[:4](x).movedim(1, -1).flatten(0, 2).double()
    new = Normal(inputs.mean(0), (inputs.var(0, correction=0)).sqrt())
    old = Normal(last.running_mean.double(), (last.running_var.double() + last.eps).sqrt())
    assert seen.kl_divergence() == pytest.approx(float(kl_divergence(new, old).mean()), rel=1e-5)


def test_kl_divergence_ranks_domain_shift():
    net = network()
    shifts = []
    for x in (torch.rand(64, 3, 12, 12), torch.rand(64, 3, 12, 12) * 0.5, torch.zeros(64, 3, 12, 12)):
        with capture_last_batchnorm(net) as seen, torch.no_grad():
            net(x)
        assert seen is not None
        shifts.append(seen.kl_divergence())
    assert shifts[0] < 0.01 < shifts[1] < shifts[2]


def test_last_batchnorm_hook_is_removed():
    net = network()
    with capture_last_batchnorm(net) as seen:
        pass
    assert seen is not None
    net(torch.rand(2, 3, 12, 12))
    assert seen.count == 0
    with capture_last_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3))) as seen:
        assert seen is None


def test_instance_means_of_batchnorm_inputs():
    net = network()
    x = torch.rand(6, 3, 12, 12, requires_grad=True)
    with capture_instance_means(net) as means:
        net(x)
    assert [tuple(mean.shape) for mean in means] == [(6, 4), (6, 5)]
    for mean, at in zip(means, (1, 4), strict=True):
        assert torch.allclose(mean, net[:at](x).mean((2, 3)), atol=1e-6)
    means[0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    net(x)
    assert len(means) == 2
    assert not any(module._forward_hooks for module in net.modules())


def test_instance_means_of_module_outputs():
    net = network()
    x = torch.rand(2, 3, 12, 12)
    with capture_instance_means(net, "2", "3") as means:
        net(x)
    assert torch.allclose(means[0], net[:3](x).mean((2, 3)), atol=1e-6)
    assert torch.allclose(means[1], net[:4](x).mean((2, 3)), atol=1e-6)
    flat = nn.Sequential(nn.BatchNorm1d(3)).eval()
    with capture_instance_means(flat) as means:
        flat(torch.ones(2, 3))
    assert torch.equal(means[0], torch.ones(2, 3))


def test_running_stats_are_exponential_average():
    net, seen = network(), RunningStats(0.9)
    batches = [torch.rand(8, 3, 12, 12) for _ in range(3)]
    mean = variance = None
    for x in batches:
        x.requires_grad_()
        with capture_batchnorm_stats(net) as stats:
            net(x)
        mixed = seen.blend(stats)
        inside = net[:4](x).movedim(1, 0).flatten(1)
        m, v = inside.mean(1), inside.var(1, correction=0)
        mean, variance = (m, v) if mean is None else (0.9 * mean + 0.1 * m, 0.9 * variance + 0.1 * v)
        mean, variance = mean.detach(), variance.detach()
        assert torch.allclose(mixed[1][0], mean, atol=1e-5)
        assert torch.allclose(mixed[1][1], variance, atol=1e-5)
        assert mixed[1][2] is net[4].running_mean
        mixed[1][0].sum().backward()
        assert x.grad.abs().sum() > 0
        assert torch.equal(seen.blend(stats)[1][0], mixed[1][0])
        seen.update(stats)
    again = RunningStats(0.9)
    again.load_state_dict(seen.state_dict())
    assert torch.equal(again.blend(stats)[0][0], seen.blend(stats)[0][0])
