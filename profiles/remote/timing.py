"""Does an order on the machine that it reached: opens what was sent, times it in turns, and says where."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.remote.order import Job, Order, Refused, pair

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from profiles.latency.benchmark import Candidate
    from profiles.remote.opening import Ready

#: in which the runner puts what it was sent; see `profiles.remote.serving`
FILES = "files"


def measure(order: Order, folder: Path) -> dict[str, Any]:
    """Latencies in the order of jobs and plays, and the machine. Raises Refused for what cannot be had here."""
    if importlib.util.find_spec("numpy") is None:
        raise Refused(
            f"NumPy is not installed there for {sys.executable}; install it on that machine with: {sys.executable} -m "
            "pip install numpy"
        )
    from profiles.latency.machine import describe_machine, system_load
    from profiles.remote.opening import install

    if order.plays and importlib.util.find_spec("mlperf_loadgen") is None:
        raise Refused(f"MLPerf's LoadGen is not installed there; {install('mlcommons-loadgen')}")
    before, machine = system_load(), describe_machine()
    refuse_other_versions(order.versions, machine["versions"])
    quick = None if order.quick_s is None else in_turns(order, order.quick_s, folder)
    return {"quick": quick, "played": list(played(order, folder, before)), "machine": machine}


def in_turns(order: Order, seconds: float, folder: Path) -> dict[str, Any]:
    """All jobs, for so many seconds each."""
    from profiles.latency.benchmark import benchmark_interleaved
    from profiles.remote.serving import tell

    candidates = {index: candidate(job, order.precision, folder) for index, job in enumerate(order.jobs)}
    tell(f"timing {len(candidates)} in turns, about {len(candidates) * (seconds + 0.5):.0f} s …")
    found = benchmark_interleaved(candidates, duration_s=seconds)
    return {
        "latencies": [asdict(found.latencies[index]) for index in candidates],
        "medians": [found.round_medians[index] for index in candidates],
    }


def played(order: Order, folder: Path, before: float | None) -> Iterator[dict[str, Any]]:
    """The scenarios of MLPerf's, one after the other: of each its `latency`, or the `error` that stops no other.

    `before`: load of the machine before any of our work.
    """
    from profiles.latency.scenarios import CandidateSpec, ScenarioError, ScenarioSettings, run_scenario
    from profiles.remote.serving import tell

    for one in order.plays:
        rules, job = ScenarioSettings(**one.rules), order.jobs[one.job]
        length = "10 minutes or more" if rules.mlperf else f"about {rules.duration_s:.0f} s"
        tell(f"{rules.scenario} of {job.shown} in {job.runtime}, batch {job.batch}: {length} …")
        settings = {"job": asdict(job), "precision": order.precision, "folder": str(folder)}
        try:
            found = run_scenario(CandidateSpec("profiles.remote.timing:reopened", settings), rules, load_before=before)
        except ScenarioError as error:
            yield {"error": str(error)}
        else:
            yield {"latency": asdict(found)}


def reopened(*, job: dict[str, Any], precision: str | None, folder: str) -> Candidate[Any]:
    """A job's candidate in another process, by what JSON can hold."""
    return candidate(Job(**{**job, "size": pair(job["size"])}), precision, Path(folder))


def refuse_other_versions(wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises Refused where a package is missing, or of another version than begins as is wanted: 1.2 is not 1.20."""
    for name, version in wanted.items():
        there = found.get(name)
        if there is None or not f"{there}.".startswith(f"{version}."):
            raise Refused(f"found {name} {there or 'not installed'} there, expected {version}, as the target says")


def candidate(job: Job, precision: str | None, folder: Path) -> Candidate[Any]:
    """What to time for a job, on random images in the host's memory."""
    from profiles.latency.benchmark import Candidate
    from profiles.latency.machine import available_cores, is_nvidia_gpu
    from profiles.latency.memory import load_and_first_call, peak_resident_memory
    from profiles.remote.opening import open_file, package

    package(job.runtime)  # importing it is no part of loading a file
    job = replace(job, threads=available_cores() if job.threads is None else job.threads)
    begun = load_and_first_call(
        lambda: open_file(job, folder / FILES / job.file),
        lambda ready: images_for(ready, job, precision),
        peak=without_peak if is_nvidia_gpu(job.provider) else peak_resident_memory,
    )
    return Candidate(
        begun.call,
        begun.example,
        job.batch,
        job.runtime,
        job.provider,
        begun.call.precision,
        None if job.runtime.startswith("tensorrt") else job.threads,
        load_ms=begun.load_ms,
        first_call_ms=begun.first_call_ms,
        peak_bytes=begun.peak_bytes,
        gpu_stages=begun.call.parts,
        gpu=begun.call.gpu,
    )


def without_peak(work: Callable[[], object]) -> None:
    """What a GPU allocates nobody tells here without PyTorch; the host's memory would be another thing."""
    work()


def images_for(ready: Ready, job: Job, precision: str | None) -> NDArray[Any]:
    """Random images. Raises Refused where the file is not what was asked for."""
    import numpy as np

    if precision not in (None, ready.precision):
        raise Refused(f"{job.shown}: runs in {ready.precision} there, expected {precision}, as the target says")
    fewest, most = ready.batches
    if not fewest <= job.batch <= (most or job.batch):
        taken = f"{fewest} only" if fewest == most else f"{fewest} to {most}"
        raise Refused(f"{job.shown}: takes batches of {taken}, found --batch-size {job.batch}")
    shape, random = images_of(ready.shape, job, takes_bytes=ready.takes_bytes), np.random.default_rng(0)
    if ready.takes_bytes:
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.random(shape, dtype=np.float32)


def images_of(shape: list[Any], job: Job, *, takes_bytes: bool) -> tuple[int, int, int, int]:
    """The shape of a batch: what the file fixes, and the size that was asked for where it fixes none.

    Raises Refused for a size that the file does not read, and where nobody knows it.
    """
    _, *rest = shape
    channels, height, width = (rest[-1], *rest[:2]) if takes_bytes else rest
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if fixed is not None and job.size not in (None, fixed):
        raise Refused(f"{job.shown}: reads images of {text(fixed)}, found {text(job.size)} asked for")
    size = fixed or job.size
    if size is None:
        raise Refused(f"{job.shown}: the file does not say its image size; give it with --image-size HxW")
    depth = channels if isinstance(channels, int) else 3
    return (job.batch, *size, depth) if takes_bytes else (job.batch, depth, *size)


def text(size: tuple[int, int] | None) -> str:
    return "any" if size is None else f"{size[0]}x{size[1]}"
