"""The harness: what it calls and how it sums up, with a clock of our own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from profiles import latency
from profiles.latency import Candidate, measure, measure_alternated, run_for, summary


class Clock:
    """Time passes only when something is called."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(latency.time, "sleep", self.pass_)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_percentiles_and_throughput_are_those_of_the_counted_calls() -> None:
    times = [i / 1000 for i in range(1, 101)]
    found = summary(times, Candidate(print, None, batch_size=4), 0.5, 0.6)
    assert found.latency_ms_p50 == pytest.approx(50.5)
    assert found.latency_ms_p90 == pytest.approx(90.1)
    assert found.latency_ms_p99 == pytest.approx(99.01)
    assert found.latency_ms_mean == pytest.approx(50.5)
    assert found.latency_ms_std == pytest.approx(np.std(np.arange(1, 101)))
    assert found.throughput_ips == pytest.approx(4 * 100 / 5.05)
    assert (found.runs, found.load_before, found.load_after) == (100, 0.5, 0.6)


def test_it_runs_for_its_duration_and_no_less_than_the_minimum(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    assert measure(clock.pass_, 0.01, duration_s=1.0, min_runs=10).runs in (100, 101)
    assert measure(clock.pass_, 5.0, duration_s=1.0, min_runs=10).runs == 10


def test_the_warm_up_is_not_counted(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    slow_at_first = iter([9.0, *[0.1] * 1000])
    found = measure(lambda _: clock.pass_(next(slow_at_first)), None, warmup_s=1.0, duration_s=1.0)
    assert found.latency_ms_mean == pytest.approx(100)


def test_waiting_for_the_device_belongs_to_the_time(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    candidate = Candidate(clock.pass_, 0.001, synchronize=lambda: clock.pass_(0.009))
    assert run_for(candidate, seconds=0, at_least=3) == pytest.approx([0.01] * 3)


def test_candidates_take_turns_and_each_gets_its_whole_duration(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        clock.pass_({"a": 0.01, "b": 0.05}[name])

    found = measure_alternated({n: Candidate(call, n) for n in "ab"}, warmup_s=0, duration_s=1.0, rounds=5)
    assert sum(one != other for one, other in pairwise(order)) == 2 * 5 + 1
    assert found["a"].latency_ms_p50 == pytest.approx(10)
    assert found["b"].latency_ms_p50 == pytest.approx(50)
    assert found["a"].runs == pytest.approx(100, abs=5)
    assert found["b"].runs == pytest.approx(20, abs=5)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        measure_alternated({})
