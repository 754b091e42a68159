"""Warm-up: call until the times are stable. `Clock` can be replaced in tests."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

#: minimum warm-up, as in trtexec
WARMUP_S = 0.2
#: minimum calls and seconds of a window
WINDOW_CALLS, WINDOW_S = 5, 0.05
#: consecutive windows whose medians are compared
WINDOWS = 3
#: relative difference that is allowed, and that is allowed in one direction
STABLE_SPREAD, STABLE_TREND = 0.05, 0.01


@dataclass(frozen=True)
class Clock:
    """Source of time."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class WarmupResult:
    """Result of a warm-up."""

    runs: int  #: uncounted calls
    is_stable: bool | None  #: whether the last windows were stable; None: there were too few windows
    median_s: float  #: median of the last window


def warm_up(once: Callable[[], float], *, least_s: float, limit_s: float, clock: Clock) -> WarmupResult:
    """Call `once`, which returns its seconds, until its times are stable, for `least_s` to `limit_s` seconds.

    Stable: the medians of three consecutive windows differ by at most 5 % and do not keep rising or falling.
    """
    begin, runs, medians = clock.now(), 0, list[float]()
    while True:
        window = time_window(once, begin + limit_s, clock)
        runs += len(window)
        medians.append(statistics.median(window))
        stable, passed = are_stable(medians[-WINDOWS:]), clock.now() - begin
        if passed >= limit_s or (stable and passed >= least_s):
            return WarmupResult(runs, stable if len(medians) >= WINDOWS else None, medians[-1])


def time_window(once: Callable[[], float], end: float, clock: Clock) -> list[float]:
    """Return the seconds of the calls in one window: at least one, and none that begins after `end`."""
    begin, times = clock.now(), list[float]()
    while not times or ((len(times) < WINDOW_CALLS or clock.now() - begin < WINDOW_S) and clock.now() < end):
        times.append(once())
    return times


def are_stable(medians: list[float]) -> bool:
    """Whether there are enough windows, within 5 % of each other and without a trend."""
    low, high = min(medians), max(medians)
    if len(medians) < WINDOWS or high > (1 + STABLE_SPREAD) * low:
        return False
    monotone = medians in (sorted(medians), sorted(medians, reverse=True))
    return not monotone or high <= (1 + STABLE_TREND) * low
