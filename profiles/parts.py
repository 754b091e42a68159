"""What a call on a GPU consists of: the copy there, the work, the copy back; each timed by events of the device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

#: calls of which the medians are taken, and those before them that are not counted
RUNS, DISCARDED = 50, 5


class Event(Protocol):
    """A mark in the device's own order of work, as `torch.cuda.Event(enable_timing=True)` is one."""

    def record(self) -> Any: ...

    def synchronize(self) -> Any: ...

    def elapsed_time(self, end_event: Any, /) -> float: ...


@dataclass(frozen=True)
class Parts:
    """A call in three steps, each given what the one before answered."""

    copy_in: Callable[[Any], Any]
    compute: Callable[[Any], Any]
    copy_out: Callable[[Any], Any]
    event: Callable[[], Event]
    place: Callable[[], AbstractContextManager[Any]] = nullcontext  #: the device and the stream where it all happens


@dataclass(frozen=True)
class Shares:
    """Medians in milliseconds. On the host's clock a call takes longer than their sum: launching is in none of them."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


def shares(parts: Parts, example: Any, *, runs: int = RUNS, discarded: int = DISCARDED) -> Shares:
    """Time the parts of `runs` calls apart."""
    found = [once(parts, example) for _ in range(discarded + runs)][discarded:]
    return Shares(*(statistics.median(column) for column in zip(*found, strict=True)))


def once(parts: Parts, example: Any) -> list[float]:
    """Milliseconds of each of the parts of one call."""
    marks = [parts.event() for _ in range(4)]
    value = example
    with parts.place():
        marks[0].record()
        for step, mark in zip((parts.copy_in, parts.compute, parts.copy_out), marks[1:], strict=True):
            value = step(value)
            mark.record()
        marks[-1].synchronize()
    return [one.elapsed_time(other) for one, other in pairwise(marks)]
