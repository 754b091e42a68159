"""Random patches depend on a seed only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress.data.cache import ImageCache
from compress.data.patches import iter_patches, random_corners
from compress.errors import UsageError


def images(n: int, height: int = 12, width: int = 9) -> ImageCache:
    """Images with row, column and index in their channels."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([np.stack([rows, columns, np.full_like(rows, i)], -1) for i in range(n)]).astype(np.uint8)
    return ImageCache("places", pixels, None, None, np.arange(n), [], "places")


@pytest.mark.parametrize("side", [1, 4, 9])
def test_patch_is_part_of_its_image(side):
    cut = torch.cat(list(iter_patches(images(30), side, batch_size=7)))
    assert cut.shape == (30, 3, side, side)
    assert cut[:, 2, 0, 0].tolist() == list(range(30))
    assert (cut[:, 0].diff(dim=1) == 1).all()
    assert (cut[:, 1].diff(dim=2) == 1).all()


def test_patch_positions_depend_on_seed():
    one = torch.cat(list(iter_patches(images(30), 4, batch_size=7)))
    assert torch.equal(one, torch.cat(list(iter_patches(images(30), 4, batch_size=30))))
    assert not torch.equal(one, torch.cat(list(iter_patches(images(30), 4, seed=1))))
    other = torch.cat(list(iter_patches(images(60).subset(np.arange(30, 60)), 4)))
    assert torch.equal(one[:, :2], other[:, :2])
    assert other[:, 2, 0, 0].tolist() == list(range(30, 60))


def test_patch_positions_are_uniform():
    result = random_corners(8000, 12, 9, 8, seed=0)
    counts = np.zeros((5, 2))
    np.add.at(counts, (result[:, 0], result[:, 1]), 1)
    assert counts.min() > 700  # 800 expected, standard deviation 27
    assert counts.max() < 900


def test_patches_without_size_are_images():
    cached = images(5)
    whole = torch.cat(list(iter_patches(cached, None, batch_size=2)))
    assert np.array_equal(whole.permute(0, 2, 3, 1).numpy(), cached.pixels)


@pytest.mark.parametrize("side", [0, 10, -1])
def test_patch_larger_than_image(side):
    with pytest.raises(UsageError, match="12x9"):
        next(iter_patches(images(2), side))
