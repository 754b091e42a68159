"""How far images are from what a network remembers: against torch's own divergence of normal distributions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from compress.engine.taps import last_batchnorm


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
