"""One random patch of every image, for measuring: in sets of as many images the same places, drawn from one seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from compress.data.batches import iter_batches
from compress.data.cache import ImageCache
from compress.errors import UsageError

#: last in the seed, beside those of `data/batches.py`
PATCH_SEED = 3


def check_patch_size(side: int, height: int, width: int) -> None:
    """Raises UsageError for patches that do not fit into the images."""
    if not 0 < side <= min(height, width):
        raise UsageError(
            f"patches of {side} pixels: the images are read at {height}x{width}; expected 1 to {min(height, width)}."
        )


def random_corners(n: int, height: int, width: int, side: int, seed: int) -> np.ndarray:
    """int64 [n, 2]: top and left of a patch of `side` pixels in each of `n` images, all places equally likely."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, side, PATCH_SEED])))
    return rng.integers(0, [height - side + 1, width - side + 1], size=(n, 2))


def iter_patches(
    cached: ImageCache, side: int | None, *, seed: int = 0, batch_size: int = 128
) -> Iterator[UInt8[Tensor, "n 3 a b"]]:
    """A patch of `side` x `side` pixels of every image, in order; None: the whole images.

    Raises UsageError for a patch that is larger than the images.
    """
    height, width = cached.pixels.shape[1:3]
    if side is not None:
        check_patch_size(side, height, width)
    places = None if side is None else random_corners(len(cached), height, width, side, seed)
    done = 0
    for images, _ in iter_batches(cached, batch_size):
        if side is None or places is None:
            yield images
        else:
            here = places[done : done + len(images)]
            cut = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, here, strict=True)]
            yield torch.stack(cut)
        done += len(images)
