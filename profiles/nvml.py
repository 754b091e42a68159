"""What NVIDIA's management library tells of a GPU: its name, clock, energy, and why it is slowed down.

All of it is an answer or None: a machine without GPU, driver or the package `nvidia-ml-py` tells nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

#: bit of NVML's mask -> why the clock is lower than it could be; idleness and the user's own limits are no such reasons
SLOWED = {
    0x04: "its power limit",
    0x08: "a slowdown by its hardware",
    0x20: "its temperature",
    0x40: "its temperature",
    0x80: "a power brake",
}


class Nvml:
    """One GPU."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle

    def ask(self, function: str, *arguments: Any) -> Any:
        """The library's answer, or None where this GPU or driver has none."""
        try:
            return getattr(self.library, function)(self.handle, *arguments)
        except (self.library.NVMLError, AttributeError):
            return None

    def name(self) -> str | None:
        found = self.ask("nvmlDeviceGetName")
        return found.decode() if isinstance(found, bytes) else found

    def joules(self) -> float | None:
        """Energy since the driver was loaded, idle power included; None before the Volta generation."""
        found = self.ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else found / 1e3

    def clock_mhz(self) -> float | None:
        """Of the streaming multiprocessors, now."""
        found = self.ask("nvmlDeviceGetClockInfo", 1)
        return None if found is None else float(found)

    def slowed(self) -> str:
        """Why the GPU runs below its clock now; empty where it does not, or does not tell."""
        mask = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        return " and ".join(dict.fromkeys(why for bit, why in SLOWED.items() if mask & bit))


@cache
def library() -> Any | None:
    """NVML, initialised; None where there is none."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpu(uuid: str | None = None, *, find: Callable[[], Any | None] = library) -> Nvml | None:
    """The GPU that CUDA calls its first, or the one of this `uuid`.

    None where nobody tells which of several that is: CUDA may count them in another order than NVML.
    """
    nvml = find()
    if nvml is None:
        return None
    try:
        if uuid is not None:
            return Nvml(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"))
        count = nvml.nvmlDeviceGetCount()
        place = chosen(os.environ, count)
        if place is None:
            return None
        by_name = isinstance(place, str)
        handle = nvml.nvmlDeviceGetHandleByUUID(place) if by_name else nvml.nvmlDeviceGetHandleByIndex(place)
        return Nvml(nvml, handle)
    except nvml.NVMLError:
        return None


def chosen(environment: Mapping[str, str], count: int) -> int | str | None:
    """NVML's number or name of CUDA's first GPU, of `count`; None where it cannot be told."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return 0 if count == 1 or (count > 1 and environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID") else None
    first = visible.split(",")[0].strip()
    if first.startswith("GPU-"):
        return first
    known = count == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return int(first) if first.isdecimal() and int(first) < count and known else None
