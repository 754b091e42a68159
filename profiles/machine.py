"""The machine a number was measured on: processor, memory, accelerators, versions. No host name, no path, no user."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from profiles import nvml

#: where Linux tells of each processor
CPUS = Path("/sys/devices/system/cpu")
#: instruction sets that decide which precision is fast, as Linux spells them
INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip
#: packages whose version changes what is measured
PACKAGES = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxscript", "onnxslim",
    "openvino", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "fvcore", "timm", "numpy",
    "mlcommons-loadgen",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    driver: str
    compute_capability: str


def describe() -> dict[str, Any]:
    """The machine, as JSON has it; nothing that names a person, a host or a folder. Imports no heavy package."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "instructions": instructions(),
        "memory_bytes": memory_bytes(),
        "gpus": [asdict(gpu) for gpu in gpus()],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """python and those of PACKAGES that are installed -> version, read from their metadata."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: text for name, text in found.items() if text is not None}


def version(package: str) -> str | None:
    """The installed version of `package`, or None. Nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def short_name(device: str = "cpu", gpu: str | None = None) -> str:
    """What computes on `device`, in a few words: "AMD EPYC 9B14, 2 cores", or the GPU's name (`gpu`: NVML's uuid)."""
    if on_gpu(device):
        found = nvml.gpu(gpu)
        named = None if found is None else found.name()
        return named or next((one.name for one in gpus()), "GPU")
    return f"{tidy(cpu_model())}, {cores()} core{'s' if cores() > 1 else ''}"


def on_gpu(device: str) -> bool:
    """Whether a device, or a provider of ONNX Runtime, is a GPU of NVIDIA's."""
    return device.split(":")[0] in ("cuda", "tensorrt")


def tidy(name: str) -> str:
    """A processor's name without marks, its clock and its number of cores."""
    bare = re.sub(r"\((?:R|TM|tm|r)\)|\bCPU\b|@.*$|\b\d+-Core\b|\bProcessor\b", " ", name)
    return " ".join(bare.split())


def governor(root: Path = CPUS) -> str | None:
    """What chooses the clock of the processors that this process may use, in the kernel's words; None: not told."""
    found = sorted(set(of_each(root, "scaling_governor")))
    return " and ".join(found) or None


def clock_mhz(device: str = "cpu", gpu: str | None = None, *, root: Path = CPUS) -> float | None:
    """The clock now: of a GPU by NVML, else the fastest of the processors that this process may use; None: not told."""
    if on_gpu(device):
        found = nvml.gpu(gpu)
        return None if found is None else found.clock_mhz()
    clocks = [int(text) / 1e3 for text in of_each(root, "scaling_cur_freq") if text.isdecimal()]
    return max(clocks, default=None)


def of_each(root: Path, file: str) -> list[str]:
    """What the kernel says in `file` of each processor that this process may use."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    found = []
    for number in sorted(usable):
        try:
            found.append((root / f"cpu{number}" / "cpufreq" / file).read_text().strip())
        except OSError:
            continue
    return found


def cores() -> int:
    """Processors that this process may use, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions() -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo(), re.MULTILINE)
    present = set(found[1].split()) if found else set()
    return [name for name in INSTRUCTIONS if name in present]


def memory_bytes() -> int | None:
    """Physical memory, or None where the system does not tell."""
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def gpus() -> tuple[Gpu, ...]:
    """NVIDIA's accelerators by `nvidia-smi`; empty where there is none or the tool does not answer in 5 s."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(gpu for line in answer.splitlines() if (gpu := read_gpu(line)) is not None)


def read_gpu(line: str) -> Gpu | None:
    """One line of the answer, `name, MiB, driver, capability`; None if it is anything else."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[1].isdigit():
        return None
    return Gpu(parts[0], int(parts[1]) * 2**20, parts[2], parts[3])
