"""The Fréchet distance against its formula in float64 by scipy, its features, and refused networks."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor, nn

from compress.analysis.fid import FeatureExtractor, compare_image_sets, compute_fid, find_last_layer
from compress.data.cache import ImageCache
from compress.data.patches import iter_patches
from compress.engine.trainable import eval_mode
from compress.errors import CompressError, UsageError
from compress.models.card import ModelCard
from compress.models.registry import build_network


def images(n: int, seed: int, size: int = tiny.SIZE) -> ImageCache:
    """Smooth random images, each seed with a color of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (n, size // 4, size // 4, 3)) + rng.integers(0, 56, 3)
    pixels = coarse.repeat(4, 1).repeat(4, 2).astype(np.uint8)
    return ImageCache(f"set {seed}", pixels, None, None, np.arange(n), [], str(seed))


def tiny_features(task: str = "classification") -> FeatureExtractor:
    return FeatureExtractor(tiny.random_network(3, tiny.CARDS[task]), tiny.CARDS[task], "tiny")


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2(ΣΣ')^½) with unbiased covariances."""
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(one @ other)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root.real))


def rows(net: nn.Module, x: Tensor) -> np.ndarray:
    """Penultimate features of `tiny:small`, without hooks."""
    body = net.body
    assert isinstance(body, nn.Sequential)
    with eval_mode(body), torch.no_grad():
        return body[:-1](net.normalize(x)).double().numpy()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("side", [None, 1, 2, 8, 16])
def test_fid_matches_its_formula(side):
    features, one, other = tiny_features(), images(300, 0), images(200, 1)
    found = compute_fid(features, one, other, side, seed=5)
    each = []
    for cached in (one, other):
        x = torch.cat(list(iter_patches(cached, side, seed=5))).float() / 255
        if side not in (None, tiny.SIZE):
            x = F.interpolate(x, (tiny.SIZE, tiny.SIZE), mode="bilinear", align_corners=False)
        each.append(rows(features.net, x))
    assert found == pytest.approx(reference(*each), rel=1e-4, abs=1e-7)


def test_fid_is_a_distance():
    features, one, other = tiny_features(), images(100, 0), images(100, 1)
    assert 0 <= compute_fid(features, one, one, 4) < 1e-6
    apart = compute_fid(features, one, other, 4)
    assert apart > 1e-4
    assert apart == pytest.approx(compute_fid(features, other, one, 4), rel=1e-6)


def test_full_size_patch_equals_the_image():
    found = compare_image_sets(tiny_features(), images(40, 0), images(40, 1), [8, tiny.SIZE])
    assert found.patch_fid[tiny.SIZE] == found.fid
    assert found.patch_fid[8] != found.fid
    assert compute_fid(tiny_features(), images(40, 0), images(40, 1), tiny.SIZE) == pytest.approx(found.fid)


def test_larger_set_is_subsampled():
    many, few = images(90, 0), images(30, 1)
    found = compare_image_sets(tiny_features(), many, few)
    assert found.images == 30
    assert found.fid == compute_fid(tiny_features(), many.subset(np.arange(0, 90, 3)), few)


def test_unreliable_distances_have_warnings():
    features, one, other = tiny_features(), images(9, 0), images(9, 1)
    assert features.num_features == 8
    assert compare_image_sets(features, one, other, [8]).warnings == []
    (few,) = compare_image_sets(features, one.subset(np.arange(8)), other, [8]).warnings
    assert few.startswith("8 images")
    (small,) = compare_image_sets(features, one, other, [4, 8]).warnings
    assert "patch" in small
    with pytest.raises(UsageError, match="found 1 image"):
        compare_image_sets(features, one.subset(np.arange(1)), other)


def test_segmentation_features_are_averaged():
    features = tiny_features("segmentation")
    x = torch.rand(3, 3, tiny.SIZE, tiny.SIZE)
    net = features.net
    body = net.body
    assert isinstance(body, nn.Sequential)
    with eval_mode(body), torch.no_grad():
        expected = body[:3](net.normalize(x)).mean((2, 3))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(features(x), expected.double())
    assert (features.path, features.num_features) == ("body.3", 8)
    assert features.description() == "the 8 inputs of 3 in tiny"


def test_convolutional_classifier_has_features():
    card = ModelCard("torchvision/squeezenet1_1", 7, (64, 64))
    assert find_last_layer(build_network(card).eval(), card, "net") == ("body.classifier.1", 512)


def test_network_without_classes_is_refused():
    with pytest.raises(UsageError, match="--features"):
        FeatureExtractor(nn.Flatten(), tiny.CARD, "flat")


def test_nonfinite_features_are_an_error():
    features = tiny_features()
    with torch.no_grad():
        next(features.net.parameters()).fill_(torch.nan)
    with pytest.raises(CompressError, match="tiny"):
        compute_fid(features, images(4, 0), images(4, 1))
