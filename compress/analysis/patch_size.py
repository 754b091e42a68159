"""Patch size of MosaicKD from the domain shift of its images, for `--patch-size auto`.

Table 4 of the paper: the farther the out-of-domain data, the smaller the best patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from compress.analysis.fid import subsample
from compress.data.batches import iter_batches
from compress.data.cache import ImageCache
from compress.data.predictions import PIXELS_PER_BATCH
from compress.engine.hooks import capture_last_batchnorm
from compress.engine.trainable import eval_mode
from compress.errors import CompressError
from compress.models.discriminators import PATCH_LAYERS

#: (largest shift in nats per channel, patch size): the best sizes of Table 4 in the order of its data sets (CIFAR-10,
#: Places365, SVHN). The shifts are estimates from the embedded teachers: their own images 0.00, the same rotated or on
#: other backgrounds 0.1 to 0.3, other images 0.2 to 0.5, noise 0.8, blank images 1.1.
PATCH_SIZE_BY_SHIFT = ((0.1, 18), (0.6, 8), (math.inf, 4))
#: the paper's size, at most 0.22 points below the best for every data set of Table 4
DEFAULT_PATCH_SIZE = 8


@dataclass(frozen=True)
class PatchSizeChoice:
    """A patch size and the reason for it."""

    patch_size: int  #: side in pixels
    reason: str  #: one sentence


def measure_shift(net: nn.Module, cache: ImageCache, max_images: int) -> float | None:
    """Return the KL divergence at the last BatchNorm layer, in nats per channel, as `compress inspect --ood` does.

    None for a network without BatchNorm. Raises CompressError if it is not finite.
    """
    height, width = cache.pixels.shape[1:3]
    with eval_mode(net), capture_last_batchnorm(net) as statistics:
        if statistics is None:
            return None
        batch_size = max(1, min(64, PIXELS_PER_BATCH // (height * width)))
        for images, _ in iter_batches(subsample(cache, max_images), batch_size):
            net(images.float() / 255)
    shift = statistics.kl_divergence()
    if not math.isfinite(shift):
        raise CompressError(f"{cache.name}: the teacher's activations are not finite; check its checkpoint.")
    return shift


def choice_for_shift(shift: float | None, side: int) -> PatchSizeChoice:
    """Choose the patch size for images of `side` pixels; the paper's size if the shift is unknown (None)."""
    if shift is None:
        size = min(DEFAULT_PATCH_SIZE, patch_size_for_shift(0.0, side))
        reason = f"patch size {size} by default: the teacher has no BatchNorm statistics to measure the shift with."
        return PatchSizeChoice(size, reason)
    size = patch_size_for_shift(shift, side)
    rule = ", ".join(
        f"above: {patch}" if limit == math.inf else f"up to {limit:g}: {patch}" for limit, patch in PATCH_SIZE_BY_SHIFT
    )
    return PatchSizeChoice(
        size,
        f"patch size {size}: the shift of the images at the teacher's last BatchNorm is {shift:.2f} nats per channel "
        f"({rule}; a rule from few measurements, see docs/methods/mosaic.md).",
    )


def patch_size_for_shift(shift: float, side: int) -> int:
    """Return the patch size for images of `side` pixels: the larger the shift, the smaller; less than `side`."""
    largest = next(patch for limit, patch in PATCH_SIZE_BY_SHIFT if shift <= limit)
    return max(patch for patch in PATCH_LAYERS if patch <= largest and patch < side)
