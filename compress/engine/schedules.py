"""Learning-rate factors as pure functions of progress in [0, 1): nothing to checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """1 at the start, 0 at the end, half a cosine between (Loshchilov and Hutter, 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def warm_cosine(progress: float, *, warm: float = 0.05) -> float:
    """Linear from 0 to 1 over the first `warm` share, then a cosine to 0."""
    return (progress / warm) if progress < warm else cosine((progress - warm) / (1 - warm))


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "constant": constant, "warm_cosine": warm_cosine}
