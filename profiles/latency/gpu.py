"""NVIDIA GPUs: name, clock, energy and throttling by NVML, and the stages of a call timed by CUDA events.

NVML is optional: without a GPU, driver or the package `nvidia-ml-py` every query returns None.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

#: bit of NVML's mask -> reason for a lower clock; idleness and user limits are not included
THROTTLE_REASONS = {
    0x04: "its power limit",
    0x08: "a slowdown by its hardware",
    0x20: "its temperature",
    0x40: "its temperature",
    0x80: "a power brake",
}


class NvmlDevice:
    """One GPU in NVML."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle

    def query(self, function: str, *arguments: Any) -> Any:
        """Call an NVML function; return None if this GPU or driver does not support it."""
        try:
            return getattr(self.library, function)(self.handle, *arguments)
        except (self.library.NVMLError, AttributeError):
            return None

    def read_name(self) -> str | None:
        value = self.query("nvmlDeviceGetName")
        return value.decode() if isinstance(value, bytes) else value

    def read_energy(self) -> float | None:
        """Return the joules since the driver was loaded, including idle power; None before Volta."""
        value = self.query("nvmlDeviceGetTotalEnergyConsumption")
        return None if value is None else value / 1e3

    def read_clock_mhz(self) -> float | None:
        """Return the current clock of the streaming multiprocessors."""
        value = self.query("nvmlDeviceGetClockInfo", 1)
        return None if value is None else float(value)

    def throttle_reason(self) -> str:
        """Return why the GPU runs below its clock; empty if it does not, or does not report it."""
        mask = self.query("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return " and ".join(dict.fromkeys(why for bit, why in THROTTLE_REASONS.items() if mask & bit))


@cache
def load_nvml() -> Any | None:
    """Return NVML, initialized; None if it is not available."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def open_gpu(uuid: str | None = None, *, find: Callable[[], Any | None] = load_nvml) -> NvmlDevice | None:
    """Open CUDA's first GPU, or the one with this UUID.

    Returns None if it is unknown which of several GPUs is the first: CUDA may order them differently than NVML.
    """
    nvml = find()
    if nvml is None:
        return None
    try:
        if uuid is not None:
            return NvmlDevice(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"))
        count = nvml.nvmlDeviceGetCount()
        selected = select_device(os.environ, count)
        if selected is None:
            return None
        by_uuid = isinstance(selected, str)
        handle = nvml.nvmlDeviceGetHandleByUUID(selected) if by_uuid else nvml.nvmlDeviceGetHandleByIndex(selected)
        return NvmlDevice(nvml, handle)
    except nvml.NVMLError:
        return None


def select_device(environment: Mapping[str, str], count: int) -> int | str | None:
    """Return NVML's index or UUID of CUDA's first GPU among `count`; None if it is unknown."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return 0 if count == 1 or (count > 1 and environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID") else None
    first = visible.split(",")[0].strip()
    if first.startswith("GPU-"):
        return first
    known = count == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return int(first) if first.isdecimal() and int(first) < count and known else None


#: counted calls, and uncounted calls before them
STAGE_RUNS, STAGE_DISCARDED = 50, 5


class StageEvent(Protocol):
    """A mark in the device's queue, such as `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> Any: ...

    def synchronize(self) -> Any: ...

    def elapsed_time(self, end_event: Any, /) -> float: ...


@dataclass(frozen=True)
class GpuStages:
    """A call in three stages; each receives the result of the previous one."""

    copy_in: Callable[[Any], Any]
    compute: Callable[[Any], Any]
    copy_out: Callable[[Any], Any]
    create_event: Callable[[], StageEvent]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext  #: sets device and stream


@dataclass(frozen=True)
class StageTimes:
    """Medians in milliseconds. Their sum is less than the time on the host, because launching is in none of them."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


def time_stages(
    stages: GpuStages, example: Any, *, runs: int = STAGE_RUNS, discarded: int = STAGE_DISCARDED
) -> StageTimes:
    """Time the stages of `runs` calls separately."""
    times = [time_stages_once(stages, example) for _ in range(discarded + runs)][discarded:]
    return StageTimes(*(statistics.median(column) for column in zip(*times, strict=True)))


def time_stages_once(stages: GpuStages, example: Any) -> list[float]:
    """Return the milliseconds of each stage of one call."""
    marks = [stages.create_event() for _ in range(4)]
    value = example
    with stages.context():
        marks[0].record()
        for step, mark in zip((stages.copy_in, stages.compute, stages.copy_out), marks[1:], strict=True):
            value = step(value)
            mark.record()
        marks[-1].synchronize()
    return [one.elapsed_time(other) for one, other in pairwise(marks)]
