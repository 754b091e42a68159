"""Resident memory of this process, and the cost of loading a model: time, first call and memory. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from profiles.latency.warmup import Clock

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
Call = TypeVar("Call", bound=Callable)
Example = TypeVar("Example")


def peak_resident_memory(call: Callable[[], object]) -> int | None:
    """Return the increase of resident memory in bytes at its peak while `call` runs.

    Returns None if the kernel cannot reset the peak of a process (on any system but Linux); `call` runs there as well.
    """
    before = reset_peak_memory()
    call()
    return None if before is None else max(0, process_status_bytes("VmHWM") - before)


def reset_peak_memory() -> int | None:
    """Reset the peak and return the resident bytes; None if that is not possible."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # memory kept by the allocator would hide later allocations
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR_REFS.write_text("5")
        return process_status_bytes("VmRSS")
    except OSError:
        return None


def process_status_bytes(key: str) -> int:
    """Return a field of the process status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class LoadedModel(Generic[Call, Example]):
    """A loaded model that has run once."""

    call: Call
    example: Example
    load_ms: float
    first_call_ms: float
    peak_bytes: int | None  #: increase by both


def load_and_first_call(
    load: Callable[[], Call],
    example: Callable[[Call], Example],
    *,
    peak: Callable[[Callable[[], object]], int | None] = peak_resident_memory,
    clock: Clock | None = None,
) -> LoadedModel[Call, Example]:
    """Load a model, make an example for it and call it once; measure what these take.

    The call must have finished its work when it returns. `peak` runs a function and returns the memory it took. All
    errors are passed on.
    """
    clock = clock or Clock()
    models: list[LoadedModel[Call, Example]] = []

    def load_and_call() -> None:
        start = clock.now()
        call = load()
        load_ms = 1e3 * (clock.now() - start)
        images = example(call)
        start = clock.now()
        call(images)
        models.append(LoadedModel(call, images, load_ms, 1e3 * (clock.now() - start), None))

    peak_bytes = peak(load_and_call)
    return replace(models[0], peak_bytes=peak_bytes)
