"""Ratios of what was measured in turns."""

from __future__ import annotations

import pytest

from profiles.latency.benchmark import LatencyRatio, paired_ratio, pairwise_ratios


def test_a_ratio_is_of_the_same_rounds_with_its_range_over_them() -> None:
    # the machine halves its speed in the third round: each alone is off by two, their ratio is not
    assert paired_ratio([2.0, 2.2, 4.0], [1.0, 1.0, 2.0]) == LatencyRatio(2.0, 2.0, 2.2, 3)


def test_every_later_one_is_held_against_every_earlier_one() -> None:
    found = pairwise_ratios({"a": [1.0], "b": [2.0], "c": [8.0]})
    assert {key: one.p50 for key, one in found.items()} == {("b", "a"): 2.0, ("c", "a"): 8.0, ("c", "b"): 4.0}


def test_rounds_that_are_not_the_same_are_refused() -> None:
    with pytest.raises(ValueError):
        paired_ratio([1.0, 2.0], [1.0])
