"""How long one call takes, as the median and the tail of many; several calls in turn, so that they share the weather.

Conventions of trtexec: a warm-up of 0.2 s that is not counted, then a duration with a minimum of runs. The clock runs
around the whole call, images in host memory to logits in host memory. The load of the machine stands beside the
numbers, for a busy machine makes any of them meaningless.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Example = TypeVar("Example")
Key = TypeVar("Key", bound=Hashable)
#: slices into which the duration of each call is cut when several take turns
ROUNDS = 5
#: seconds between two slices, in which the threads of the one before stop spinning
REST_S = 0.02
#: calls at the start of each slice that are not counted: the caches are still the neighbour's
DISCARDED = 2


@dataclass(frozen=True)
class Candidate(Generic[Example]):
    """A call to be timed, and what to write beside its numbers."""

    call: Callable[[Example], object]  #: must have finished its work when it returns, or have `synchronize`
    example: Example
    batch_size: int = 1  #: images in the example
    runtime: str = "torch"
    device: str = "cpu"
    precision: str = "fp32"  #: the one actually run
    threads: int | None = None
    synchronize: Callable[[], None] | None = None  #: waits for the device; called within the time


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call, over `runs` counted calls."""

    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    latency_ms_mean: float
    latency_ms_std: float
    throughput_ips: float  #: images a second: batch_size * runs / time in the counted calls
    batch_size: int
    runs: int
    threads: int | None
    runtime: str
    device: str
    precision: str
    load_before: float | None  #: one-minute load average of the machine; None where the system has none
    load_after: float | None


def measure(
    call: Callable[[Example], object],
    example: Example,
    *,
    batch_size: int = 1,
    warmup_s: float = 0.2,
    duration_s: float = 1.0,
    min_runs: int = 10,
    synchronize: Callable[[], None] | None = None,
    runtime: str = "torch",
    device: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
) -> Latency:
    """Time `call(example)` for `duration_s` seconds and at least `min_runs` times, after an uncounted warm-up."""
    candidate = Candidate(call, example, batch_size, runtime, device, precision, threads, synchronize)
    timings = {"": candidate}
    return measure_alternated(timings, warmup_s=warmup_s, duration_s=duration_s, min_runs=min_runs, rounds=1)[""]


def measure_alternated(
    candidates: Mapping[Key, Candidate[Example]],
    *,
    warmup_s: float = 0.2,
    duration_s: float = 1.0,
    min_runs: int = 10,
    rounds: int = ROUNDS,
) -> dict[Key, Latency]:
    """Time several calls in turn, slice by slice, so that a ratio between two compares the same minutes of the machine.

    Each gets `duration_s` seconds in all and at least `min_runs` counted calls. Raises ValueError for nothing to time.
    """
    if not candidates or min_runs < 1 or rounds < 1:
        raise ValueError("measure_alternated: expected at least one candidate, one run and one round.")
    before = load()
    for candidate in candidates.values():
        run_for(candidate, seconds=warmup_s, at_least=1)
    times: dict[Key, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            if len(candidates) > 1:
                time.sleep(REST_S)
                run_for(candidate, seconds=0, at_least=DISCARDED)
            times[name] += run_for(candidate, seconds=duration_s / rounds, at_least=-(-min_runs // rounds))
    after = load()
    return {name: summary(times[name], candidate, before, after) for name, candidate in candidates.items()}


def run_for(candidate: Candidate[Example], *, seconds: float, at_least: int) -> list[float]:
    """Seconds of each call, for `seconds` in all and `at_least` so many calls."""
    times: list[float] = []
    call, example, synchronize = candidate.call, candidate.example, candidate.synchronize
    end = time.perf_counter() + seconds
    while len(times) < at_least or time.perf_counter() < end:
        start = time.perf_counter()
        call(example)
        if synchronize is not None:
            synchronize()
        times.append(time.perf_counter() - start)
    return times


def summary(times: list[float], candidate: Candidate[Example], before: float | None, after: float | None) -> Latency:
    """`times` in seconds -> percentiles in milliseconds."""
    ms = np.asarray(times) * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(ms, [50, 90, 99]))
    return Latency(
        latency_ms_p50=p50,
        latency_ms_p90=p90,
        latency_ms_p99=p99,
        latency_ms_mean=float(ms.mean()),
        latency_ms_std=float(ms.std()),
        throughput_ips=candidate.batch_size * len(times) / float(np.sum(times)),
        batch_size=candidate.batch_size,
        runs=len(times),
        threads=candidate.threads,
        runtime=candidate.runtime,
        device=candidate.device,
        precision=candidate.precision,
        load_before=before,
        load_after=after,
    )


def load() -> float | None:
    """The load average of the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
