"""The machine of a measurement: processor, memory, GPUs, versions and load. No host name, path or user."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from compress.resources import physical_memory, usable_cores
from profiles.latency.gpu import open_gpu

#: per-processor files in Linux
CPUS = Path("/sys/devices/system/cpu")
#: instruction sets that decide which precision is fast, as spelled by Linux
INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip
#: packages whose version affects measurements
PACKAGES = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxscript", "onnxslim",
    "openvino", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "fvcore", "timm", "numpy",
    "mlcommons-loadgen",
)  # fmt: skip


@dataclass(frozen=True)
class GpuInfo:
    """One NVIDIA GPU."""

    name: str
    memory_bytes: int
    driver: str
    compute_capability: str


def describe_machine() -> dict[str, Any]:
    """Return the machine as JSON values. Imports no large package."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "instructions": cpu_instructions(),
        "memory_bytes": physical_memory(),
        "gpus": [asdict(gpu) for gpu in list_gpus()],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return python and the installed ones of PACKAGES -> version, from their metadata."""
    installed = {name: package_version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: text for name, text in installed.items() if text is not None}


def package_version(package: str) -> str | None:
    """Return the installed version of `package`, or None, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def read_cpuinfo() -> str:
    """Return /proc/cpuinfo; empty if there is none."""
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def cpu_model() -> str:
    """Return the name of the processor."""
    match = re.search(r"^model name\s*:\s*(.+)$", read_cpuinfo(), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def device_name(device: str = "cpu", gpu: str | None = None) -> str:
    """Return a short name of a device: "AMD EPYC 9B14, 2 cores", or the GPU's name. `gpu`: its UUID in NVML."""
    if is_nvidia_gpu(device):
        device_info = open_gpu(gpu)
        name = None if device_info is None else device_info.read_name()
        return name or next((one.name for one in list_gpus()), "GPU")
    return f"{clean_cpu_name(cpu_model())}, {usable_cores()} core{'s' if usable_cores() > 1 else ''}"


def is_nvidia_gpu(device: str) -> bool:
    """Whether a device, or a provider of ONNX Runtime, is an NVIDIA GPU."""
    return device.split(":")[0] in ("cuda", "tensorrt")


def clean_cpu_name(name: str) -> str:
    """Return a processor's name without trademarks, clock and number of cores."""
    bare = re.sub(r"\((?:R|TM|tm|r)\)|\bCPU\b|@.*$|\b\d+-Core\b|\bProcessor\b", " ", name)
    return " ".join(bare.split())


def cpu_governor(root: Path = CPUS) -> str | None:
    """Return the cpufreq governors of the usable processors; None if the system does not report them."""
    governors = sorted(set(read_cpufreq(root, "scaling_governor")))
    return " and ".join(governors) or None


def clock_mhz(device: str = "cpu", gpu: str | None = None, *, root: Path = CPUS) -> float | None:
    """Return the current clock: of a GPU by NVML, else of the fastest usable processor; None if unknown."""
    if is_nvidia_gpu(device):
        device_info = open_gpu(gpu)
        return None if device_info is None else device_info.read_clock_mhz()
    clocks = [int(text) / 1e3 for text in read_cpufreq(root, "scaling_cur_freq") if text.isdecimal()]
    return max(clocks, default=None)


def read_cpufreq(root: Path, file: str) -> list[str]:
    """Return a cpufreq file of each processor that this process may use."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    texts = []
    for number in sorted(usable):
        try:
            texts.append((root / f"cpu{number}" / "cpufreq" / file).read_text().strip())
        except OSError:
            continue
    return texts


def cpu_instructions() -> list[str]:
    """Return those of INSTRUCTIONS that the processor has."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", read_cpuinfo(), re.MULTILINE)
    present = set(match[1].split()) if match else set()
    return [name for name in INSTRUCTIONS if name in present]


@cache
def list_gpus() -> tuple[GpuInfo, ...]:
    """Return the NVIDIA GPUs by `nvidia-smi`; empty if there are none or the tool does not return within 5 s."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(gpu for line in output.splitlines() if (gpu := parse_gpu(line)) is not None)


def parse_gpu(line: str) -> GpuInfo | None:
    """Parse one line, `name, MiB, driver, capability`; None for anything else."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[1].isdigit():
        return None
    return GpuInfo(parts[0], int(parts[1]) * 2**20, parts[2], parts[3])


#: load per core, besides our own threads, above which other load is reported
LOAD_PER_CORE = 0.2
#: ratio of p90 to p50, and of the slowest round to the fastest, above which other load is reported
TAIL, DRIFT = 1.25, 1.10


def system_load() -> float | None:
    """Return the load average of the last minute; None if the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def load_warning(
    *,
    before: float | None = None,
    after: float | None = None,
    cores: int = 1,
    threads: int | None = None,
    p50: float | None = None,
    p90: float | None = None,
    rounds: Sequence[float] = (),
    throttle_reason: str = "",
) -> str:
    """Return a sentence about other load on the machine; empty if there is no sign of any.

    Args:
        before: Load average before the measurement.
        after: Load average after it, which may include our own `threads`.
        cores: Usable processors.
        threads: Threads of the runtime; None: one per core.
        p50: Median time of the calls, in any unit.
        p90: 90th percentile of the calls, in the same unit.
        rounds: Median of each round, in one unit.
        throttle_reason: Why a GPU runs below its clock.
    """
    observations = []
    ours = cores if threads is None else min(threads, cores)
    if before is not None and before > LOAD_PER_CORE * cores:
        observations.append(f"load {before:.1f} on {cores} cores before")
    elif after is not None and after - ours > LOAD_PER_CORE * cores:
        observations.append(f"load {after:.1f} on {cores} cores after, {ours} of it at most from this process")
    if p50 and p90 is not None and p90 > TAIL * p50:
        observations.append(f"p90 is {p90 / p50:.2f} times p50")
    if rounds and max(rounds) > DRIFT * min(rounds):
        observations.append(f"the slowest round took {max(rounds) / min(rounds):.2f} times the fastest")
    sentences = [f"The machine was busy: {', '.join(observations)}."] if observations else []
    return " ".join([*sentences, *([f"The GPU was slowed down by {throttle_reason}."] if throttle_reason else [])])
