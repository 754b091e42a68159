"""Generators: sizes, range, parameters of the published networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.errors import UsageError
from compress.models.generators import (
    GENERATORS,
    DcganGenerator,
    DeepGenerator,
    Generator,
    SmallGenerator,
    build_generator,
    init_dcgan_weights,
    standardize_output,
)
from compress.models.network import Normalize


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_generator_parameters_match_papers():
    assert count(Generator()) == 2_026_051
    assert count(DeepGenerator()) == 503_875
    # CMI's by hand: linear layer, two convolutions without biases, BatchNorms, last layer
    small = 256 * 128 * 8 * 8 + 128 * 8 * 8 + 9 * (128 * 128 + 128 * 64) + 2 * (128 + 128 + 64) + (64 * 3 * 9 + 3)
    assert count(SmallGenerator(z_dim=256)) == small == 2_328_899
    # DFAD's GeneratorB by hand: linear layer, four transposed convolutions without biases, BatchNorms, last layer
    linear = 256 * 512 * 8 * 8 + 512 * 8 * 8
    doubling = 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 64)
    norms = 2 * (512 + 256 + 128 + 64 + 64)
    assert count(DcganGenerator()) == linear + doubling + norms + (64 * 3 * 9 + 3)


@pytest.mark.parametrize("size", [16, 28, 32, 64, 96])
def test_generator_images_are_in_range(size):
    net = build_generator(size, z_dim=7, width=4)
    for z in (torch.randn(3, 7), 100 * torch.randn(3, 7)):
        x = net(z)
        assert x.shape == (3, 3, size, size)
        assert x.min().item() >= 0
        assert x.max().item() <= 1


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("size", [64, 128, 256])
def test_generator_kinds_make_large_images(kind, size):
    net = build_generator(size, z_dim=7, width=2, kind=kind)
    x = net(torch.randn(2, 7))
    assert x.shape == (2, 3, size, size)
    assert 0 <= x.min().item() < x.max().item() <= 1
    assert build_generator(size, z_dim=7, width=2, channels=1, kind=kind)(torch.randn(2, 7)).shape == (2, 3, size, size)


@pytest.mark.parametrize("kind", GENERATORS)
def test_generator_gradients_reach_all_layers(kind):
    net = build_generator(64, width=2, kind=kind)
    net(torch.randn(4, 100)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_unknown_generator_is_refused():
    with pytest.raises(UsageError, match="shallow, small, deep, dcgan"):
        build_generator(64, kind="big")
    with pytest.raises(UsageError, match="72"):
        build_generator(72, kind="dcgan")


def test_default_kind_depends_on_size():
    assert isinstance(build_generator(64, width=2), Generator)
    assert isinstance(build_generator(96, width=2), DeepGenerator)


@pytest.mark.parametrize("size", [30, 100])
def test_unsuitable_size_is_refused(size):
    with pytest.raises(UsageError, match=rf"task\.image_size: .*found {size}"):
        build_generator(size)


def test_noise_changes_the_images():
    x = build_generator(32, width=4)(torch.randn(4, 100))
    assert not torch.allclose(x[0], x[1])


@pytest.mark.parametrize("kind", GENERATORS)
def test_dcgan_init_statistics(kind):
    net = init_dcgan_weights(build_generator(64, z_dim=20, width=16, kind=kind))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name
            assert parameter.mean().abs().item() < 0.005, name
        else:
            assert parameter.mean().item() == pytest.approx(1, abs=0.03), name


def reader(channels: int = 3) -> nn.Module:
    """A network with the normalization of a teacher."""
    mean, std = (values[:channels] for values in ((0.3, 0.5, 0.6), (0.35, 0.2, 0.1)))
    return nn.Sequential(Normalize(mean, std, grayscale=channels == 1), nn.Flatten())


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["shallow", "small", "deep"])
def test_standardized_generator_matches_statistics(kind, channels, tanh):
    torch.manual_seed(0)
    net = standardize_output(
        build_generator(32, z_dim=16, width=8, channels=channels, kind=kind), reader(channels), tanh=tanh
    )
    mean, std = (torch.tensor(values[:channels]) for values in ([0.3, 0.5, 0.6], [0.35, 0.2, 0.1]))
    x = net(torch.randn(64, 16)).detach().double()
    assert x.shape == (64, 3, 32, 32)
    assert torch.allclose(x.mean((0, 2, 3)), mean.expand(3).double(), atol=1e-4)
    assert torch.allclose(x.std((0, 2, 3)), std.expand(3).double(), rtol=1e-2)
    assert x.min() < 0
    at_rest = net.eval()(torch.randn(64, 16))
    assert at_rest.min() >= 0
    assert at_rest.max() <= 1


@pytest.mark.parametrize("tanh", [False, True])
def test_standardized_tanh_keeps_deviation(tanh):
    torch.manual_seed(0)
    net = standardize_output(build_generator(32, z_dim=16, width=8), reader(), tanh=tanh)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 30
    x = net(torch.randn(64, 16)).detach()
    assert torch.allclose(x.std((0, 2, 3)), torch.tensor([0.35, 0.2, 0.1]), rtol=1e-2) == tanh


def test_standardized_dcgan_is_refused():
    with pytest.raises(UsageError, match="dcgan"):
        standardize_output(build_generator(32, kind="dcgan"), reader())


def test_standardized_tanh_dcgan_is_unchanged():
    dcgan = build_generator(32, kind="dcgan")
    assert standardize_output(dcgan, reader(), tanh=True) is dcgan
