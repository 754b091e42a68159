"""How long one call takes, as the median and the tail of many; several calls in turn, so that they share the weather.

Conventions of trtexec: a warm-up of 0.2 s at least that is not counted (here it goes on until the times are stable),
then a duration with a minimum of runs. The clock runs around the whole call, images in host memory to logits in host
memory. What was known of the machine meanwhile stands beside the numbers, for a busy one makes any of them meaningless.

Needs numpy and nothing of ours that needs more: this file is sent to machines without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from profiles import energy, machine, nvml
from profiles.conditions import busy, load
from profiles.parts import Parts, shares
from profiles.steady import WARMUP_S, Clock, Warmth, warm_up

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
    load_ms: float | None = None  #: these three as `profiles.resident.begin` has measured them
    first_ms: float | None = None
    peak_bytes: int | None = None
    parts: Parts | None = None  #: the same call in three steps, where a GPU makes it
    gpu: str | None = None  #: NVML's uuid of that GPU


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
    machine: str = ""  #: what computed: the processor with its cores, or the GPU
    scenario: str = "quick"  #: ours, as trtexec does it; else LoadGen's SingleStream, MultiStream, Offline, Server
    valid: bool | None = None  #: LoadGen's verdict; None without LoadGen
    invalid_because: str = ""
    first_ms: float | None = None  #: the first inference after loading
    load_ms: float | None = None  #: from the file to something that can be called
    warmup_runs: int | None = None  #: calls before the counted ones
    settled: bool | None = None  #: False: the times were not stable when the limit of the warm-up was reached
    busy: str = ""  #: a sentence where load or spread says that the machine had other work
    clock_mhz: float | None = None
    governor: str | None = None  #: of the processor's clock, by the kernel's name
    peak_bytes: int | None = None  #: rise of the resident memory from before loading; on a GPU what was allocated
    copy_in_ms: float | None = None  #: medians by CUDA's events; None on a processor
    compute_ms: float | None = None
    copy_out_ms: float | None = None
    energy_mj: float | None = None  #: millijoules an image, idle power included; None where the machine does not tell
    energy_source: str = ""  #: "NVML" or "RAPL package"
    submission_length: bool | None = None  #: of LoadGen's: whether it ran as long as MLPerf asks for
    target_qps: float | None = None  #: images a second that LoadGen was told to ask for, in Server
    latency_bound_ms: float | None = None  #: that LoadGen's verdict holds the answers to, in Server


@dataclass
class Notes:
    """What is written down of one candidate while it is timed."""

    warmth: Warmth
    rounds: list[list[float]] = field(default_factory=list)  #: seconds of each counted call
    joules: list[float | None] = field(default_factory=list)  #: of each round
    clocks: list[float] = field(default_factory=list)  #: MHz at the end of each round
    slowed: str = ""


@dataclass(frozen=True)
class Rounds(Generic[Key]):
    """Several calls, measured in turns."""

    latencies: dict[Key, Latency]
    medians: dict[Key, list[float]]  #: milliseconds, one a round; the same place is the same round


def measure(
    call: Callable[[Example], object],
    example: Example,
    *,
    batch_size: int = 1,
    warmup_s: float = WARMUP_S,
    duration_s: float = 1.0,
    min_runs: int = 10,
    synchronize: Callable[[], None] | None = None,
    runtime: str = "torch",
    device: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    clock: Clock | None = None,
) -> Latency:
    """Time `call(example)` for `duration_s` seconds and at least `min_runs` times, after an uncounted warm-up."""
    one = Candidate(call, example, batch_size, runtime, device, precision, threads, synchronize)
    return measure_alternated(
        {"": one}, warmup_s=warmup_s, duration_s=duration_s, min_runs=min_runs, rounds=1, clock=clock
    )[""]


def measure_alternated(
    candidates: Mapping[Key, Candidate[Example]],
    *,
    warmup_s: float = WARMUP_S,
    duration_s: float = 1.0,
    min_runs: int = 10,
    rounds: int = ROUNDS,
    clock: Clock | None = None,
) -> dict[Key, Latency]:
    """The latencies that `measure_rounds` finds."""
    return measure_rounds(
        candidates, warmup_s=warmup_s, duration_s=duration_s, min_runs=min_runs, rounds=rounds, clock=clock
    ).latencies


def measure_rounds(
    candidates: Mapping[Key, Candidate[Example]],
    *,
    warmup_s: float = WARMUP_S,
    duration_s: float = 1.0,
    min_runs: int = 10,
    rounds: int = ROUNDS,
    clock: Clock | None = None,
    meter: Callable[[str, str | None], energy.Meter | None] = energy.meter,
) -> Rounds[Key]:
    """Time several calls in turn, slice by slice, so that a ratio between two compares the same minutes of the machine.

    Each gets `duration_s` seconds in all and at least `min_runs` counted calls, after a warm-up that ends when its
    times are stable, but lasts `warmup_s` at least and the longer of the two at most. Every second round has them in
    the reverse order, so that a clock that falls steadily favours none. Raises ValueError for nothing to time.
    """
    if not candidates or min_runs < 1 or rounds < 1:
        raise ValueError("measure_alternated: expected at least one candidate, one run and one round.")
    clock = clock or Clock()
    before, limit = load(), max(warmup_s, duration_s)
    notes = {
        name: Notes(warm_up(partial(once, one, clock), least_s=warmup_s, limit_s=limit, clock=clock))
        for name, one in candidates.items()
    }
    meters = {name: meter(one.device, one.gpu) for name, one in candidates.items()}
    names = list(candidates)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            one = candidates[name]
            if len(names) > 1:
                clock.sleep(REST_S)
                run_for(one, seconds=0, at_least=DISCARDED, clock=clock)
            least = -(-min_runs // rounds)
            one_slice(one, notes[name], meters[name], seconds=duration_s / rounds, at_least=least, clock=clock)
    after = load()
    found = {name: summary(one, notes[name], before, after, meters[name]) for name, one in candidates.items()}
    medians = {name: [1e3 * float(np.median(times)) for times in notes[name].rounds] for name in names}
    return Rounds(found, medians)


def one_slice(
    candidate: Candidate, notes: Notes, meter: energy.Meter | None, *, seconds: float, at_least: int, clock: Clock
) -> None:
    """One turn of a candidate, and what the machine says of it."""
    if meter is not None:
        meter.lap()
    notes.rounds.append(run_for(candidate, seconds=seconds, at_least=at_least, clock=clock))
    notes.joules.append(None if meter is None else meter.lap())
    now = machine.clock_mhz(candidate.device, candidate.gpu)
    notes.clocks += [] if now is None else [now]
    gpu = nvml.gpu(candidate.gpu) if machine.on_gpu(candidate.device) else None
    notes.slowed = notes.slowed or ("" if gpu is None else gpu.slowed())


def run_for(candidate: Candidate, *, seconds: float, at_least: int, clock: Clock) -> list[float]:
    """Seconds of each call, for `seconds` in all and `at_least` so many calls."""
    times: list[float] = []
    end = clock.now() + seconds
    while len(times) < at_least or clock.now() < end:
        times.append(once(candidate, clock))
    return times


def once(candidate: Candidate, clock: Clock) -> float:
    """Seconds of one call, the wait for its device included."""
    call, example, synchronize, now = candidate.call, candidate.example, candidate.synchronize, clock.now
    start = now()
    call(example)
    if synchronize is not None:
        synchronize()
    return now() - start


def summary(
    candidate: Candidate, notes: Notes, before: float | None, after: float | None, meter: energy.Meter | None
) -> Latency:
    """What was written down -> percentiles in milliseconds, and the circumstances."""
    ms = 1e3 * np.concatenate([np.asarray(times) for times in notes.rounds])
    p50, p90, p99 = (float(value) for value in np.percentile(ms, [50, 90, 99]))
    medians = [float(np.median(times)) for times in notes.rounds]
    signs = {"before": before, "after": after, "cores": machine.cores(), "threads": candidate.threads}
    joules = energy_of(notes, ms.sum() / 1e3)
    found = Latency(
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
        busy=busy(**signs, p50=p50, p90=p90, rounds=medians, slowed=notes.slowed),
        energy_mj=None if joules is None else 1e3 * joules / (candidate.batch_size * len(ms)),
        energy_source="" if joules is None or meter is None else meter.source,
    )
    return surrounded(found, candidate, notes)


def surrounded(found: Latency, candidate: Candidate, notes: Notes) -> Latency:
    """The same with what is known of the candidate's beginning, of its parts and of where it ran."""
    on_gpu = machine.on_gpu(candidate.device)
    apart = None if candidate.parts is None else shares(candidate.parts, candidate.example)
    return replace(
        found,
        machine=machine.short_name(candidate.device, candidate.gpu),
        first_ms=candidate.first_ms,
        load_ms=candidate.load_ms,
        peak_bytes=candidate.peak_bytes,
        warmup_runs=notes.warmth.runs,
        settled=notes.warmth.settled,
        clock_mhz=float(np.median(notes.clocks)) if notes.clocks else None,
        governor=None if on_gpu else machine.governor(),
        copy_in_ms=None if apart is None else apart.copy_in_ms,
        compute_ms=None if apart is None else apart.compute_ms,
        copy_out_ms=None if apart is None else apart.copy_out_ms,
    )


def energy_of(notes: Notes, seconds: float) -> float | None:
    """Joules of all rounds; None where one of them is not known, or all are too short for the counter."""
    known = [joules for joules in notes.joules if joules is not None]
    whole = len(known) == len(notes.joules) and seconds >= energy.LEAST_S
    return sum(known) if whole else None
