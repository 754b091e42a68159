"""Predictions of a teacher against float64 references."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from compress.data.cache import ImageCache
from compress.data.predictions import Predictions, predict, select_highest_entropy
from compress.errors import CompressError


def images(n: int) -> ImageCache:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return ImageCache("noise", pixels, None, None, np.arange(n), [], "noise")


def lines(logits: np.ndarray, batch_size: int = 4) -> Predictions:
    """Predictions of a teacher with these logits."""
    rest = iter(torch.from_numpy(logits).split(batch_size))
    return predict(images(len(logits)), lambda _: next(rest), batch_size)


def entropy(logits: np.ndarray) -> np.ndarray:
    """In nats, float64, from scipy."""
    log_p = logits.astype(np.float64) - logsumexp(logits.astype(np.float64), axis=1, keepdims=True)
    return -(np.exp(log_p) * log_p).sum(1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_predictions_agree_with_float64(scale):
    logits = (np.random.default_rng(1).normal(size=(23, 7)) * scale).astype(np.float32)
    result = lines(logits)
    np.testing.assert_allclose(result.entropy, entropy(logits), atol=1e-9)
    np.testing.assert_allclose(result.confidence, np.exp(logits.max(1) - logsumexp(logits.astype(np.float64), axis=1)))
    assert result.prediction.tolist() == logits.argmax(1).tolist()
    assert (result.entropy >= 0).all()
    assert (result.entropy <= math.log(7) + 1e-9).all()


def test_predictions_of_saturated_teacher():
    """p · log p is NaN where p underflows to zero, and NaN sorts first."""
    logits = np.zeros((6, 5), dtype=np.float32)
    logits[:, 2] = [0, 50, 200, 1e4, 3e38, 1]
    result = lines(logits)
    assert np.isfinite(result.entropy).all()
    assert result.entropy[3] == result.entropy[4] == 0
    assert select_highest_entropy(result, 2).tolist() == [0, 5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_fail(bad):
    logits = np.zeros((6, 5), dtype=np.float32)
    logits[5, 1] = bad
    with pytest.raises(CompressError, match="noise"):
        lines(logits)


def test_highest_entropy_keeps_data_order():
    logits = (np.random.default_rng(2).normal(size=(50, 4)) * 3).astype(np.float32)
    result = lines(logits)
    chosen = select_highest_entropy(result, 12)
    assert chosen.tolist() == sorted(chosen.tolist())
    others = np.setdiff1d(np.arange(50), chosen)
    assert result.entropy[chosen].min() >= result.entropy[others].max()
    assert select_highest_entropy(result, 50).tolist() == list(range(50))


def test_equal_entropies_keep_order():
    assert select_highest_entropy(lines(np.zeros((9, 3), dtype=np.float32)), 4).tolist() == [0, 1, 2, 3]


def test_teacher_input_is_unit_range():
    seen = []

    def teacher(x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert x.dtype == torch.float32
        seen.append(x)
        return x.mean((2, 3))

    cached = images(10)
    predict(cached, teacher, batch_size=4)
    assert [len(x) for x in seen] == [4, 4, 2]
    expected = torch.from_numpy(cached.pixels).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(torch.cat(seen), expected)


def test_half_precision_logits():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = predict(images(4), lambda _: logits)
    np.testing.assert_allclose(result.entropy, entropy(logits.float().numpy()), atol=1e-9)


def test_summary_counts_predictions():
    logits = np.full((10, 4), -30, dtype=np.float32)
    logits[np.arange(10), [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]] = 30
    summary = lines(logits).summary()
    assert summary["class_shares"] == [0.7, 0.3, 0, 0]
    assert summary["classes_never_predicted"] == 2
    assert summary["balance"] == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)) / math.log(4))
    assert summary["kl_to_uniform"] == pytest.approx(0.7 * math.log(0.7 * 4) + 0.3 * math.log(0.3 * 4))
    assert sum(summary["entropy_histogram"]["counts"]) == sum(summary["confidence_histogram"]["counts"]) == 10
    assert summary["entropy_histogram"]["counts"][0] == summary["confidence_histogram"]["counts"][-1] == 10
    assert summary["entropy_histogram"]["edges"][-1] == pytest.approx(math.log(4), abs=1e-6)
    json.dumps(summary, allow_nan=False)


def test_summary_balance_extremes():
    assert lines(np.eye(5, dtype=np.float32)).summary()["balance"] == pytest.approx(1)
    assert lines(np.zeros((5, 3), dtype=np.float32)).summary()["balance"] == 0
    alone = lines(np.zeros((3, 1), dtype=np.float32)).summary()
    assert alone["balance"] == 1
    json.dumps(alone, allow_nan=False)


def test_map_predictions_average_pixels():
    logits = (np.random.default_rng(3).normal(size=(9, 5, 4, 4)) * 3).astype(np.float32)
    result, summary = lines(logits), lines(logits).summary()
    by_pixel = entropy(logits)
    np.testing.assert_allclose(result.entropy, by_pixel.mean((1, 2)), rtol=1e-5)
    assert (summary["images"], summary["decisions"]) == (9, 144)
    assert summary["entropy_mean"] == pytest.approx(by_pixel.mean(), rel=1e-5)
    shares = np.bincount(logits.argmax(1).ravel(), minlength=5) / 144
    np.testing.assert_allclose(summary["class_shares"], shares, atol=1e-6)
    assert sum(summary["entropy_histogram"]["counts"]) == 144
    assert select_highest_entropy(result, 1).tolist() == [int(by_pixel.mean((1, 2)).argmax())]
