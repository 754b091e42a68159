"""Fréchet distance of the features of two image sets, for images and for patches.

MosaicKD (arXiv 2110.15094) reports it in Figure 3 and, for patches, in Table 4, with features of Inception-V3. Here the
features are those of any network, usually the teacher.
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

#: images to predict, and their pixels for label maps
MAX_IMAGES, MAX_MAP_PIXELS = 2000, 2000 * 64 * 64
#: side in pixels below which an enlarged patch has nearly one color
MIN_PATCH_SIZE = 8


@dataclass(frozen=True)
class ImageSetComparison:
    """Distance of two image sets, and how it was measured."""

    features: str  #: features and network
    dimensions: int  #: number of features
    images: int  #: images of each set; the distance depends on it
    fid: float  #: Fréchet distance of the images
    patch_fid: dict[int, float]  #: Fréchet distance by patch size in pixels
    warnings: list[str]  #: reasons why the distances may mislead


def sample_size(card: ModelCard) -> int:
    """Return how many images to predict: fewer for large label maps, which take long."""
    height, width = card.image_size
    if not card.predicts_maps:
        return MAX_IMAGES
    return max(100, min(MAX_IMAGES, MAX_MAP_PIXELS // (height * width)))


class FeatureExtractor(nn.Module):
    """Images [n, 3, h, w] in [0, 1] -> inputs of the last layer of `net` [n, d], averaged over a map.

    Images of another size are resized bilinearly. Raises UsageError for a network without such a layer.
    """

    num_features: int

    def __init__(self, net: nn.Module, card: ModelCard, name: str) -> None:
        super().__init__()
        self.net, self.size, self.name = net, card.image_size, name
        self.path, self.num_features = find_last_layer(net, card, name)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float64[Tensor, "n d"]:
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        with eval_mode(self.net) as net, capture_activations(net, self.path, capture_inputs=True) as activations:
            net(x)
        rows = activations[self.path].double()
        return rows.flatten(2).mean(2) if rows.ndim == 4 else rows

    def description(self) -> str:
        return f"the {self.num_features} inputs of {self.path.removeprefix('body.')} in {self.name}"


def find_last_layer(net: nn.Module, card: ModelCard, name: str) -> tuple[str, int]:
    """Return (module path, input channels) of the last linear layer, or of the last convolution to classes."""
    example = torch.zeros(2, 3, *card.image_size)
    if not card.predicts_maps:
        with contextlib.suppress(UsageError):
            return find_classifier(net, example)
    channels = {
        path: module.in_channels
        for path, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and module.out_channels == card.classes
    }
    with eval_mode(net), capture_activations(net, *channels, capture_inputs=True) as activations:
        net(example)
    if not activations:
        raise UsageError(
            f"{name}: found no linear layer and no convolution to its {card.classes} classes, so no features; name a "
            "network that has one with --features."
        )
    path = list(activations)[-1]
    return path, channels[path]


def compute_fid(
    features: FeatureExtractor, images: ImageCache, others: ImageCache, patch_size: int | None = None, *, seed: int = 0
) -> float:
    """Return ‖μ − μ'‖² + tr(Σ + Σ' − 2(ΣΣ')^½) of the features of two sets, in float64 and >= 0.

    Args:
        features: the feature extractor.
        images: one set.
        others: the other set.
        patch_size: side in pixels of one random patch per image; None: the whole images.
        seed: seed of the patches' positions.

    Raises:
        CompressError: a feature is not finite.
    """
    metric = FrechetInceptionDistance(feature=features)
    for cache, is_real in ((images, False), (others, True)):
        for x in iter_patches(cache, patch_size, seed=seed):
            metric.update(x.float() / 255, real=is_real)
    sums = torch.stack([metric.real_features_sum, metric.fake_features_sum])
    if not bool(sums.isfinite().all()):
        raise CompressError(f"{features.name}: its features are not finite; check its checkpoint.")
    return max(0.0, float(metric.compute()))  # rounding of the eigenvalues can give slightly less


def compare_image_sets(
    features: FeatureExtractor, images: ImageCache, others: ImageCache, patch_sizes: Sequence[int] = (), *,
    seed: int = 0,
) -> ImageSetComparison:  # fmt: skip
    """Compute the distances of equally many images of both sets, evenly spaced; crops count as images.

    Raises:
        UsageError: a set has fewer than two images, or a patch is larger than the images.
    """
    count = min(len(images), len(others))
    if count < 2:
        raise UsageError(f"{images.name} and {others.name}: found {count} image in one set, expected two or more.")
    images, others = subsample(images, count), subsample(others, count)
    warnings = []
    if count <= features.num_features:
        warnings.append(
            f"{count:,} images do not determine the covariance of {features.num_features:,} features: the distances "
            f"are too large and compare only at the same number of images; use more than {features.num_features:,}."
        )
    if min(patch_sizes, default=MIN_PATCH_SIZE) < MIN_PATCH_SIZE:
        warnings.append(
            f"an enlarged patch below {MIN_PATCH_SIZE} pixels has nearly one color, which few networks know: do not "
            "rank image sets by it."
        )
    fid = compute_fid(features, images, others, seed=seed)
    is_square = images.pixels.shape[1] == images.pixels.shape[2]
    patch_fid = {
        size: fid
        if is_square and size == images.pixels.shape[1]
        else compute_fid(features, images, others, size, seed=seed)
        for size in patch_sizes
    }
    return ImageSetComparison(features.description(), features.num_features, count, fid, patch_fid, warnings)


def subsample(cache: ImageCache, count: int) -> ImageCache:
    """Return `count` of the images, evenly spaced."""
    return cache if count >= len(cache) else cache.subset(np.arange(count) * len(cache) // count)
