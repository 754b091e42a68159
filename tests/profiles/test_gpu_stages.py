"""Stages of a GPU call, with fake and real events."""

from __future__ import annotations

import contextlib
from itertools import count
from typing import Any

import pytest
import torch
from clockwork import ManualClock

from profiles.latency.benchmark import Candidate, benchmark_interleaved
from profiles.latency.gpu import GpuStages, StageTimes, time_stages, time_stages_once


class Mark:
    """An event by a clock of our own."""

    def __init__(self, timer: ManualClock) -> None:
        self.hands, self.at, self.waited = timer, 0.0, False

    def record(self) -> None:
        self.at = self.hands.now

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, other: Any) -> float:
        assert other.waited or other.at <= self.hands.now
        return 1e3 * (other.at - self.at)


def parts(timer: ManualClock, order: list[str], slow: int = -1) -> GpuStages:
    calls = count()

    def step(name: str, seconds: float):
        def take(value: str) -> str:
            order.append(name)
            timer.pass_(seconds * (50 if next(calls) == slow else 1))
            return f"{value}>{name}"

        return take

    @contextlib.contextmanager
    def position():
        order.append("enter")
        yield
        order.append("leave")

    return GpuStages(step("in", 0.001), step("compute", 0.005), step("out", 0.002), lambda: Mark(timer), position)


def test_stages_are_chained_and_timed() -> None:
    timer, order = ManualClock(), list[str]()
    made = parts(timer, order)
    assert time_stages_once(made, "images") == pytest.approx([1.0, 5.0, 2.0])
    assert order == ["enter", "in", "compute", "out", "leave"]


def test_stage_medians_ignore_outliers() -> None:
    result = time_stages(parts(ManualClock(), [], slow=30), "images")
    assert (result.copy_in_ms, result.compute_ms, result.copy_out_ms) == pytest.approx((1.0, 5.0, 2.0))


def test_latency_has_stage_times() -> None:
    timer = ManualClock()
    on_gpu = Candidate(lambda _: timer.pass_(0.01), "images", device="cuda", gpu_stages=parts(timer, []))
    plain = Candidate(lambda _: timer.pass_(0.01), "images")
    result = benchmark_interleaved({"gpu": on_gpu, "cpu": plain}, duration_s=0.5, clock=timer.clock).latencies
    assert result["gpu"].latency_ms_p50 == pytest.approx(10)
    assert (result["gpu"].copy_in_ms, result["gpu"].compute_ms, result["gpu"].copy_out_ms) == pytest.approx((1, 5, 2))
    assert (result["cpu"].copy_in_ms, result["cpu"].compute_ms, result["cpu"].copy_out_ms) == (None, None, None)


@pytest.mark.gpu
def test_stage_times_on_a_gpu() -> None:
    from compress.models.card import ModelCard
    from compress.models.registry import build_network
    from profiles.latency.cases import create_candidate

    network = build_network(ModelCard("wrn16_1", 10, (32, 32)))
    one = create_candidate(network, (32, 32), 8, provider="cuda")
    assert one.gpu_stages is not None
    result = time_stages(one.gpu_stages, one.example)
    whole = benchmark_interleaved({"": one}, duration_s=1.0).latencies[""].latency_ms_p90
    assert isinstance(result, StageTimes)
    assert min(result.copy_in_ms, result.compute_ms, result.copy_out_ms) > 0
    assert result.copy_in_ms + result.compute_ms + result.copy_out_ms < 2 * whole
    assert torch.cuda.is_available()
