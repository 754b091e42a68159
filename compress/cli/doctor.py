"""`compress doctor`: versions, devices, optional parts; what is missing, and the command that gets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from compress.cli.old_options import common, emit
from compress.cli.tables import format_table

if TYPE_CHECKING:
    from packaging.requirements import Requirement

#: optional part -> (what it is for, how to get it)
OPTIONAL = {
    "timm": ("models timm/NAME", "pip install 'compress-distill[timm]'"),
    "segmentation-models-pytorch": ("models smp/ARCH:ENCODER", "pip install 'compress-distill[smp]'"),
    "h5py": ("data nyuv2", "pip install 'compress-distill[nyu]'"),
    "datasets": ("data hf/NAME", "pip install 'compress-distill[hub]'"),
    "webdataset": ("data in .tar shards", "pip install 'compress-distill[shards]'"),
    "tensorboard": ("curves in TensorBoard", "pip install 'compress-distill[tensorboard]'"),
    "onnxruntime-gpu": ("bench --provider cuda", "pip uninstall onnxruntime; pip install onnxruntime-gpu"),
    "openvino": ("files .xml, Intel's runtime", "pip install 'compress-distill[openvino]'"),
    "mlcommons-loadgen": ("bench --scenario of MLPerf", "pip install 'compress-distill[loadgen]'"),
    "optuna": ("compress sweep", "pip install 'compress-distill[sweep]'"),
    "nvidia-ml-py": ("a GPU's energy and clock", "pip install 'compress-distill[nvml]'"),
    "tensorrt": ("files .engine, NVIDIA's runtime", "pip install 'compress-distill[tensorrt]'"),
    "tensorrt-rtx-cu13": ("the same for RTX cards", "pip install 'compress-distill[tensorrt-rtx]'"),
}
#: import names of core parts whose distribution is called otherwise
IMPORTS = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
}
#: imports what it is told, one by one, and answers name -> error
TRIAL = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Part:
    """A package that is needed, or may be."""

    name: str
    version: str | None  #: None: not installed
    wanted: str  #: range of versions, or what it is for
    get: str  #: the command that gets it
    problem: str | None = None  #: why it cannot be used; None: it can, as far as looked


@click.command()
@click.option("--thorough", is_flag=True, help="Import every core part too, in a process of its own; takes seconds.")
@common
def doctor(thorough: bool, as_json: bool) -> None:
    """Say what is here and what is missing. Exit code 1 if a core part is missing or broken.

    \b
    Example:
      compress doctor
    """
    from profiles.latency.machine import describe_machine

    machine, core, optional = describe_machine(), core_parts(), optional_parts()
    if thorough:
        core = imported(core)
    broken = [part for part in core if part.problem is not None]
    result: dict[str, Any] = {
        "ok": not broken,
        "machine": machine,
        "bf16": bf16(machine["instructions"]),
        "core": {part.name: asdict(part) for part in core},
        "optional": {part.name: asdict(part) for part in optional},
    }
    emit(
        result, as_json=as_json, text="\n".join([*hardware(machine), "", parts_table(core), "", extras_table(optional)])
    )
    if broken:
        names = "; ".join(f"{part.name}: {part.problem}; {part.get}" for part in broken)
        raise click.ClickException(f"{len(broken)} core part(s) missing or broken: {names}")


def core_parts() -> list[Part]:
    """What the package requires by its own metadata, each against its range; torchvision against torch besides."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("compress-distill") or []]
    core = [check(one) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [mated(part) if part.name == "torchvision" else part for part in core]


def check(wanted: Requirement) -> Part:
    found = version(wanted.name)
    part = Part(wanted.name, found, str(wanted.specifier), f"pip install '{wanted}'")
    if found is None:
        return replace(part, problem="not installed")
    if not wanted.specifier.contains(found, prereleases=True):
        return replace(part, problem=f"found {found}, expected {wanted.specifier}")
    return part


def mated(part: Part) -> Part:
    """The ordinary torchvision does not import beside a CPU-only build of torch."""
    torch = version("torch")
    if part.problem is not None or part.version is None or torch is None:
        return part
    if "+cpu" in torch and "+cpu" not in part.version:
        problem = f"torch {torch} is a CPU-only build, beside which torchvision {part.version} does not import"
        return replace(part, problem=problem, get="pip install --force-reinstall torch torchvision")
    return part


def optional_parts() -> list[Part]:
    parts = [Part(name, version(name), purpose, get) for name, (purpose, get) in OPTIONAL.items()]
    return [part if part.version else replace(part, problem="not installed") for part in parts]


def imported(parts: list[Part]) -> list[Part]:
    """The parts that look well, each imported for a trial."""
    well = {part.name: IMPORTS.get(part.name, part.name) for part in parts if part.problem is None}
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", TRIAL, *well.values()], capture_output=True, text=True)
    if run.returncode != 0:
        what = f"importing the core parts together ends the interpreter (exit code {run.returncode})"
        return [replace(part, problem=what) if part.name == "torch" else part for part in parts]
    failed: Mapping[str, str] = json.loads(run.stdout.splitlines()[-1])
    return [
        replace(part, problem=f"does not import ({failed[well[part.name]]})") if well.get(part.name) in failed else part
        for part in parts
    ]


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def bf16(instructions: list[str]) -> str:
    """How fast bfloat16 is on this processor: "fast" (matrix unit), "native" (vectors), or "emulated"."""
    if "amx_bf16" in instructions:
        return "fast"
    return "native" if {"avx512_bf16", "bf16"} & set(instructions) else "emulated"


def hardware(machine: Mapping[str, Any]) -> list[str]:
    says = {
        "fast": "fast, by AMX: --precision auto takes it",
        "native": "native, without a matrix unit",
        "emulated": "emulated: --precision auto stays with float32",
    }
    memory = machine["memory_bytes"]
    gpus = [
        f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, driver {gpu['driver']}, sm {gpu['compute_capability']}"
        for gpu in machine["gpus"]
    ]  # fmt: skip
    return [
        f"system      {machine['system']}, Python {machine['versions']['python']}",
        f"processor   {machine['cpu']}, {machine['cores']} cores",
        f"            {' '.join(machine['instructions']) or 'no vector instructions known'}",
        f"bf16        {says[bf16(machine['instructions'])]}",
        f"memory      {'unknown' if memory is None else f'{memory / 2**30:.1f} GiB'}",
        *(f"gpu         {text}" for text in gpus or ["none that nvidia-smi sees"]),
    ]


def parts_table(parts: list[Part]) -> str:
    rows = [[part.name, part.version or "missing", part.wanted, part.problem or "ok"] for part in parts]
    return format_table(rows, ["core part", "version", "expected", "state"])


def extras_table(parts: list[Part]) -> str:
    rows = [[part.name, part.version or "missing", part.wanted, "ok" if part.version else part.get] for part in parts]
    return format_table(rows, ["optional part", "version", "for", "state, or how to get it"])
