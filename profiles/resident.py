"""Resident memory that a call takes at its peak; and what it takes to begin: to load a file, and its first answer."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from profiles.steady import Clock

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
Call = TypeVar("Call", bound=Callable)
Example = TypeVar("Example")


def resident_peak(call: Callable[[], object]) -> int | None:
    """Bytes by which the resident memory of this process rose above its start while `call` ran, at the peak.

    None where the kernel does not let a process reset its high-water mark (anything but Linux); `call` runs there too,
    and what it raises is passed on.
    """
    before = from_here_on()
    call()
    return None if before is None else max(0, status("VmHWM") - before)


def from_here_on() -> int | None:
    """Resident bytes of this process, now that its high-water mark begins anew; None where that cannot be."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # else what the allocator kept of earlier calls would not count
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5")
        return status("VmRSS")
    except OSError:
        return None


def status(key: str) -> int:
    """A field of the process's status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Begun(Generic[Call, Example]):
    """Something loaded that has answered once."""

    call: Call
    example: Example
    load_ms: float
    first_ms: float
    peak_bytes: int | None  #: taken by both


def begin(
    load: Callable[[], Call],
    example: Callable[[Call], Example],
    *,
    peak: Callable[[Callable[[], object]], int | None] = resident_peak,
    clock: Clock | None = None,
) -> Begun[Call, Example]:
    """Load something, make an example for it, and let it answer once; what these take. Raises what they raise.

    The first call must have finished its work when it returns. `peak` runs a function and says what memory it took.
    """
    clock = clock or Clock()
    kept: list[Begun[Call, Example]] = []

    def whole() -> None:
        start = clock.now()
        call = load()
        loaded = clock.now()
        given = example(call)
        asked = clock.now()
        call(given)
        kept.append(Begun(call, given, 1e3 * (loaded - start), 1e3 * (clock.now() - asked), None))

    taken = peak(whole)
    (one,) = kept
    return Begun(one.call, one.example, one.load_ms, one.first_ms, taken)
