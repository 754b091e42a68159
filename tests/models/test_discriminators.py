"""Patch discriminators: receptive fields measured by gradients."""

from __future__ import annotations

import math

import pytest
import torch

from compress.errors import UsageError
from compress.models.discriminators import (
    PATCH_LAYERS,
    ImageDiscriminator,
    PatchDiscriminator,
    build_discriminator,
    receptive_field,
)


def support(net, size, row):
    """(first, last) pixel row that the logit in the middle column of `row` depends on, by the gradient."""
    x = torch.rand(1, 3, size, size, requires_grad=True)
    judged = net.eval()(x)
    (gradient,) = torch.autograd.grad(judged[0, 0, row, judged.shape[3] // 2], x)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten().tolist()
    assert len(rows) == len(columns) == rows[-1] - rows[0] + 1
    return rows[0], rows[-1]


@pytest.mark.parametrize("patch", PATCH_LAYERS)
def test_logit_receptive_field_is_the_patch(patch):
    net = PatchDiscriminator(patch, width=8)
    middle = net(torch.rand(2, 3, 96, 96)).shape[2] // 2
    first, last = support(net, 96, middle)
    assert last - first + 1 == patch
    field, jump = receptive_field(PATCH_LAYERS[patch])
    assert field == patch
    assert support(net, 96, middle + 1)[0] - first == jump


def test_image_discriminator_covers_32_pixels():
    net = build_discriminator(32, 32, width=16)
    assert isinstance(net, ImageDiscriminator)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 1, 1, 1)
    assert support(net, 32, 0) == (0, 31)


@pytest.mark.parametrize("size", [48, 64, 96, 128, 224, 256])
def test_image_discriminator_covers_large_images(size):
    net = build_discriminator(size, size, width=8)
    assert isinstance(net, ImageDiscriminator)
    assert net(torch.rand(2, 3, size, size)).shape == (2, 1, 1, 1)
    assert support(net, size, 0) == (0, size - 1)


@pytest.mark.parametrize(
    ("patch", "size", "side"), [(22, 128, 16), (22, 224, 28), (22, 256, 32), (46, 224, 14), (46, 64, 4)]
)
def test_patch_count_on_large_images(patch, size, side):
    assert build_discriminator(patch, size, width=8)(torch.rand(2, 3, size, size)).shape == (2, 1, side, side)


@pytest.mark.parametrize("patch", PATCH_LAYERS)
def test_receptive_field_on_large_images(patch):
    """128 pixels, from the gradient of the logit in the middle."""
    net = build_discriminator(patch, 128, width=4)
    first, last = support(net, 128, net(torch.rand(2, 3, 128, 128)).shape[2] // 2)
    assert last - first + 1 == patch


@pytest.mark.parametrize(("patch", "side"), [(1, 32), (2, 31), (4, 16), (8, 8), (10, 8), (18, 8), (22, 4)])
def test_patch_count_on_32_pixels(patch, side):
    assert build_discriminator(patch, 32, width=8)(torch.rand(2, 3, 32, 32)).shape == (2, 1, side, side)


def test_discriminator_parameters_match_paper():
    """kernel² · in · out, plus biases without BatchNorm or two parameters per channel with it; L = 8 at width 128."""
    hidden, last = 4 * 4 * 3 * 128 + 128, 256 + 1
    published = {
        1: 640 + 1,  # the published ones count 640 and have no bias in the last layer; ours has one
        8: hidden + 3 * 3 * 128 * 256 + 2 * 256 + last,
        10: hidden + 4 * 4 * 128 * 256 + 2 * 256 + last,
    }
    for patch, expected in published.items():
        assert sum(p.numel() for p in PatchDiscriminator(patch).parameters()) == expected
    # the deeper ones at width 64; the published ones have no biases, ours have them in the first layer and the last
    assert sum(p.numel() for p in PatchDiscriminator(22, width=64).parameters()) == 659_456 + 64 + 1
    assert sum(p.numel() for p in PatchDiscriminator(46, width=64).parameters()) == 2_757_888 + 64 + 1
    assert published[8] == 301_952 + 1
    assert published[10] == 531_328 + 1


@pytest.mark.parametrize("patch", [*PATCH_LAYERS, 32])
def test_gray_images_have_bounded_logits(patch):
    """Zero padding means mid-gray, so borders of a gray image have similar logits."""
    net = build_discriminator(patch, 32, width=8).eval()
    judged = net(torch.full((1, 3, 32, 32), 0.5))
    assert torch.isfinite(judged).all()
    assert judged.abs().max() < 10


def test_unknown_patch_size_is_refused():
    with pytest.raises(UsageError, match="1, 2, 4, 8, 10, 18, 22, 46"):
        build_discriminator(3, 32)
    with pytest.raises(UsageError, match="28"):
        build_discriminator(28, 28)


def test_initial_loss_is_near_chance():
    torch.manual_seed(0)
    judged = build_discriminator(8, 32)(torch.rand(16, 3, 32, 32))
    assert math.log(2) * 0.5 < torch.nn.functional.softplus(-judged).mean().item() < math.log(2) * 2
