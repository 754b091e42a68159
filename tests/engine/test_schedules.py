"""Learning-rate factors."""

from __future__ import annotations

import math

import pytest

from compress.engine.schedules import SCHEDULES, constant, cosine, warm_cosine


@pytest.mark.parametrize("n", [1, 7, 200])
def test_cosine_is_that_of_pytorch(n):
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n)
    for i in range(n):
        assert cosine(i / n) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        schedule.step()


def test_cosine_goes_from_1_to_0_and_stays():
    assert (cosine(0), cosine(1)) == (1, 0)
    assert cosine(0.5) == pytest.approx(0.5)
    assert (cosine(-1), cosine(2)) == (1, 0)


def test_warm_cosine_rises_in_a_line_and_falls_without_a_jump():
    assert warm_cosine(0) == 0
    assert warm_cosine(0.025) == pytest.approx(0.5)
    assert warm_cosine(0.05) == pytest.approx(warm_cosine(0.05 - 1e-9), abs=1e-6)
    assert warm_cosine(1) == pytest.approx(0, abs=1e-12)
    assert warm_cosine(0, warm=0) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_stay_in_0_to_1(name):
    assert all(0 <= SCHEDULES[name](i / 100) <= 1 for i in range(101))
    assert math.isfinite(SCHEDULES[name](1.0))


def test_constant_is_1():
    assert {constant(i / 10) for i in range(11)} == {1.0}
