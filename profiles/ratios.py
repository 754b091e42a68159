"""How many times as long one call takes as another, round by round: both in the same moments of the machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True)
class Ratio:
    """Median time of a call over that of another: 0.5 takes half as long."""

    p50: float  #: median over the rounds
    low: float  #: least of a round
    high: float  #: greatest of a round
    rounds: int


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """From the median of each round; the same place is the same round. Raises ValueError for different numbers."""
    found = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found), len(found))


def pairs(medians: Mapping[Key, Sequence[float]]) -> dict[tuple[Key, Key], Ratio]:
    """Each later one against each before it."""
    return {(ours, theirs): ratio(medians[ours], medians[theirs]) for theirs, ours in combinations(medians, 2)}
