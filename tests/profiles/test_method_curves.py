"""Learning curves of several methods."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from profiles.report.charts import LearningCurve, standalone_svg
from profiles.report.method_curves import (
    MAX_LABEL_HEIGHT,
    MethodCurves,
    average_curves,
    draw_method_curves,
    separate_positions,
    time_unit,
)


def test_curves_are_averaged_by_time_share() -> None:
    band = average_curves([LearningCurve("0", [10, 20], [0.2, 0.4]), LearningCurve("1", [10, 40], [0.4, 1.0])])
    assert band.seconds.tolist() == [15, 30]  # from a half on, where the first was evaluated; the mean end
    assert band.mean.tolist() == pytest.approx([(0.2 + 0.6) / 2, 0.7])
    assert band.lowest.tolist() == pytest.approx([0.2, 0.4])
    assert band.highest.tolist() == pytest.approx([0.6, 1.0])


def test_single_curve_is_unchanged() -> None:
    band = average_curves([LearningCurve("0", [3, 9, 12], [0.1, 0.5, 0.4])])
    assert band.seconds.tolist() == pytest.approx([3, 9, 12])
    assert band.mean.tolist() == band.lowest.tolist() == [0.1, 0.5, 0.4]
    assert average_curves([LearningCurve("0", [7], [0.3])]).mean.tolist() == [0.3]


@pytest.mark.parametrize("seed", range(20))
def test_label_positions_are_optimal(seed: int) -> None:
    rng = random.Random(seed)
    wanted = sorted(rng.random() for _ in range(3))
    gap = 0.1
    result = separate_positions(wanted, gap)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(result))
    assert min(result) >= 0
    assert max(result) <= MAX_LABEL_HEIGHT + 1e-9
    grid = np.arange(0, MAX_LABEL_HEIGHT + 1e-9, 0.02)
    choices = (c for c in itertools.product(grid, repeat=3) if c[1] - c[0] >= gap and c[2] - c[1] >= gap)
    best = min(sum((a - b) ** 2 for a, b in zip(c, wanted, strict=True)) for c in choices)
    assert sum((a - b) ** 2 for a, b in zip(result, wanted, strict=True)) <= best + 1e-9


def test_crowded_labels_keep_their_order() -> None:
    result = separate_positions([0.5] * 20, 0.1)
    assert result == sorted(result)
    assert separate_positions([], 0.1) == []


@pytest.mark.parametrize(("longest", "unit"), [(59, "seconds"), (600, "minutes"), (4 * 3600, "hours")])
def test_time_unit_suits_the_axis(longest: float, unit: str) -> None:
    assert time_unit(longest)[1] == unit


def test_every_line_is_labeled() -> None:
    lines = [
        MethodCurves(f"method {i}", [LearningCurve("", [1, 2], [0, i / 20]), LearningCurve("", [1, 3], [0, i / 20])])
        for i in range(19)
    ]
    svg = standalone_svg(draw_method_curves(lines, level=("teacher", 0.97), y_label="accuracy", salt="a")).decode()
    for i in range(19):
        assert f">method {i}  {100 * i / 20:.1f} %</text>" in svg
    assert ">teacher  97.0 %</text>" in svg
    assert "#0400" not in svg


def test_method_chart_is_reproducible() -> None:
    lines = [MethodCurves("a", [LearningCurve("", [1, 2], [0.2, 0.4])])]
    for form in ("svg", "png"):
        one, other = (draw_method_curves(lines, level=None, y_label="accuracy", salt="a", form=form) for _ in range(2))
        assert one == other
