"""One random patch of every image, for comparing sets of images; the same positions in sets of equal length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from compress.data.batches import iter_batches
from compress.data.cache import ImageCache
from compress.errors import UsageError

#: last entry of the seed; `data/batches.py` has 1 and 2
PATCH_SEED = 3


def check_patch_size(side: int, height: int, width: int) -> None:
    """Raise UsageError if patches do not fit into the images."""
    if not 0 < side <= min(height, width):
        raise UsageError(
            f"--patch-sizes: found {side} for images of {height}x{width}, expected 1 to {min(height, width)}."
        )


def random_corners(n: int, height: int, width: int, side: int, seed: int) -> np.ndarray:
    """int64 [n, 2]: top and left of a patch of `side` pixels in each of `n` images, uniformly distributed."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, side, PATCH_SEED])))
    return rng.integers(0, [height - side + 1, width - side + 1], size=(n, 2))


def iter_patches(
    cached: ImageCache, side: int | None, *, seed: int = 0, batch_size: int = 128
) -> Iterator[UInt8[Tensor, "n 3 a b"]]:
    """Yield batches with a patch of `side` x `side` pixels of every image, in order; None: the full images.

    Raises UsageError if a patch is larger than the images.
    """
    height, width = cached.pixels.shape[1:3]
    if side is not None:
        check_patch_size(side, height, width)
    corners = None if side is None else random_corners(len(cached), height, width, side, seed)
    done = 0
    for images, _ in iter_batches(cached, batch_size):
        if side is None or corners is None:
            yield images
        else:
            batch = zip(images, corners[done : done + len(images)], strict=True)
            yield torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in batch])
        done += len(images)
