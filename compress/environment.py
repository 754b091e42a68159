"""Versions, devices and optional packages; the implementation of `compress.doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "compress-distill"
#: optional package -> (what it is for, its extra or the command that installs it)
OPTIONAL = {
    "timm": ("models timm/NAME", "timm"),
    "segmentation-models-pytorch": ("models smp/ARCH:ENCODER", "smp"),
    "h5py": ("data nyuv2", "nyu"),
    "datasets": ("data hf/NAME", "hub"),
    "tensorboard": ("curves in TensorBoard", "tensorboard"),
    "onnxruntime-gpu": ("bench --provider cuda", "pip uninstall onnxruntime; pip install onnxruntime-gpu"),
    "openvino": ("files .xml, Intel's runtime", "openvino"),
    "mlcommons-loadgen": ("bench --scenario of MLPerf", "loadgen"),
    "ray": ("sweep and compare --workers", "sweep"),
    "optuna": ("sweep --prune", "sweep"),
    "nvidia-ml-py": ("energy and clock of a GPU", "nvml"),
    "tensorrt": ("files .engine, NVIDIA's runtime", "tensorrt"),
    "tensorrt-rtx-cu13": ("files .engine for RTX GPUs", "tensorrt-rtx"),
}
#: core packages whose import name differs
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}
#: a program that imports its arguments one by one and prints name -> error
IMPORT_TRIAL = """
import importlib, json, sys
errors = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        errors[name] = f"{type(error).__name__}: {error}"
print(json.dumps(errors))
"""


@dataclass(frozen=True)
class PackageStatus:
    """A package that is required or optional."""

    name: str  #: name on the package index
    version: str | None  #: installed version; None: not installed
    expected: str  #: range of versions, or what the package is for
    install: str  #: command that installs it
    problem: str | None = None  #: why it cannot be used; None: no problem found


@dataclass(frozen=True)
class EnvironmentReport:
    """The machine and the packages."""

    ok: bool  #: False if a core package is missing or broken
    machine: dict[str, Any]  #: processor, memory, GPUs, operating system and versions
    bf16: str  #: "fast" (matrix unit), "native" (vector instructions) or "emulated"
    core: dict[str, PackageStatus]  #: required packages
    optional: dict[str, PackageStatus]  #: optional packages


def check_environment(thorough: bool = False) -> EnvironmentReport:
    """Check the installed packages; `thorough` also imports the core ones in a separate process."""
    from profiles.latency.machine import describe_machine

    machine, core = describe_machine(), core_packages()
    if thorough:
        core = try_imports(core)
    return EnvironmentReport(
        ok=not any(one.problem for one in core),
        machine=machine,
        bf16=bf16_support(machine["instructions"]),
        core={one.name: one for one in core},
        optional={one.name: one for one in optional_packages()},
    )


def core_packages() -> list[PackageStatus]:
    """Compare every package that our metadata requires with its range of versions."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    core = [check_version(one) for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [check_torchvision(one) if one.name == "torchvision" else one for one in core]


def check_version(required: Requirement) -> PackageStatus:
    version = installed_version(required.name)
    status = PackageStatus(required.name, version, str(required.specifier), f"pip install '{required}'")
    if version is None:
        return replace(status, problem="not installed")
    if not required.specifier.contains(version, prereleases=True):
        return replace(status, problem=f"found {version}, expected {required.specifier}")
    return status


def check_torchvision(status: PackageStatus) -> PackageStatus:
    """Report the default build of torchvision beside a CPU-only build of torch, because it does not import there."""
    torch = installed_version("torch")
    if status.problem is not None or status.version is None or torch is None:
        return status
    if "+cpu" in torch and "+cpu" not in status.version:
        problem = f"torchvision {status.version} does not import with the CPU-only build torch {torch}"
        return replace(status, problem=problem, install="pip install --force-reinstall torch torchvision")
    return status


def optional_packages() -> list[PackageStatus]:
    packages = []
    for name, (purpose, source) in OPTIONAL.items():
        version = installed_version(name)
        install = source if source.startswith("pip ") else f"pip install '{DISTRIBUTION}[{source}]'"
        packages.append(PackageStatus(name, version, purpose, install, None if version else "not installed"))
    return packages


def try_imports(packages: Sequence[PackageStatus]) -> list[PackageStatus]:
    """Import the packages without a known problem in a separate process."""
    modules = {one.name: IMPORT_NAMES.get(one.name, one.name) for one in packages if one.problem is None}
    command = [sys.executable, "-P", "-W", "ignore", "-c", IMPORT_TRIAL, *modules.values()]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        problem = f"importing all core packages ends the interpreter (exit code {run.returncode})"
        return [replace(one, problem=problem) if one.name == "torch" else one for one in packages]
    errors: Mapping[str, str] = json.loads(run.stdout.splitlines()[-1])
    failed = {name: errors[module] for name, module in modules.items() if module in errors}
    return [
        replace(one, problem=f"does not import ({failed[one.name]})") if one.name in failed else one for one in packages
    ]


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def bf16_support(instructions: Sequence[str]) -> str:
    """Return how this processor computes in bfloat16: "fast" (AMX), "native" (vectors) or "emulated"."""
    if "amx_bf16" in instructions:
        return "fast"
    return "native" if {"avx512_bf16", "bf16"} & set(instructions) else "emulated"
