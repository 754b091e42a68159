"""Candidates for LoadGen tests: calls that sleep, and may raise, crash or hang."""

from __future__ import annotations

import os
import signal
import time
from itertools import count
from typing import Any

from profiles.latency.benchmark import Candidate


def nap(ms: float = 2.0, batch: int = 1, fails_at: int | None = None, how: str = "raises") -> Candidate[Any]:
    """A call that sleeps; the `fails_at`-th raises, dies or never returns."""
    calls = count()

    def call(_: object) -> None:
        if next(calls) == fails_at:
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000 if how == "hangs" else 0)
            raise ValueError("the images are of no use\nand more lines")
        time.sleep(ms / 1e3)

    return Candidate(call, None, batch, runtime="nap", threads=1)


def refused() -> Candidate[Any]:
    from profiles.latency.scenarios import ScenarioError

    raise ScenarioError("the file is not there.")
