"""When a call is warm: its times have stopped changing. And the clock, which a test may put in the place of ours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

#: trtexec's warm-up, which here is the least
WARMUP_S = 0.2
#: a window has so many calls, and takes so many seconds, at least
WINDOW_CALLS, WINDOW_S = 5, 0.05
#: medians of so many windows in a row must be alike
WINDOWS = 3
#: share by which they may differ, and by which they may do so in one direction
ALIKE, TREND = 0.05, 0.01


@dataclass(frozen=True)
class Clock:
    """Seconds that pass."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Warmth:
    """What a warm-up came to."""

    runs: int  #: calls that are not counted
    settled: bool | None  #: the last windows were alike; None: so slow that there were too few of them to say
    typical_s: float  #: median of the last window


def warm_up(once: Callable[[], float], *, least_s: float, limit_s: float, clock: Clock) -> Warmth:
    """Call `once`, which answers with its seconds, until its times are stable: for `least_s` to `limit_s` seconds.

    Stable: the medians of three windows in a row lie within 5 % of each other, and do not go on rising or falling.
    """
    begin, runs, medians = clock.now(), 0, list[float]()
    while True:
        window = one_window(once, begin + limit_s, clock)
        runs += len(window)
        medians.append(statistics.median(window))
        stable, passed = alike(medians[-WINDOWS:]), clock.now() - begin
        if passed >= limit_s or (stable and passed >= least_s):
            return Warmth(runs, stable if len(medians) >= WINDOWS else None, medians[-1])


def one_window(once: Callable[[], float], end: float, clock: Clock) -> list[float]:
    """Seconds of the calls of a window: at least one, and none that begins after `end`."""
    begin, times = clock.now(), list[float]()
    while not times or ((len(times) < WINDOW_CALLS or clock.now() - begin < WINDOW_S) and clock.now() < end):
        times.append(once())
    return times


def alike(medians: list[float]) -> bool:
    """Whether these are enough windows, near to each other and without a trend."""
    low, high = min(medians), max(medians)
    if len(medians) < WINDOWS or high > (1 + ALIKE) * low:
        return False
    monotone = medians in (sorted(medians), sorted(medians, reverse=True))
    return not monotone or high <= (1 + TREND) * low
