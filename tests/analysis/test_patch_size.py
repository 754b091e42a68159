"""The rule of `--patch-size auto`: monotone in the measured shift, with patches that can be built."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from compress.analysis.patch_size import (
    DEFAULT_PATCH_SIZE,
    PATCH_SIZE_BY_SHIFT,
    choice_for_shift,
    measure_shift,
    patch_size_for_shift,
)
from compress.data.cache import ImageCache
from compress.errors import CompressError
from compress.methods.mosaic import MosaicKD
from compress.models.discriminators import build_discriminator
from compress.models.loading import load_model

TEACHER = "embedded/fashion_wrn16_2"


@pytest.mark.parametrize("side", [16, 20, 32, 64, 224])
def test_larger_shift_gives_smaller_patches(side):
    sizes = [patch_size_for_shift(shift, side) for shift in np.linspace(0, 2, 201)]
    assert all(now >= after for now, after in pairwise(sizes))
    assert len(set(sizes)) > 1
    assert max(sizes) < side


def test_rule_covers_all_shifts():
    limits, sizes = zip(*PATCH_SIZE_BY_SHIFT, strict=True)
    assert list(limits) == sorted(limits)
    assert limits[-1] == math.inf
    assert list(sizes) == sorted(sizes, reverse=True)
    assert [patch_size_for_shift(limit, 32) for limit in limits] == list(sizes)
    assert MosaicKD().patch_size == DEFAULT_PATCH_SIZE


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("shift", [None, 0.0, 0.3, 5.0])
def test_chosen_patches_can_be_built(side, shift):
    choice = choice_for_shift(shift, side)
    scores = build_discriminator(choice.patch_size, side, width=8)(torch.rand(2, 3, side, side))
    assert scores.shape[2] > 1
    assert f"patch size {choice.patch_size}" in choice.reason


def create_noise(count: int, size: int = 32) -> ImageCache:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageCache("noise", pixels, None, None, np.arange(count), [], "noise")


def test_shift_is_measured_on_a_sample():
    net, _ = load_model(TEACHER)
    cache = create_noise(40)
    shift = measure_shift(net, cache, 10)
    assert shift == measure_shift(net, cache.subset(np.arange(0, 40, 4)), 100)
    assert shift != measure_shift(net, cache, 40)
    assert measure_shift(nn.Flatten(), cache, 10) is None
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    with pytest.raises(CompressError, match="noise"):
        measure_shift(net, cache, 10)
