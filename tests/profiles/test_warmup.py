"""End of the warm-up, with a manual clock."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, cycle, repeat

import pytest
from clockwork import ManualClock

from profiles.latency.warmup import WarmupResult, are_stable, warm_up


def warmed(times: Iterable[float], least_s: float = 0.2, limit_s: float = 3.0) -> tuple[WarmupResult, float]:
    """What the warm-up of a call with these times came to, and how long it took."""
    timer, left = ManualClock(), iter(times)

    def once() -> float:
        seconds = next(left)
        timer.pass_(seconds)
        return seconds

    return warm_up(once, least_s=least_s, limit_s=limit_s, clock=timer.clock), timer.now


def test_stable_call_needs_minimum_warmup() -> None:
    result, seconds = warmed(repeat(0.001))
    assert result.is_stable is True
    assert 0.2 <= seconds < 0.3
    assert result.runs == pytest.approx(1000 * seconds)
    assert result.median_s == 0.001


def test_speeding_up_call_is_awaited() -> None:
    slow = (0.010 - 0.009 * i / 100 for i in range(100))
    result, seconds = warmed(chain(slow, repeat(0.001)))
    assert (result.is_stable, result.median_s) == (True, 0.001)
    assert seconds > 0.5


def test_slowing_call_stops_at_the_limit() -> None:
    result, seconds = warmed(0.001 * 1.002**i for i in range(10_000))
    assert result.is_stable is False
    assert 3.0 <= seconds < 3.1


def test_unstable_call_is_reported() -> None:
    result, _ = warmed(cycle([0.01] * 7 + [0.02] * 7))
    assert result.is_stable is False


def test_outliers_do_not_matter() -> None:
    result, _ = warmed(cycle([0.001] * 9 + [0.02]))
    assert result.is_stable is True


def test_very_slow_call_runs_once() -> None:
    result, seconds = warmed(repeat(5.0))
    assert (result.runs, result.is_stable, seconds) == (1, None, 5.0)


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ([1.0, 1.0], False),
        ([1.0, 1.04, 1.01], True),
        ([1.0, 1.06, 1.01], False),
        ([1.0, 1.02, 1.04], False),
        ([1.04, 1.02, 1.0], False),
        ([1.0, 1.004, 1.008], True),
    ],
)
def test_stability_criterion(medians: list[float], expected: bool) -> None:
    assert are_stable(medians) is expected
