"""Interleaved benchmarks with a manual clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from clockwork import ManualClock

from profiles.latency import benchmark, machine
from profiles.latency.benchmark import (
    Candidate,
    Latency,
    LatencyRatio,
    benchmark_interleaved,
    paired_ratio,
    pairwise_ratios,
    time_calls,
)


def delays(seed: int, typical: float) -> np.ndarray:
    """Times of calls as they come: mostly alike, with a tail."""
    return typical * np.random.default_rng(seed).lognormal(0, 0.01, 4000)


class Player:
    """A call that takes the next of known delays, and remembers those that it took."""

    def __init__(self, timer: ManualClock, times: np.ndarray) -> None:
        self.hands, self.left, self.took = timer, iter(times), list[float]()

    def __call__(self, _: object) -> None:
        self.took.append(float(next(self.left)))
        self.hands.pass_(self.took[-1])


def time_one(
    call: Callable[[Any], object],
    timer: ManualClock,
    example: Any = None,
    *,
    batch_size: int = 1,
    duration_s: float = 1.0,
) -> Latency:
    one = Candidate(call, example, batch_size)
    return benchmark_interleaved({"": one}, duration_s=duration_s, rounds=1, clock=timer.clock).latencies[""]


def agrees(result: Latency, times: list[float], batch_size: int = 1) -> None:
    """Held against numpy's own arithmetic."""
    ms = 1e3 * np.array(times)
    assert result.runs == len(times)
    for name, value in {
        "p50": np.percentile(ms, 50),
        "p90": np.percentile(ms, 90),
        "p99": np.percentile(ms, 99),
        "mean": np.mean(ms),
        "std": np.std(ms),
    }.items():
        assert getattr(result, f"latency_ms_{name}") == pytest.approx(float(value), abs=1e-6), name
    assert result.throughput_ips == pytest.approx(batch_size * len(times) / sum(times))


def test_statistics_match_numpy() -> None:
    timer = ManualClock()
    player = Player(timer, delays(0, 0.004))
    result = time_one(player, timer, batch_size=4)
    assert result.warmup_runs is not None
    assert 200 < result.runs < 300
    agrees(result, player.took[result.warmup_runs :], batch_size=4)


def test_warmup_is_not_counted() -> None:
    timer = ManualClock()
    slow_at_first = np.concatenate([np.linspace(0.5, 0.01, 30), np.full(9000, 0.01)])
    player = Player(timer, slow_at_first)
    result = time_one(player, timer, duration_s=30.0)
    assert result.latency_ms_p99 == pytest.approx(10)
    assert (result.warmup_stable, result.latency_ms_std) == (True, pytest.approx(0, abs=1e-9))
    assert result.warmup_runs is not None
    assert result.warmup_runs > 30
    agrees(result, player.took[result.warmup_runs :])


def test_first_calls_of_slices_are_discarded() -> None:
    timer = ManualClock()
    players = {name: Player(timer, delays(seed, typical)) for seed, (name, typical) in enumerate(SPEEDS.items())}
    result = benchmark_interleaved(
        {n: Candidate(p, None) for n, p in players.items()}, duration_s=1.0, clock=timer.clock
    )
    for name, player in players.items():
        one = result.latencies[name]
        counted = player.took[one.warmup_runs :]
        # what was counted is all but two calls at the start of each of five slices
        assert one.runs == len(counted) - 5 * benchmark.DISCARDED_CALLS
        assert 1e3 * np.median(counted) == pytest.approx(one.latency_ms_p50, rel=0.01)


SPEEDS = {"a": 0.003, "b": 0.006, "c": 0.012}


def test_order_is_reversed_every_round() -> None:
    timer = ManualClock()
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        timer.pass_(SPEEDS[name])

    result = benchmark_interleaved(
        {n: Candidate(call, n) for n in SPEEDS}, warmup_s=0, duration_s=1.0, rounds=4, clock=timer.clock
    ).latencies
    # the slice at the turning point and the next one are of the same
    assert [name for name, _ in groupby(order)] == list("abcab" + "cbabcba")
    for name, typical in SPEEDS.items():
        assert result[name].latency_ms_p50 == pytest.approx(1e3 * typical)
        assert result[name].runs == pytest.approx(1 / typical, abs=5)


def test_round_medians_are_in_order() -> None:
    timer = ManualClock()
    speed = {"a": 0.01, "b": 0.02}

    def call(name: str) -> None:
        # the machine grows slower for both, by the same share, and a second of it is a round
        timer.pass_(speed[name] * (1 + int(timer.now) // 4))

    result = benchmark_interleaved(
        {n: Candidate(call, n) for n in speed}, warmup_s=0, duration_s=20.0, rounds=10, clock=timer.clock
    )
    assert len(result.round_medians["a"]) == len(result.round_medians["b"]) == 10
    assert result.round_medians["a"] == sorted(result.round_medians["a"])
    assert result.round_medians["a"][-1] > 5 * result.round_medians["a"][0]
    assert "The machine was busy" in result.latencies["a"].load_warning


def test_duration_and_minimum_runs() -> None:
    timer = ManualClock()
    assert time_one(timer.pass_, timer, 0.01).runs in (100, 101)
    assert time_one(timer.pass_, timer, 5.0).runs == 10


def test_synchronization_is_timed() -> None:
    timer = ManualClock()
    candidate = Candidate(timer.pass_, 0.001, synchronize=lambda: timer.pass_(0.009))
    assert time_calls(candidate, seconds=0, at_least=3, clock=timer.clock) == pytest.approx([0.01] * 3)


class Joules:
    """A counter that rises by ten watts."""

    source = "a test"

    def __init__(self, timer: ManualClock, silent_after: int = 1000) -> None:
        self.hands, self.last, self.laps, self.silent_after = timer, 0.0, 0, silent_after

    def read_delta(self) -> float | None:
        self.laps, passed = self.laps + 1, self.hands.now - self.last
        self.last = self.hands.now
        return 10 * passed if self.laps <= self.silent_after else None


def test_energy_is_per_image() -> None:
    timer = ManualClock()
    pair = {n: Candidate(timer.pass_, SPEEDS[n], batch_size=4) for n in "ab"}
    result = benchmark_interleaved(pair, duration_s=1.0, clock=timer.clock, meter=lambda *_: Joules(timer)).latencies
    # 10 W for 3 ms are 30 mJ, for four images
    assert result["a"].energy_mj == pytest.approx(30 / 4)
    assert result["b"].energy_mj == pytest.approx(60 / 4)
    assert result["a"].energy_source == "a test"


def test_incomplete_energy_is_none() -> None:
    timer = ManualClock()
    pair = {n: Candidate(timer.pass_, SPEEDS[n]) for n in "ab"}
    result = benchmark_interleaved(
        pair, duration_s=1.0, clock=timer.clock, meter=lambda *_: Joules(timer, 7)
    ).latencies["a"]
    assert (result.energy_mj, result.energy_source) == (None, "")
    short = benchmark_interleaved(pair, duration_s=0.1, clock=timer.clock, meter=lambda *_: Joules(timer)).latencies[
        "a"
    ]
    assert short.energy_mj is None


def test_latency_has_its_environment(monkeypatch) -> None:
    timer, clocks = ManualClock(), iter([2000.0, 2100.0, 9999.0] * 10)
    monkeypatch.setattr(machine, "clock_mhz", lambda *_: next(clocks))
    monkeypatch.setattr(machine, "cpu_governor", lambda: "performance")
    one = Candidate(timer.pass_, 0.01, threads=1, load_ms=5.0, first_call_ms=12.0, peak_bytes=1000)
    result = benchmark_interleaved({"": one}, duration_s=1.0, rounds=3, clock=timer.clock).latencies[""]
    assert (result.load_ms, result.first_call_ms, result.peak_bytes) == (5.0, 12.0, 1000)
    assert (result.clock_mhz, result.governor) == (2100.0, "performance")
    assert result.machine == machine.device_name()
    assert (result.scenario, result.valid) == ("quick", None)


def test_no_candidate_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        benchmark_interleaved({})


def without_torch() -> Iterator[str]:
    for name in ("benchmark", "warmup", "energy", "gpu", "machine", "memory", "scenarios", "loadgen"):
        yield f"profiles.latency.{name}"


def test_remote_modules_import_no_torch() -> None:
    code = f"import sys, {', '.join(without_torch())}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_ratio_is_paired_by_round() -> None:
    # the machine halves its speed in the third round: each alone is off by two, their ratio is not
    assert paired_ratio([2.0, 2.2, 4.0], [1.0, 1.0, 2.0]) == LatencyRatio(2.0, 2.0, 2.2, 3)


def test_ratios_cover_all_pairs() -> None:
    result = pairwise_ratios({"a": [1.0], "b": [2.0], "c": [8.0]})
    assert {key: one.p50 for key, one in result.items()} == {("b", "a"): 2.0, ("c", "a"): 8.0, ("c", "b"): 4.0}


def test_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError):
        paired_ratio([1.0, 2.0], [1.0])
