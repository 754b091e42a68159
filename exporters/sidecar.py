"""What stands beside an engine, and whether the engine fits this machine.

An engine says nothing about itself that could be read without its library, a driver and the GPU that it is for. So
NAME.engine.json says it, and an engine that does not fit is refused in words before the library sees it.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version
from pydantic import TypeAdapter, ValidationError

from exporters.failure import MissingFileError, RunnerError
from exporters.nvidia import NAMES, Gpu, Kind, Numbers, hearing, no_gpu

FORMAT = 1
SUFFIX = ".json"  #: what the description's name has more than the engine's
#: of an input or output, as PyTorch calls it
Type = Literal["float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]
HardwareCompatible = Literal["ampere+", "same-capability"]
#: what an engine runs on that was built to run elsewhere too
ELSEWHERE = {"ampere+": "GPUs of Ampere and newer", "same-capability": "GPUs of compute capability {}"}


@dataclass(frozen=True)
class Port:
    """An input or output."""

    shape: tuple[int | str, ...]  #: open axes by name
    type: Type


@dataclass(frozen=True)
class Profile:
    """Shapes of the images that an engine takes, each axis for itself: [n, 3, h, w], or [n, h, w, 3] of uint8."""

    least: tuple[int, int, int, int]
    best: tuple[int, int, int, int]  #: that it is fastest for
    most: tuple[int, int, int, int]


@dataclass(frozen=True)
class Source:
    """The ONNX file that an engine was built from."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Description:
    """What stands beside an engine."""

    format: int
    kind: Kind
    version: Numbers  #: of the library that built it
    versions: dict[str, str]  #: of what else took part
    platform: str  #: "Linux x86_64"
    gpu: Gpu | None  #: that it was built on; None without one
    compute_capabilities: tuple[str, ...]  #: that it was built for; "8.0+": that and what came later
    profiles: tuple[Profile, ...]
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    sha256: str  #: of the engine
    source: Source
    metadata: dict[str, str]  #: of the ONNX file
    precision: str  #: "fp32", "fp16", "bf16" or "int8"
    options: dict[str, Any]  #: that it was built with


DESCRIPTION = TypeAdapter(Description)


def platform_here() -> str:
    return f"{platform.system()} {platform.machine()}"


def description_of(engine: Path) -> Path:
    """Where the description of an engine stands."""
    return engine.with_name(engine.name + SUFFIX)


def write_description(engine: Path, description: Description) -> None:
    description_of(engine).write_bytes(DESCRIPTION.dump_json(description, indent=2) + b"\n")


def read_engine(path: Path) -> tuple[bytes, Description]:
    """An engine and its description. Raises RunnerError where either is damaged, or they do not belong together."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected an .engine file.")
    try:
        description = read_description(path)
        engine = path.read_bytes()
    except OSError as error:
        raise RunnerError(f"{path}: cannot be read ({error.strerror}).") from error
    found = hashlib.sha256(engine).hexdigest()
    if found != description.sha256:
        raise RunnerError(
            f"{path}: found {len(engine)} bytes of sha256 {found[:12]}…, expected {description.sha256[:12]}…; the "
            "engine is truncated, damaged or another than its description is of: export it again."
        )
    return engine, description


def read_description(engine: Path) -> Description:
    """What stands beside an engine. Raises RunnerError where there is nothing, or no description of one image input."""
    path = description_of(engine)
    if not path.is_file():
        raise RunnerError(
            f"{engine}: {path.name} is not beside it, which says what the engine is for; copy both, or export it again."
        )
    try:
        found = DESCRIPTION.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise RunnerError(f"{path}: it does not describe an engine ({what}); export the engine again.") from error
    if found.format != FORMAT or len(found.inputs) != 1 or not found.profiles or not found.outputs:
        raise RunnerError(
            f"{path}: found format {found.format} with {len(found.inputs)} inputs and {len(found.outputs)} outputs, "
            f"expected format {FORMAT} with one input of images; export the engine again."
        )
    return found


def obstacle(description: Description, engine: bytes, trt: Any, gpu: Gpu | None) -> str | None:
    """Why an engine does not run with the library `trt` on this GPU, and what to do; None if nothing is against it."""
    name, built, installed = NAMES[description.kind], description.version, str(trt.__version__)
    newer = bool(description.options.get("version_compatible")) and Version(installed) >= Version(built)
    if installed != built and not newer:
        return f"built by {name} {built}, found {name} {installed}; export it again here, or install {name} {built}"
    if gpu is None:
        return f"an engine needs {no_gpu()}; run its ONNX file instead, or the engine on such a machine"
    if description.kind == "tensorrt":
        return elsewhere(description, gpu)
    return invalid(description, engine, trt, gpu)


def elsewhere(description: Description, gpu: Gpu) -> str | None:
    """TensorRT's engines are for the GPU and the system that they were built on, unless they were built otherwise."""
    built, level = description.gpu, description.options.get("hardware_compatible")
    if description.platform != platform_here():
        return f"built on {description.platform}, found {platform_here()}; export it again here"
    if built is None:
        return None
    if level == "ampere+":
        fits = Version(gpu.capability) >= Version("8.0")
    else:
        fits = gpu.capability == built.capability and (level == "same-capability" or gpu.name == built.name)
    if fits:
        return None
    wanted = ELSEWHERE.get(str(level), f"{built.name} ({{}})").format(built.capability)
    return f"built for {wanted}, found {gpu.name} ({gpu.capability}); export it again here"


def invalid(description: Description, engine: bytes, trt: Any, gpu: Gpu) -> str | None:
    """What TensorRT-RTX itself finds in an engine's first bytes."""
    with hearing(trt) as (logger, said):
        validity, reasons = trt.Runtime(logger).get_engine_validity(engine)
    if validity != trt.EngineValidity.INVALID:
        return None
    flags = trt.EngineInvalidityDiagnostics.__members__.items()
    found = [name.lower().replace("_", " ") for name, flag in flags if int(reasons) & int(flag)] or said.errors
    return (
        f"built for compute capabilities {', '.join(description.compute_capabilities)}, found {gpu.name} "
        f"({gpu.capability}), where TensorRT-RTX cannot run it ({'; '.join(found) or 'it gives no reason'}); export it "
        "again for this GPU"
    )
