"""Parity of two networks against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.parity import compare_outputs

LOGITS = np.array([[1.0, 2.0, -4.0], [3.0, 0.0, 1.0]])
BATCHES = [np.zeros((2, 3, 1, 1), np.float32)]


def test_parity_follows_definitions() -> None:
    other = LOGITS + np.array([[0.0, 0.0, 0.5], [-2.5, 0.0, 0.0]])
    result = compare_outputs(lambda x: LOGITS, lambda x: other, BATCHES * 3)
    assert (result.images, result.max_abs, result.max_rel, result.top1_agreement) == (6, 2.5, 2.5 / 4.0, 0.5)


def test_largest_difference_over_batches() -> None:
    result = compare_outputs(
        lambda x: x[:, :, 0, 0], lambda x: x[:, :, 0, 0] * 1.5, [np.full((n, 2, 1, 1), n, np.float32) for n in (1, 4)]
    )
    assert (result.images, result.max_abs, result.max_rel) == (5, 2.0, 0.5)


def test_nan_is_infinite_difference() -> None:
    bad = np.where(LOGITS == 0, np.nan, LOGITS)
    assert compare_outputs(lambda x: LOGITS, lambda x: bad, BATCHES).max_rel == np.inf


def test_reference_must_be_finite() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        compare_outputs(lambda x: np.full((2, 3), np.inf), lambda x: LOGITS, BATCHES)


def test_shapes_and_images_are_validated() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\], expected \[2, 3\]"):
        compare_outputs(lambda x: LOGITS, lambda x: LOGITS[:, :2], BATCHES)
    with pytest.raises(ValueError, match="no images"):
        compare_outputs(lambda x: LOGITS, lambda x: LOGITS, [])


def test_zeros_are_equal() -> None:
    zero = np.zeros((2, 3))
    assert compare_outputs(lambda x: zero, lambda x: zero, BATCHES).max_rel == 0
    assert compare_outputs(lambda x: zero, lambda x: zero + 1, BATCHES).max_rel == np.inf
