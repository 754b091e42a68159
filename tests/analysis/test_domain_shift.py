"""Domain shift: recommendations from predictions, sampling, and the comparison with a reference set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from compress.analysis.domain_shift import (
    DomainComparison,
    compare_domains,
    median_image_size,
    recommend_method,
    sample_images,
    shift_advice,
)
from compress.data.dataset import ImageSet
from compress.data.predictions import PixelCounts, Predictions
from compress.errors import UsageError
from compress.models import ModelOverrides

TEACHER = "embedded/fashion_wrn16_2"


def predictions_of(logits: np.ndarray) -> Predictions:
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(1)
    return Predictions(entropy, p.max(1), p.argmax(1), logits.shape[1])


@pytest.mark.parametrize(
    ("logits", "part"),
    [
        (np.eye(3)[[0] * 10] * 9, "'a' for 100%"),
        (np.eye(3)[[0, 0, 0, 1, 2]] * 9, "'a' for 60%"),
        (np.eye(4)[:3] * 9, "never predicts 1 of its 4 classes"),
        (np.eye(3) * 0.1, "uncertain"),
        (np.eye(3) * 99, "is confident"),
        (np.eye(3) * 2.5, "medium confidence"),
    ],
)
def test_recommendation_follows_the_predictions(logits, part):
    assert part in recommend_method(predictions_of(logits), list("abcd"))


def test_far_label_maps_get_advice():
    images = predictions_of(np.eye(3) * 9)
    maps = replace(images, pixels=PixelCounts(np.ones(10), np.ones(10), np.ones(3)))
    assert shift_advice(images, 9.0) == shift_advice(maps, None) == shift_advice(maps, 0.14) == ""
    assert "--set method.local=0 --set method.ood_fraction=0" in shift_advice(maps, 0.21)


def test_sample_is_evenly_spaced():
    images = ImageSet("x", [str(i) for i in range(10)], lambda i: Image.new("RGB", (i + 1, 1)), "x")
    sample = sample_images(images, 5)
    assert list(sample.names) == ["0", "2", "4", "6", "8"]
    assert sample.read_image(3).size == (7, 1)
    assert sample_images(images, 10) is images
    assert median_image_size(images) == (1, 6)


def compare(unlabeled: object, **options: object) -> DomainComparison:
    return compare_domains(TEACHER, ModelOverrides(), str(unlabeled), **options)  # pyright: ignore[reportArgumentType]


def test_reference_set_is_compared(photos, clothes):
    result = compare(photos, reference=str(clothes), samples=40, patch_sizes=[8, 32])
    assert result.reference is not None
    assert result.distance is not None
    assert list(result.distance.patch_fid) == [8, 32]
    assert result.distance.patch_fid[32] == result.distance.fid > 0
    crops = result.unlabeled.predictions["images"], result.reference.predictions["images"]
    assert result.distance.images == min(crops) == 40
    assert (result.distance.dimensions, TEACHER in result.distance.features) == (128, True)
    assert len(result.distance.warnings) == 1
    assert result.reference.predictions["balance"] > result.unlabeled.predictions["balance"]


def test_shift_counts_unreadable_images(photos, tmp_path):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    shift = compare(tmp_path).unlabeled
    assert [name.endswith("broken.png") for name, _ in shift.unreadable] == [True]
    assert (shift.images, shift.sampled, shift.median_size) == (9, 9, (40, 48))
    assert sum(shift.predictions["entropy_histogram"]["counts"]) == shift.predictions["images"] >= 500
    assert sum(shift.class_shares.values()) == pytest.approx(1, abs=1e-5)
    assert shift.shift is not None
    assert shift.shift > 0.3


def test_same_images_have_no_distance(clothes):
    result = compare(clothes, reference=str(clothes), samples=8)
    assert result.distance is not None
    assert result.distance.images == 8
    assert result.distance.fid < 1e-3
    assert result.distance.patch_fid == {}


def test_features_of_another_network_are_compared(photos, clothes):
    result = compare(photos, reference=str(clothes), samples=8, features="embedded/scenes_deeplab")
    assert result.distance is not None
    assert "embedded/scenes_deeplab" in result.distance.features


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"patch_sizes": [8]}, "--patch-sizes"),
        ({"features": TEACHER}, "--features"),
        ({"reference": "embedded/fashion", "patch_sizes": [8, 33]}, "33"),
    ],
)
def test_invalid_comparison_is_refused(options, part):
    with pytest.raises(UsageError, match=part):
        compare("embedded/photos", **options)
