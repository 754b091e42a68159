"""`--patch-size auto`: the side of MosaicKD's patches, chosen once, before a run begins, from how far its images are.

Table 4 of the paper: the farther the out-of-domain data, the smaller the patches that still serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compress import config
from compress.data.batches import iter_batches
from compress.data.cache import ImageCache
from compress.data.predictions import PIXELS_PER_BATCH, predict, select_highest_entropy
from compress.analysis.fid import sample_size, subsample
from compress.engine.hooks import capture_last_batchnorm
from compress.engine.trainable import eval_mode
from compress.errors import CompressError
from compress.methods.mosaic import MosaicKD
from compress.models.discriminators import PATCH_LAYERS
from compress.training.setup import RECIPE, TrainingSetup
from compress.training.data import load_training_images

AUTO = "auto"
#: (shift in nats a channel up to which, patch size): Table 4's best sizes in the order of its data sets (CIFAR-10,
#: Places365, SVHN), at shifts guessed from those that embedded teachers see: their own images 0.00, the same turned or
#: on other grounds 0.1 to 0.3, other pictures 0.2 to 0.5, noise 0.8, blank images 1.1
PATCH_SIZE_BY_SHIFT = ((0.1, 18), (0.6, 8), (math.inf, 4))
#: the paper's size, at most 0.22 points below the best for every data set of Table 4
DEFAULT_PATCH_SIZE = 8


@dataclass(frozen=True)
class PatchSizeChoice:
    """A patch size, and why, in a sentence."""

    patch_size: int
    reason: str


def patch_size_for_shift(shift: float, side: int) -> int:
    """The patch size for images of `side` pixels at this shift: the larger the shift, the smaller; below `side`."""
    wanted = next(patch for limit, patch in PATCH_SIZE_BY_SHIFT if shift <= limit)
    return max(patch for patch in PATCH_LAYERS if patch <= wanted and patch < side)


def choice_for_shift(shift: float | None, side: int) -> PatchSizeChoice:
    """What `rule` says of a shift, None for a teacher that has none to measure.

    Without one the paper's size is taken and not the run refused: it is what a run without auto would take.
    """
    if shift is None:
        patch = min(DEFAULT_PATCH_SIZE, patch_size_for_shift(0.0, side))
        return PatchSizeChoice(
            patch,
            f"patch size {patch}, not chosen but the default: the teacher has no BatchNorm that remembers its own "
            "images, so auto cannot tell how far these are.",
        )
    patch = patch_size_for_shift(shift, side)
    steps = ", ".join(f"above: {size}" if limit == math.inf else f"up to {limit:g}: {size}" for limit, size in PATCH_SIZE_BY_SHIFT)
    return PatchSizeChoice(
        patch,
        f"patch size {patch}: the images are {shift:.2f} nats a channel from what the teacher's last BatchNorm "
        f"remembers, and the farther they are, the smaller the patches that look alike ({steps}; a rule from few "
        "measurements, see docs/methods/mosaic.md).",
    )


def measure_shift(net: nn.Module, cached: ImageCache, most: int) -> float | None:
    """How far at most `most` of the images are at the last BatchNorm of `net`, as `compress inspect --ood` says it.

    None for a network without one. Raises CompressError where what reaches it is not finite.
    """
    height, width = cached.pixels.shape[1:3]
    with eval_mode(net), capture_last_batchnorm(net) as seen:
        if seen is None:
            return None
        for images, _ in iter_batches(subsample(cached, most), max(1, min(64, PIXELS_PER_BATCH // (height * width)))):
            net(images.float() / 255)
    shift = seen.kl_divergence()
    if not math.isfinite(shift):
        raise CompressError(f"{cached.name}: what the teacher makes of them is not finite; is its checkpoint whole?")
    return shift


def choose_patch_size(ready: TrainingSetup, folder: Path, *, resume: bool | None, say: Callable[[str], None]) -> PatchSizeChoice | None:
    """Put a number into the plan where `method.patch` is auto, and say why; None where it is a number already.

    A run that `folder` holds keeps the number it began with, unless it is begun anew (`resume` False).
    """
    method = ready.method
    if not isinstance(method, MosaicKD) or method.patch_size != AUTO:
        return None
    held = None if resume is False else recorded_patch_size(folder)
    if held is not None:
        found = PatchSizeChoice(held, f"patch size {held}: as the run in {folder} has it, which goes on.")
    elif not method.local:
        found = PatchSizeChoice(DEFAULT_PATCH_SIZE, f"patch size {DEFAULT_PATCH_SIZE}, without meaning: method.local is 0, so nobody judges patches.")
    else:
        found = measure_patch_size(ready, say)
    method.patch_size = ready.config.method["patch"] = found.patch_size
    say(found.reason)
    return found


def recorded_patch_size(folder: Path) -> int | None:
    """The patch size of the recipe in `folder`, if there is one."""
    path = folder / RECIPE
    found = config.load_yaml(path).get("method.patch") if path.exists() else None
    return found if isinstance(found, int) else None


def measure_patch_size(ready: TrainingSetup, say: Callable[[str], None]) -> PatchSizeChoice:
    """The choice for the images that the run will read: the very ones, decoded into its cache."""
    (net, card), data = ready.teachers[0], ready.config.data
    cached = load_training_images(data, ready.card, "unlabeled", seed=ready.config.training.seed, say=say)
    if data.subset is not None:
        cached = cached.subset(select_highest_entropy(predict(cached, net), data.subset))
    return choice_for_shift(measure_shift(net, cached, sample_size(card)), min(card.image_size))
