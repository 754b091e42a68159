"""How far two networks are apart, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.parity import compare_outputs

LOGITS = np.array([[1.0, 2.0, -4.0], [3.0, 0.0, 1.0]])
BATCHES = [np.zeros((2, 3, 1, 1), np.float32)]


def test_differences_and_agreement_are_those_of_the_definition() -> None:
    other = LOGITS + np.array([[0.0, 0.0, 0.5], [-2.5, 0.0, 0.0]])
    found = compare_outputs(lambda x: LOGITS, lambda x: other, BATCHES * 3)
    assert (found.images, found.max_abs, found.max_rel, found.top1_agreement) == (6, 2.5, 2.5 / 4.0, 0.5)


def test_the_greatest_difference_of_all_batches_counts() -> None:
    found = compare_outputs(
        lambda x: x[:, :, 0, 0], lambda x: x[:, :, 0, 0] * 1.5, [np.full((n, 2, 1, 1), n, np.float32) for n in (1, 4)]
    )
    assert (found.images, found.max_abs, found.max_rel) == (5, 2.0, 0.5)


def test_nan_in_the_candidate_is_an_infinite_difference() -> None:
    bad = np.where(LOGITS == 0, np.nan, LOGITS)
    assert compare_outputs(lambda x: LOGITS, lambda x: bad, BATCHES).max_rel == np.inf


def test_nothing_is_compared_with_a_reference_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        compare_outputs(lambda x: np.full((2, 3), np.inf), lambda x: LOGITS, BATCHES)


def test_answers_of_other_shapes_and_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found answers \[2, 2\], expected \[2, 3\]"):
        compare_outputs(lambda x: LOGITS, lambda x: LOGITS[:, :2], BATCHES)
    with pytest.raises(ValueError, match="no images"):
        compare_outputs(lambda x: LOGITS, lambda x: LOGITS, [])


def test_zero_against_zero_is_no_difference() -> None:
    zero = np.zeros((2, 3))
    assert compare_outputs(lambda x: zero, lambda x: zero, BATCHES).max_rel == 0
    assert compare_outputs(lambda x: zero, lambda x: zero + 1, BATCHES).max_rel == np.inf
