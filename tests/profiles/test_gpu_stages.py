"""Stages of a GPU call, with fake and real events."""

from __future__ import annotations

import contextlib
from itertools import count
from typing import Any

import pytest
import torch
from clockwork import Hands

from profiles.latency.benchmark import Candidate, benchmark_interleaved
from profiles.latency.gpu import GpuStages, StageTimes, time_stages, time_stages_once


class Mark:
    """An event by a clock of our own."""

    def __init__(self, hands: Hands) -> None:
        self.hands, self.at, self.waited = hands, 0.0, False

    def record(self) -> None:
        self.at = self.hands.now

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, other: Any) -> float:
        assert other.waited or other.at <= self.hands.now
        return 1e3 * (other.at - self.at)


def parts(hands: Hands, order: list[str], slow: int = -1) -> GpuStages:
    calls = count()

    def step(name: str, seconds: float):
        def take(value: str) -> str:
            order.append(name)
            hands.pass_(seconds * (50 if next(calls) == slow else 1))
            return f"{value}>{name}"

        return take

    @contextlib.contextmanager
    def place():
        order.append("enter")
        yield
        order.append("leave")

    return GpuStages(step("in", 0.001), step("compute", 0.005), step("out", 0.002), lambda: Mark(hands), place)


def test_stages_are_chained_and_timed() -> None:
    hands, order = Hands(), list[str]()
    made = parts(hands, order)
    assert time_stages_once(made, "images") == pytest.approx([1.0, 5.0, 2.0])
    assert order == ["enter", "in", "compute", "out", "leave"]


def test_stage_medians_ignore_outliers() -> None:
    found = time_stages(parts(Hands(), [], slow=30), "images")
    assert (found.copy_in_ms, found.compute_ms, found.copy_out_ms) == pytest.approx((1.0, 5.0, 2.0))


def test_latency_has_stage_times() -> None:
    hands = Hands()
    on_gpu = Candidate(lambda _: hands.pass_(0.01), "images", device="cuda", gpu_stages=parts(hands, []))
    plain = Candidate(lambda _: hands.pass_(0.01), "images")
    found = benchmark_interleaved({"gpu": on_gpu, "cpu": plain}, duration_s=0.5, clock=hands.clock).latencies
    assert found["gpu"].latency_ms_p50 == pytest.approx(10)
    assert (found["gpu"].copy_in_ms, found["gpu"].compute_ms, found["gpu"].copy_out_ms) == pytest.approx((1, 5, 2))
    assert (found["cpu"].copy_in_ms, found["cpu"].compute_ms, found["cpu"].copy_out_ms) == (None, None, None)


@pytest.mark.gpu
def test_stage_times_on_a_gpu() -> None:
    from compress.cli.candidates import candidate

    from compress.models.card import ModelCard
    from compress.models.registry import build_network

    card = ModelCard("wrn16_1", 10, (32, 32))
    one = candidate(build_network(card), card, 8, provider="cuda")
    assert one.parts is not None
    found = time_stages(one.parts, one.example)
    whole = benchmark_interleaved({"": one}, duration_s=1.0).latencies[""].latency_ms_p90
    assert isinstance(found, StageTimes)
    assert min(found.copy_in_ms, found.compute_ms, found.copy_out_ms) > 0
    assert found.copy_in_ms + found.compute_ms + found.copy_out_ms < 2 * whole
    assert torch.cuda.is_available()
