"""A clock that advances only when a test says so."""

from __future__ import annotations

from profiles.latency.warmup import Clock


class ManualClock:
    """Time passes only when something is called; `clock` shows it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(now=lambda: self.now, sleep=self.pass_)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
