"""Learning-rate factors as pure functions of progress in [0, 1), so they need no checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """Decay from 1 to 0 along half a cosine (Loshchilov and Hutter, 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def constant(progress: float) -> float:
    """Return 1."""
    return 1.0
