"""How far two sets of images are apart to a network: the Fréchet distance of its features, of images and of patches.

MosaicKD (arXiv 2110.15094) reports it in Figure 3 and, of patches, in Table 4, with Inception-V3's features; here they
are those of any network at hand, usually the teacher.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from compress.data.cache import ImageCache
from compress.data.patches import iter_patches
from compress.engine.hooks import capture_activations, find_classifier
from compress.engine.trainable import eval_mode
from compress.errors import CompressError, UsageError
from compress.models.card import ModelCard

#: images that a model is asked about, and pixels of them where it answers with maps
SAMPLED, MAP_PIXELS = 2000, 2000 * 64 * 64
#: pixels below which an enlarged patch is nearly one colour
MIN_PATCH_SIZE = 8


def sample_size(card: ModelCard) -> int:
    """How many images the model is asked about: the answers of large maps take long, and hold many pixels each."""
    height, width = card.image_size
    return SAMPLED if card.task == "classification" else max(100, min(SAMPLED, MAP_PIXELS // (height * width)))


class FeatureExtractor(nn.Module):
    """Images in [0, 1] -> what enters the last layer of `net`, the one that makes its classes, averaged over a map.

    Images of another size than the network's are resized to it, bilinearly. Raises UsageError for a network without
    such a layer.
    """

    num_features: int

    def __init__(self, net: nn.Module, card: ModelCard, name: str) -> None:
        super().__init__()
        self.net, self.size, self.name = net, card.image_size, name
        self.path, self.num_features = find_last_layer(net, card, name)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float64[Tensor, "n d"]:
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        with eval_mode(self.net) as net, capture_activations(net, self.path, capture_inputs=True) as found:
            net(x)
        rows = found[self.path].double()
        return rows.flatten(2).mean(2) if rows.ndim == 4 else rows

    def description(self) -> str:
        return f"the {self.num_features} that enter {self.path.removeprefix('body.')} of {self.name}"


def find_last_layer(net: nn.Module, card: ModelCard, name: str) -> tuple[str, int]:
    """(module path, channels in) of the last linear layer of a classifier, else of the last convolution to classes."""
    blank = torch.zeros(2, 3, *card.image_size)
    if card.task == "classification":
        with contextlib.suppress(UsageError):
            return find_classifier(net, blank)
    makes = {
        path: module.in_channels
        for path, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and module.out_channels == card.classes
    }
    with eval_mode(net), capture_activations(net, *makes, capture_inputs=True) as found:
        net(blank)
    if not found:
        raise UsageError(
            f"{name}: no linear layer and no convolution that ends in its {card.classes} classes can be looked at, so "
            "there are no features to compare; name a network that has one with --features."
        )
    path = list(found)[-1]
    return path, makes[path]


def compute_fid(features: FeatureExtractor, one: ImageCache, other: ImageCache, side: int | None = None, *, seed: int = 0) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2(ΣΣ')^½) of the features of two sets, of one random patch an image where `side` says.

    In float64, by torchmetrics; >= 0, where the eigenvalues' rounding may say a little less. Raises CompressError
    where a feature is not finite.
    """
    metric = FrechetInceptionDistance(feature=features)
    for cached, real in ((one, False), (other, True)):
        for x in iter_patches(cached, side, seed=seed):
            metric.update(x.float() / 255, real=real)
    sums = torch.stack([metric.real_features_sum, metric.fake_features_sum])
    if not bool(sums.isfinite().all()):
        raise CompressError(f"{features.name}: its features are not finite; is its checkpoint whole?")
    return max(0.0, float(metric.compute()))


@dataclass(frozen=True)
class ImageSetComparison:
    """How far two sets are apart, and how that was measured."""

    features: str  #: in words: which of which network
    dimensions: int  #: of the features
    images: int  #: of each set: the distance depends on their number
    fid: float
    patch_fid: dict[int, float]  #: by side of the patches in pixels
    warnings: list[str]


def compare_image_sets(
    features: FeatureExtractor, one: ImageCache, other: ImageCache, sides: Sequence[int] = (), *, seed: int = 0
) -> ImageSetComparison:
    """The distances of as many images of each set, evenly spread where one has more; crops count as images.

    Raises UsageError where a set has fewer than two images or a side is larger than they are.
    """
    n = min(len(one), len(other))
    if n < 2:
        raise UsageError(f"{one.name} and {other.name}: found {n} image in one of them; expected two or more of each.")
    one, other = subsample(one, n), subsample(other, n)
    warnings = []
    if n <= features.num_features:
        warnings.append(
            f"{n:,} images do not determine the covariance of {features.num_features:,} features: these distances "
            f"are too large, and only those of as many images compare; give more than {features.num_features:,}."
        )
    if min(sides, default=MIN_PATCH_SIZE) < MIN_PATCH_SIZE:
        warnings.append(
            f"an enlarged patch below {MIN_PATCH_SIZE} pixels is nearly one colour, which few networks know: rank no sets by it."
        )
    whole = compute_fid(features, one, other, seed=seed)
    square = one.pixels.shape[1] == one.pixels.shape[2]
    apart = {
        side: whole if square and side == one.pixels.shape[1] else compute_fid(features, one, other, side, seed=seed)
        for side in sides
    }
    return ImageSetComparison(features.description(), features.num_features, n, whole, apart, warnings)


def subsample(cached: ImageCache, n: int) -> ImageCache:
    """`n` of the images, evenly spread."""
    return cached if n >= len(cached) else cached.subset(np.arange(n) * len(cached) // n)
