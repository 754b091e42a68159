"""Whether the machine had other work while something was timed: its load, and how far the times are apart."""

from __future__ import annotations

import os
from collections.abc import Sequence

#: load a core, beside our own threads, above which other work on the machine is worth a word
BUSY = 0.2
#: p90 of a quiet machine is nearer to p50 than this, and the medians of its rounds are nearer to each other
TAIL, DRIFT = 1.25, 1.10


def load() -> float | None:
    """The load average of the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy(
    *,
    before: float | None = None,
    after: float | None = None,
    cores: int = 1,
    threads: int | None = None,
    p50: float | None = None,
    p90: float | None = None,
    rounds: Sequence[float] = (),
    slowed: str = "",
) -> str:
    """A sentence that says by what the machine was busy, else the empty one.

    `before`, `after`: load averages; to the latter our own `threads` may have added themselves. `p50`, `p90`: of the
    calls; `rounds`: the median of each round; all in one unit. `slowed`: why a GPU is below its clock.
    """
    signs = []
    ours = cores if threads is None else min(threads, cores)
    if before is not None and before > BUSY * cores:
        signs.append(f"load {before:.1f} on {cores} cores before")
    elif after is not None and after - ours > BUSY * cores:
        signs.append(f"load {after:.1f} on {cores} cores after, {ours} of it at most our own")
    if p50 and p90 is not None and p90 > TAIL * p50:
        signs.append(f"p90 is {p90 / p50:.2f} times p50")
    if rounds and max(rounds) > DRIFT * min(rounds):
        signs.append(f"the slowest round took {max(rounds) / min(rounds):.2f} times the fastest")
    found = [f"The machine was busy: {', '.join(signs)}."] if signs else []
    return " ".join([*found, *([f"The GPU was slowed down by {slowed}."] if slowed else [])])
