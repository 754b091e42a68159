"""Learning-rate factors."""

from __future__ import annotations

import pytest
import torch

from compress.engine.schedules import constant, cosine


@pytest.mark.parametrize("n", [1, 7, 200])
def test_cosine_equals_torch(n):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n)
    for i in range(n):
        assert cosine(i / n) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        schedule.step()


def test_cosine_bounds():
    assert [cosine(progress) for progress in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 0.5, 0, 0])


def test_constant_is_one():
    assert {constant(i / 10) for i in range(11)} == {1.0}
