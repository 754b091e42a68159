"""Energy, where the machine counts it itself: NVIDIA's GPUs by NVML, processors by RAPL. Never estimated.

Both counters are of the whole device: idle power, and whatever else it does meanwhile, is in them and is not taken
off. RAPL's zone is the processor's package, without memory, disks and fans.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from profiles import nvml
from profiles.machine import on_gpu

#: where Linux shows RAPL's counters; AMD's are under the same names
POWERCAP = Path("/sys/class/powercap")
#: less than so many seconds in all, and the counters' own rhythm (some 0.1 s on a GPU) would be measured
LEAST_S = 0.5


class Meter(Protocol):
    """A counter of energy."""

    source: str  #: who tells

    def lap(self) -> float | None:
        """Joules since the lap before; None for the first, and where the counter fell silent."""
        ...


class GpuMeter:
    """A GPU's counter of its own energy."""

    source = "NVML"

    def __init__(self, gpu: nvml.Nvml) -> None:
        self.gpu = gpu
        self.last: float | None = None

    def lap(self) -> float | None:
        now, before = self.gpu.joules(), self.last
        self.last = now
        return now - before if now is not None and before is not None and now >= before else None


class PackageMeter:
    """RAPL's counters of all packages together, in microjoules; each starts anew at its own limit."""

    source = "RAPL package"

    def __init__(self, zones: list[Path]) -> None:
        self.limits = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in zones}
        self.last: dict[Path, int] = {}

    def lap(self) -> float | None:
        before = self.last
        try:
            self.last = {zone: int((zone / "energy_uj").read_text()) for zone in self.limits}
        except (OSError, ValueError):
            self.last = {}
        if not before or not self.last:
            return None
        passed = {zone: now - before[zone] for zone, now in self.last.items()}
        return sum(rise if rise >= 0 else rise + self.limits[zone] + 1 for zone, rise in passed.items()) / 1e6


def packages(root: Path) -> list[Path]:
    """RAPL's zones of whole packages that this user may read: usually only root may."""
    found = []
    for zone in sorted(root.glob("*")):
        if re.fullmatch(r"intel-rapl:\d+", zone.name):
            try:
                whole = (zone / "name").read_text().startswith("package")
                counts = [int((zone / file).read_text()) for file in ("energy_uj", "max_energy_range_uj")]
            except (OSError, ValueError):
                continue
            found += [zone] if whole and counts[1] > 0 else []
    return found


def meter(device: str, gpu: str | None = None, *, root: Path = POWERCAP) -> Meter | None:
    """What counts the energy of a `device` ("cpu", "cuda", …; `gpu`: NVML's name of it); None where nothing does."""
    if on_gpu(device):
        found = nvml.gpu(gpu)
        return GpuMeter(found) if found is not None and found.joules() is not None else None
    zones = packages(root)
    return PackageMeter(zones) if zones else None
