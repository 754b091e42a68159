"""Estimates of a run: closed-form FLOPs, stages, and extrapolation from light steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_training import TEACHER, estimate, mosaic
from torch.utils.flop_counter import FlopCounterMode

from compress.errors import UsageError
from compress.models import build_model_like, load_model
from compress.models.discriminators import build_discriminator
from compress.models.generators import build_generator
from compress.training import estimate as estimates
from compress.training.estimate import StepSeconds

IMAGE = (3, 32, 32)


def count_macs(net: Any, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def teacher_and_student_macs() -> tuple[int, int]:
    teacher, card = load_model(TEACHER)
    return count_macs(teacher, *IMAGE), count_macs(build_model_like("wrn16_1", like=card)[0], *IMAGE)


def test_estimate_writes_nothing(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    result = estimate(**mosaic(photos))
    assert list(tmp_path.iterdir()) == []
    assert (result.method, result.student, result.steps, result.batch_size) == ("mosaic", "wrn16_1", 2, 8)
    assert result.training_images == 8
    assert result.is_teacher_counted
    assert min(result.seconds, result.state_bytes, result.activation_bytes) > 0


@pytest.mark.parametrize("student_steps", [1, 5])
def test_mosaic_flops_match_the_closed_form(photos, student_steps):
    """2 B ((3+k)G + 8D + (2+2k)T + (2+6k)S), from each network's own forward MACs."""
    T, S = teacher_and_student_macs()
    G = count_macs(build_generator(32, z_dim=100, width=8), 100)
    D = count_macs(build_discriminator(8, 32, width=8), *IMAGE)
    k, B = student_steps, 8
    expected = 2 * B * ((3 + k) * G + 8 * D + (2 + 2 * k) * T + (2 + 6 * k) * S)
    result = estimate(**mosaic(photos, settings={"method.student_steps": k}))
    assert result.flops_per_step == pytest.approx(expected, rel=0.02)


def test_stages_are_weighted_by_their_share(photos, monkeypatch):
    """SSKD shows T about 4 images per step; in its second stage S learns from them too, 3 S each."""
    T, S = teacher_and_student_macs()
    first, second = (2 * 8 * 4 * each for each in (T, T + 3 * S))
    seconds = iter([StepSeconds(1.0, 0.0), StepSeconds(3.0, 0.0)] * 2)
    monkeypatch.setattr(estimates, "time_steps", lambda method, run: next(seconds))
    sskd = {
        "teacher": TEACHER, "student": "wrn16_1", "unlabeled": str(photos), "method": "sskd", "batch_size": 8,
        "settings": {"data.views": 1},
    }  # fmt: skip
    by_steps = estimate(**sskd, steps=100)
    assert by_steps.flops_per_step == pytest.approx(0.2 * first + 0.8 * second, rel=0.02)
    assert by_steps.seconds == pytest.approx(0.2 * 100 + 0.8 * 300)
    by_time = estimate(**sskd, time_limit=30.0)
    assert by_time.steps == pytest.approx(6 + 24 / 3, abs=1), "6 s of stage 1, 24 s of stage 2"
    assert by_time.flops_per_step == pytest.approx((6 * first + 8 * second) / 14, rel=0.02)


@pytest.mark.slow
def test_heavy_steps_are_timed_with_fewer_images(photos, monkeypatch):
    batch_sizes: list[int] = []

    def record_batch_size(method: Any, run: Any) -> StepSeconds:
        batch_sizes.append(run.batch_size)
        return StepSeconds(3.0, 0.0)

    monkeypatch.setattr(estimates, "time_steps", record_batch_size)
    light = estimate(**mosaic(photos))
    monkeypatch.setattr(estimates, "MAX_TIMED_FLOPS", light.flops_per_step * 0.6)
    heavy = estimate(**mosaic(photos))
    assert batch_sizes == [light.timed_images, heavy.timed_images] == [8, 4]
    assert (light.seconds_per_step, heavy.seconds_per_step) == (3.0, 6.0)
    assert heavy.flops_per_step == light.flops_per_step


@pytest.mark.slow
def test_heavy_syntheses_are_timed_with_fewer_images(monkeypatch):
    counts: list[int] = []

    def record_images(method: Any, run: Any) -> StepSeconds:
        counts.append(method.images_per_synthesis)
        return StepSeconds(1.0, 2.0)

    monkeypatch.setattr(estimates, "time_steps", record_images)
    fastdfkd = {
        "teacher": TEACHER, "student": "wrn16_1", "method": "fastdfkd", "steps": 25, "batch_size": 4,
        "settings": {"method.images_per_synthesis": 32, "method.width_G": 8},
    }  # fmt: skip
    light = estimate(**fastdfkd)
    monkeypatch.setattr(estimates, "MAX_TIMED_FLOPS", light.flops_per_synthesis / 10 / 4)  # of its ten iterations
    heavy = estimate(**fastdfkd)
    assert counts == [32, 8]
    assert (light.seconds_per_synthesis, heavy.seconds_per_synthesis) == (2.0, 8.0)


def test_estimate_refuses_what_the_run_refuses(photos):
    with pytest.raises(UsageError, match="patch"):
        estimate(**mosaic(photos, settings={"method.patch_size": 3}))
