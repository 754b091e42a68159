"""How far images are from what a network remembers: against torch's own divergence of normal distributions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from compress.engine.taps import Smoothed, batchnorm_moments, instance_means, last_batchnorm


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    net = nn.Sequential(*layers)
    for _ in range(60):
        net(torch.rand(64, 3, 12, 12))
    return net.eval()


def test_the_shift_is_the_divergence_of_normal_distributions():
    net = network()
    x = torch.rand(20, 3, 12, 12) * 0.5
    with last_batchnorm(net) as seen, torch.no_grad():
        net(x[:13])
        net(x[13:])
    assert seen is not None
    last = net[4]
    with torch.no_grad():
        inputs = net[:4](x).movedim(1, -1).flatten(0, 2).double()
    new = Normal(inputs.mean(0), (inputs.var(0, correction=0)).sqrt())
    old = Normal(last.running_mean.double(), (last.running_var.double() + last.eps).sqrt())
    assert seen.shift() == pytest.approx(float(kl_divergence(new, old).mean()), rel=1e-5)


def test_images_like_those_of_training_are_near_and_others_far():
    net = network()
    shifts = []
    for x in (torch.rand(64, 3, 12, 12), torch.rand(64, 3, 12, 12) * 0.5, torch.zeros(64, 3, 12, 12)):
        with last_batchnorm(net) as seen, torch.no_grad():
            net(x)
        assert seen is not None
        shifts.append(seen.shift())
    assert shifts[0] < 0.01 < shifts[1] < shifts[2]


def test_nothing_is_looked_at_after_the_end_and_a_network_without_batchnorm_gives_none():
    net = network()
    with last_batchnorm(net) as seen:
        pass
    assert seen is not None
    net(torch.rand(2, 3, 12, 12))
    assert seen.count == 0
    with last_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3))) as seen:
        assert seen is None


def test_instance_means_are_what_comes_into_each_batchnorm_averaged_over_places():
    net = network()
    x = torch.rand(6, 3, 12, 12, requires_grad=True)
    with instance_means(net) as means:
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


def test_instance_means_of_modules_by_path_are_of_what_comes_out_and_rows_are_their_own_means():
    net = network()
    x = torch.rand(2, 3, 12, 12)
    with instance_means(net, "2", "3") as means:
        net(x)
    assert torch.allclose(means[0], net[:3](x).mean((2, 3)), atol=1e-6)
    assert torch.allclose(means[1], net[:4](x).mean((2, 3)), atol=1e-6)
    flat = nn.Sequential(nn.BatchNorm1d(3)).eval()
    with instance_means(flat) as means:
        flat(torch.ones(2, 3))
    assert torch.equal(means[0], torch.ones(2, 3))


def test_smoothed_statistics_are_an_exponential_average_of_which_gradients_reach_the_batch():
    net, seen = network(), Smoothed(0.9)
    batches = [torch.rand(8, 3, 12, 12) for _ in range(3)]
    mean = variance = None
    for x in batches:
        x.requires_grad_()
        with batchnorm_moments(net) as moments:
            net(x)
        mixed = seen.mixed(moments)
        inside = net[:4](x).movedim(1, 0).flatten(1)
        m, v = inside.mean(1), inside.var(1, correction=0)
        mean, variance = (m, v) if mean is None else (0.9 * mean + 0.1 * m, 0.9 * variance + 0.1 * v)
        mean, variance = mean.detach(), variance.detach()
        assert torch.allclose(mixed[1][0], mean, atol=1e-5)
        assert torch.allclose(mixed[1][1], variance, atol=1e-5)
        assert mixed[1][2] is net[4].running_mean
        mixed[1][0].sum().backward()
        assert x.grad.abs().sum() > 0
        assert torch.equal(seen.mixed(moments)[1][0], mixed[1][0]), "asking changes nothing"
        seen.follow(moments)
    again = Smoothed(0.9)
    again.load_state_dict(seen.state_dict())
    assert torch.equal(again.mixed(moments)[0][0], seen.mixed(moments)[0][0])
