"""Energy from hardware counters: NVIDIA GPUs by NVML, processors by RAPL. It is never estimated.

Both counters cover the is_package device, including idle power and other work. RAPL's zone is the processor's package,
without memory, disks and fans.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from profiles.latency.gpu import NvmlDevice, open_gpu
from profiles.latency.machine import is_nvidia_gpu

#: RAPL's counters in Linux; AMD's have the same names
POWERCAP = Path("/sys/class/powercap")
#: shorter measurements would mostly see the counters' update interval, about 0.1 s on a GPU
MIN_DURATION_S = 0.5


class EnergyMeter(Protocol):
    """A counter of energy."""

    source: str  #: name of the counter

    def read_delta(self) -> float | None:
        """Return the joules since the previous call; None for the first call and for a failed counter."""
        ...


class NvmlEnergyMeter:
    """A GPU's energy counter."""

    source = "NVML"

    def __init__(self, gpu: NvmlDevice) -> None:
        self.gpu = gpu
        self.last: float | None = None

    def read_delta(self) -> float | None:
        now, before = self.gpu.read_energy(), self.last
        self.last = now
        return now - before if now is not None and before is not None and now >= before else None


class RaplEnergyMeter:
    """RAPL's counters of all packages together, in microjoules; each wraps at its own limit."""

    source = "RAPL package"

    def __init__(self, zones: list[Path]) -> None:
        self.limits = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in zones}
        self.last: dict[Path, int] = {}

    def read_delta(self) -> float | None:
        before = self.last
        try:
            self.last = {zone: int((zone / "energy_uj").read_text()) for zone in self.limits}
        except (OSError, ValueError):
            self.last = {}
        if not before or not self.last:
            return None
        deltas = {zone: now - before[zone] for zone, now in self.last.items()}
        return sum(delta if delta >= 0 else delta + self.limits[zone] + 1 for zone, delta in deltas.items()) / 1e6


def find_rapl_zones(root: Path) -> list[Path]:
    """Return the RAPL zones of packages that this user may read; usually only root may."""
    zones = []
    for zone in sorted(root.glob("*")):
        if re.fullmatch(r"intel-rapl:\d+", zone.name):
            try:
                is_package = (zone / "name").read_text().startswith("package")
                counts = [int((zone / file).read_text()) for file in ("energy_uj", "max_energy_range_uj")]
            except (OSError, ValueError):
                continue
            zones += [zone] if is_package and counts[1] > 0 else []
    return zones


def open_energy_meter(device: str, gpu: str | None = None, *, root: Path = POWERCAP) -> EnergyMeter | None:
    """Return the energy counter of a device ("cpu", "cuda", …); None if there is none. `gpu`: its UUID in NVML."""
    if is_nvidia_gpu(device):
        nvml = open_gpu(gpu)
        return NvmlEnergyMeter(nvml) if nvml is not None and nvml.read_energy() is not None else None
    zones = find_rapl_zones(root)
    return RaplEnergyMeter(zones) if zones else None
