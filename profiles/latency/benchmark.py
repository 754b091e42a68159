"""Latency of calls: percentiles over many runs; several candidates are interleaved so that they see the same load.

Follows trtexec: an uncounted warm-up of at least 0.2 s (here it lasts until the times are stable), then a duration with
a minimum number of runs. The time of a call includes all copies, from images in host memory to logits in host memory.
The state of the machine is recorded with the numbers, because other load makes any of them meaningless.

Imports no torch, because it also runs on other machines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Generic, TypeVar

import numpy as np

from compress.resources import usable_cores
from profiles.latency import energy, machine
from profiles.latency.gpu import GpuStages, open_gpu, time_stages
from profiles.latency.warmup import WARMUP_S, Clock, WarmupResult, warm_up

Example = TypeVar("Example")
Key = TypeVar("Key", bound=Hashable)
#: slices into which the duration of each candidate is cut
ROUNDS = 5
#: pause between two slices in seconds, in which the threads of the previous candidate stop spinning
REST_S = 0.02
#: uncounted calls at the start of each slice, because the caches still hold the previous candidate
DISCARDED_CALLS = 2


@dataclass(frozen=True)
class Candidate(Generic[Example]):
    """A call to be timed, and facts that are reported with its latency."""

    call: Callable[[Example], object]  #: must have finished its work when it returns, or have `synchronize`
    example: Example
    batch_size: int = 1  #: images in the example
    runtime: str = "torch"
    device: str = "cpu"
    precision: str = "fp32"  #: the one that really runs
    threads: int | None = None
    synchronize: Callable[[], None] | None = None  #: waits for the device; included in the time
    load_ms: float | None = None  #: this and the next two are from `profiles.latency.memory.load_and_first_call`
    first_call_ms: float | None = None
    peak_bytes: int | None = None
    gpu_stages: GpuStages | None = None  #: the same call in three stages, on a GPU
    gpu: str | None = None  #: UUID of that GPU in NVML


@dataclass(frozen=True)
class Latency:
    """Latency of one call in milliseconds, over `runs` counted calls."""

    latency_ms_p50: float  #: median of a call
    latency_ms_p90: float  #: 90th percentile
    latency_ms_p99: float  #: 99th percentile
    latency_ms_mean: float  #: mean
    latency_ms_std: float  #: standard deviation
    throughput_ips: float  #: images per second: batch_size * runs / time in the counted calls
    batch_size: int  #: images per call
    runs: int  #: counted calls
    threads: int | None  #: CPU threads of the runtime; None on a GPU
    runtime: str  #: torch, torch-compile, onnxruntime, openvino, tensorrt or tensorrt-rtx
    device: str  #: cpu or cuda, or a provider of ONNX Runtime
    precision: str  #: precision that really ran
    load_before: float | None  #: one-minute load average of the machine; None if the system has none
    load_after: float | None  #: the same after the measurement
    machine: str = ""  #: processor with its cores, or GPU
    scenario: str = "quick"  #: our own, as in trtexec; else LoadGen's SingleStream, MultiStream, Offline or Server
    valid: bool | None = None  #: LoadGen's verdict; None without LoadGen
    invalid_reason: str = ""  #: why LoadGen calls the run invalid
    first_call_ms: float | None = None  #: first inference after loading
    load_ms: float | None = None  #: from the file to a callable
    warmup_runs: int | None = None  #: calls before the counted ones
    warmup_stable: bool | None = None  #: False: the times were not stable when the warm-up reached its time limit
    load_warning: str = ""  #: a sentence if load or spread show that the machine had other work
    clock_mhz: float | None = None  #: clock at the end of the rounds
    governor: str | None = None  #: cpufreq governor of the processor
    peak_bytes: int | None = None  #: increase of resident memory since before loading; on a GPU allocated memory
    copy_in_ms: float | None = None  #: medians measured by CUDA events; None on a CPU
    compute_ms: float | None = None  #: the same for the computation
    copy_out_ms: float | None = None  #: the same for the copy to the host
    energy_mj: float | None = None  #: millijoules per image, including idle power; None without a counter
    energy_source: str = ""  #: "NVML" or "RAPL package"
    submission_length: bool | None = None  #: LoadGen only: whether it ran as long as MLPerf requires
    target_qps: float | None = None  #: images per second requested by LoadGen, in Server
    latency_bound_ms: float | None = None  #: bound of LoadGen's verdict, in Server


@dataclass
class TimingLog:
    """Measurements of one candidate."""

    warmup: WarmupResult
    rounds: list[list[float]] = field(default_factory=list)  #: seconds of each counted call
    joules: list[float | None] = field(default_factory=list)  #: per round
    clocks: list[float] = field(default_factory=list)  #: MHz at the end of each round
    throttle_reason: str = ""


@dataclass(frozen=True)
class InterleavedTimings(Generic[Key]):
    """Latencies of several candidates that were timed in turn."""

    latencies: dict[Key, Latency]
    round_medians: dict[Key, list[float]]  #: milliseconds, one per round; the same index is the same round


@dataclass(frozen=True)
class LatencyRatio:
    """Median time of a call divided by that of another: 0.5 takes half as long."""

    p50: float  #: median over the rounds
    low: float  #: minimum over the rounds
    high: float  #: maximum over the rounds
    rounds: int


def benchmark_interleaved(
    candidates: Mapping[Key, Candidate[Example]],
    *,
    warmup_s: float = WARMUP_S,
    duration_s: float = 1.0,
    min_runs: int = 10,
    rounds: int = ROUNDS,
    clock: Clock | None = None,
    meter: Callable[[str, str | None], energy.EnergyMeter | None] = energy.open_energy_meter,
) -> InterleavedTimings[Key]:
    """Time several calls in turn, slice by slice, so that their ratios hold on a machine with other load.

    Every second round runs them in reverse order, so that a steadily falling clock favors none.

    Args:
        candidates: Calls to time, by any key.
        warmup_s: Minimum warm-up in seconds; it ends when the times are stable, or after the longer of this and
            `duration_s`.
        duration_s: Seconds of counted calls per candidate, over all rounds.
        min_runs: Minimum number of counted calls per candidate.
        rounds: Number of slices per candidate.
        clock: Replaces the system's clock, for tests.
        meter: Returns the energy meter of a device.

    Returns:
        The latency of each candidate and its median per round.

    Raises:
        ValueError: There is no candidate, run or round.
    """
    if not candidates or min_runs < 1 or rounds < 1:
        raise ValueError("benchmark_interleaved: expected at least one candidate, one run and one round.")
    clock = clock or Clock()
    before, limit = machine.system_load(), max(warmup_s, duration_s)
    logs = {
        name: TimingLog(warm_up(partial(time_call, one, clock), least_s=warmup_s, limit_s=limit, clock=clock))
        for name, one in candidates.items()
    }
    meters = {name: meter(one.device, one.gpu) for name, one in candidates.items()}
    names = list(candidates)
    for i in range(rounds):
        for name in names if i % 2 == 0 else reversed(names):
            one = candidates[name]
            if len(names) > 1:
                clock.sleep(REST_S)
                time_calls(one, seconds=0, at_least=DISCARDED_CALLS, clock=clock)
            least = -(-min_runs // rounds)
            time_slice(one, logs[name], meters[name], seconds=duration_s / rounds, at_least=least, clock=clock)
    after = machine.system_load()
    latencies = {
        name: summarize_timings(one, logs[name], before, after, meters[name]) for name, one in candidates.items()
    }
    medians = {name: [1e3 * float(np.median(times)) for times in logs[name].rounds] for name in names}
    return InterleavedTimings(latencies, medians)


def time_slice(
    candidate: Candidate,
    log: TimingLog,
    meter: energy.EnergyMeter | None,
    *,
    seconds: float,
    at_least: int,
    clock: Clock,
) -> None:
    """Time one slice of a candidate and record the state of the machine."""
    if meter is not None:
        meter.read_delta()
    log.rounds.append(time_calls(candidate, seconds=seconds, at_least=at_least, clock=clock))
    log.joules.append(None if meter is None else meter.read_delta())
    mhz = machine.clock_mhz(candidate.device, candidate.gpu)
    log.clocks += [] if mhz is None else [mhz]
    device = open_gpu(candidate.gpu) if machine.is_nvidia_gpu(candidate.device) else None
    log.throttle_reason = log.throttle_reason or ("" if device is None else device.throttle_reason())


def time_calls(candidate: Candidate, *, seconds: float, at_least: int, clock: Clock) -> list[float]:
    """Return the seconds of each call, for a duration and a minimum number of calls."""
    times: list[float] = []
    end = clock.now() + seconds
    while len(times) < at_least or clock.now() < end:
        times.append(time_call(candidate, clock))
    return times


def time_call(candidate: Candidate, clock: Clock) -> float:
    """Return the seconds of one call, including the wait for its device."""
    call, example, synchronize, now = candidate.call, candidate.example, candidate.synchronize, clock.now
    start = now()
    call(example)
    if synchronize is not None:
        synchronize()
    return now() - start


def summarize_timings(
    candidate: Candidate, log: TimingLog, before: float | None, after: float | None, meter: energy.EnergyMeter | None
) -> Latency:
    """Summarize a log: percentiles in milliseconds, and the conditions of the measurement."""
    ms = 1e3 * np.concatenate([np.asarray(times) for times in log.rounds])
    p50, p90, p99 = (float(value) for value in np.percentile(ms, [50, 90, 99]))
    medians = [float(np.median(times)) for times in log.rounds]
    conditions = {"before": before, "after": after, "cores": usable_cores(), "threads": candidate.threads}
    joules = total_energy(log, ms.sum() / 1e3)
    latency = Latency(
        latency_ms_p50=p50,
        latency_ms_p90=p90,
        latency_ms_p99=p99,
        latency_ms_mean=float(ms.mean()),
        latency_ms_std=float(ms.std()),
        throughput_ips=candidate.batch_size * len(ms) / float(ms.sum() / 1e3),
        batch_size=candidate.batch_size,
        runs=len(ms),
        threads=candidate.threads,
        runtime=candidate.runtime,
        device=candidate.device,
        precision=candidate.precision,
        load_before=before,
        load_after=after,
        load_warning=machine.load_warning(
            **conditions, p50=p50, p90=p90, rounds=medians, throttle_reason=log.throttle_reason
        ),
        clock_mhz=float(np.median(log.clocks)) if log.clocks else None,
        energy_mj=None if joules is None else 1e3 * joules / (candidate.batch_size * len(ms)),
        energy_source="" if joules is None or meter is None else meter.source,
    )
    stages = None if candidate.gpu_stages is None else time_stages(candidate.gpu_stages, candidate.example)
    if stages is not None:
        latency = replace(
            latency, copy_in_ms=stages.copy_in_ms, compute_ms=stages.compute_ms, copy_out_ms=stages.copy_out_ms
        )
    return with_environment(latency, candidate, log.warmup)


def with_environment(latency: Latency, candidate: Candidate, warmup: WarmupResult) -> Latency:
    """Add the machine, loading, memory and warm-up of a candidate to its latency."""
    return replace(
        latency,
        machine=machine.device_name(candidate.device, candidate.gpu),
        first_call_ms=candidate.first_call_ms,
        load_ms=candidate.load_ms,
        peak_bytes=candidate.peak_bytes,
        warmup_runs=warmup.runs,
        warmup_stable=warmup.is_stable,
        governor=None if machine.is_nvidia_gpu(candidate.device) else machine.cpu_governor(),
    )


def total_energy(log: TimingLog, seconds: float) -> float | None:
    """Return the joules of all rounds; None if one is unknown or all are too short for the counter."""
    known = [joules for joules in log.joules if joules is not None]
    is_complete = len(known) == len(log.joules) and seconds >= energy.MIN_DURATION_S
    return sum(known) if is_complete else None


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> LatencyRatio:
    """Compare the medians of two candidates round by round. Raises ValueError for different numbers of rounds."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return LatencyRatio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def pairwise_ratios(medians: Mapping[Key, Sequence[float]]) -> dict[tuple[Key, Key], LatencyRatio]:
    """Compare each candidate with each one before it."""
    return {(ours, theirs): paired_ratio(medians[ours], medians[theirs]) for theirs, ours in combinations(medians, 2)}
