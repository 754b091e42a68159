"""Generators: sizes, range, parameters of the published networks."""

from __future__ import annotations

import pytest
import torch

from compress.errors import UsageError
from compress.models.generators import DeepGenerator, Generator, generator


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_parameters_of_the_published_networks():
    assert count(Generator()) == 2_026_051
    assert count(DeepGenerator()) == 503_875


@pytest.mark.parametrize("size", [16, 28, 32, 64, 96])
def test_images_of_the_size_asked_for_in_0_to_1(size):
    net = generator(size, z_dim=7, width=4)
    for z in (torch.randn(3, 7), 100 * torch.randn(3, 7)):
        x = net(z)
        assert x.shape == (3, 3, size, size)
        assert x.min().item() >= 0
        assert x.max().item() <= 1


def test_shallow_up_to_64_and_deep_above():
    assert isinstance(generator(64, width=2), Generator)
    assert isinstance(generator(96, width=2), DeepGenerator)


@pytest.mark.parametrize("size", [30, 100])
def test_a_size_that_cannot_be_doubled_to_is_refused(size):
    with pytest.raises(UsageError, match=rf"task\.image_size: .*found {size}"):
        generator(size)


def test_different_noise_makes_different_images():
    x = generator(32, width=4)(torch.randn(4, 100))
    assert not torch.allclose(x[0], x[1])
