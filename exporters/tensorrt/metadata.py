"""NAME.engine.json, the metadata of an engine, and the check whether an engine fits this machine.

An engine cannot be inspected without its library, a driver and the GPU that it is for. Its metadata can: an engine that
does not fit is refused with a reason before the library reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import types
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from compress.errors import first_line
from compress.files import add_hash
from exporters.cuda import NO_GPU, Gpu
from exporters.errors import RunnerError, require_file
from exporters.packages import parse_version
from exporters.tensorrt.libraries import LIBRARY_NAMES, EngineKind, capture_messages

FORMAT = 2
#: key of the hash of all other content
HASH = "metadata_sha256"
#: bytes of a metadata file; elements of a batch of images
MAX_BYTES, MAX_ELEMENTS = 1 << 24, 2**31 - 1
SUFFIX = ".json"  #: appended to the engine's name
#: type of an input or output, with torch's names
TensorType = Literal["float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]
HardwareCompatibility = Literal["ampere+", "same-capability"]
#: GPUs that run an engine with hardware compatibility
COMPATIBLE_GPUS = {"ampere+": "GPUs of Ampere and newer", "same-capability": "GPUs of compute capability {}"}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of an input or output."""

    shape: tuple[int | str, ...]  #: an open axis has a name
    type: TensorType


@dataclass(frozen=True)
class ShapeProfile:
    """Range of image shapes, [n, 3, h, w] or [n, h, w, 3] for uint8; each axis varies independently."""

    min: tuple[int, int, int, int]
    opt: tuple[int, int, int, int]  #: shape that the engine is optimized for
    max: tuple[int, int, int, int]


@dataclass(frozen=True)
class OnnxSource:
    """The ONNX file that an engine was built from."""

    name: str
    sha256: str


@dataclass(frozen=True)
class EngineMetadata:
    """Content of NAME.engine.json."""

    format: int
    kind: EngineKind
    version: str  #: of the library that built the engine
    versions: dict[str, str]  #: of the other packages involved
    platform: str  #: such as "Linux x86_64"
    gpu: Gpu | None  #: GPU that the engine was built on; None without one
    compute_capabilities: tuple[str, ...]  #: that it was built for; "8.0+" means 8.0 and later
    profiles: tuple[ShapeProfile, ...]
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    sha256: str  #: of the engine
    source: OnnxSource
    metadata: dict[str, str]  #: of the ONNX file
    precision: str  #: "fp32", "fp16", "bf16" or "int8"
    options: dict[str, Any]  #: build options

    def __post_init__(self) -> None:
        parse_version(self.version)


def current_platform() -> str:
    return f"{platform.system()} {platform.machine()}"


def metadata_path(engine: Path) -> Path:
    """Return the path of an engine's metadata."""
    return engine.with_name(engine.name + SUFFIX)


def write_metadata(engine: Path, metadata: EngineMetadata) -> None:
    content = add_hash(asdict(metadata), HASH)
    metadata_path(engine).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_engine(path: Path) -> tuple[bytes, EngineMetadata]:
    """Read an engine and its metadata.

    Raises:
        MissingFileError: There is no such file.
        RunnerError: One of the files is damaged, or they do not belong together.
    """
    require_file(path, "an .engine file")
    try:
        metadata = read_metadata(path)
        engine = path.read_bytes()
    except OSError as error:
        raise RunnerError(f"{path}: cannot be read ({error.strerror}).") from error
    digest = hashlib.sha256(engine).hexdigest()
    if digest != metadata.sha256:
        raise RunnerError(
            f"{path}: found {len(engine)} bytes of sha256 {digest[:12]}…, expected {metadata.sha256[:12]}…; the engine "
            "is truncated, damaged or not the one that its metadata describe: export it again."
        )
    return engine, metadata


def read_metadata(engine: Path) -> EngineMetadata:
    """Read the metadata beside an engine.

    Raises:
        RunnerError: They are missing or damaged, or do not describe a model with one image input.
    """
    path = metadata_path(engine)
    if not path.is_file():
        raise RunnerError(f"{engine}: its metadata, {path.name}, are missing; copy both files, or export it again.")
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(MAX_BYTES))
        if isinstance(content, dict) and HASH in content and add_hash(content, HASH) != content:
            raise ValueError(f"its {HASH} is not that of its content, so it was edited or damaged")
        metadata: EngineMetadata = parse_json(content, EngineMetadata)
        for profile in metadata.profiles:
            check_profile(profile)
    except (ValueError, RecursionError) as error:
        raise RunnerError(
            f"{path}: no metadata of an engine ({first_line(error)}); export the engine again."
        ) from error
    if metadata.format != FORMAT or len(metadata.inputs) != 1 or not metadata.profiles or not metadata.outputs:
        raise RunnerError(
            f"{path}: found format {metadata.format} with {len(metadata.inputs)} inputs, {len(metadata.outputs)} "
            f"outputs and {len(metadata.profiles)} profiles, expected format {FORMAT} with one image input; export the "
            "engine again."
        )
    return metadata


def check_profile(profile: ShapeProfile) -> None:
    """Raise ValueError for ranges that do not increase, or whose images no memory could hold."""
    for low, best, high in zip(profile.min, profile.opt, profile.max, strict=True):
        if not 1 <= low <= best <= high <= MAX_ELEMENTS:
            raise ValueError(f"profiles: found {low}:{best}:{high}, expected an increasing range from 1")
    if math.prod(profile.min) > MAX_ELEMENTS:
        raise ValueError(f"profiles: found images {list(profile.min)}, expected at most {MAX_ELEMENTS} elements")


def parse_json(value: Any, kind: Any, key: str = "") -> Any:
    """Convert parsed JSON to a type made of dataclasses, tuples, dicts, literals, unions and plain types.

    Raises:
        ValueError: The value has another type; the message begins with its key.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in arguments) or (isinstance(kind, type) and type(value) is kind):
        return value
    if is_dataclass(kind) and isinstance(value, dict):
        types_by_name = get_type_hints(kind)
        if missing := [field.name for field in fields(kind) if field.name not in value]:
            raise ValueError(f"{key}{missing[0]}: missing")
        values = {name: parse_json(value[name], types_by_name[name], f"{key}{name}.") for name in types_by_name}
        return kind(**values)  # pyright: ignore[reportCallIssue]
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                parse_json(x, kind, f"{key}{i}.") for i, (x, kind) in enumerate(zip(value, kinds, strict=True))
            )
    if origin is dict and isinstance(value, dict):
        return {name: parse_json(x, arguments[1], f"{key}{name}.") for name, x in value.items()}
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return parse_json(value, option, key)
            except ValueError:
                continue
    raise ValueError(f"{key.rstrip('.')}: found {json.dumps(value)[:60]}")


def incompatibility_reason(metadata: EngineMetadata, engine: bytes, trt: Any, gpu: Gpu | None) -> str | None:
    """Return why an engine does not run with the library `trt` on this GPU, and what to do; None if it should run."""
    name, built, installed = LIBRARY_NAMES[metadata.kind], metadata.version, str(trt.__version__)
    is_newer = bool(metadata.options.get("version_compatible")) and parse_version(installed) >= parse_version(built)
    if installed != built and not is_newer:
        return f"built by {name} {built}, found {name} {installed}; export it again here, or install {name} {built}"
    if gpu is None:
        return f"an engine needs {NO_GPU}; run the ONNX file instead, or run the engine on a machine with a GPU"
    if metadata.kind == "tensorrt":
        return gpu_mismatch(metadata, gpu)
    return validity_error(metadata, engine, trt, gpu)


def gpu_mismatch(metadata: EngineMetadata, gpu: Gpu) -> str | None:
    """Compare system and GPU: without hardware compatibility, TensorRT's engines run only where they were built."""
    built, level = metadata.gpu, metadata.options.get("hardware_compatible")
    if metadata.platform != current_platform():
        return f"built on {metadata.platform}, found {current_platform()}; export it again here"
    if built is None:
        return None
    if level == "ampere+":
        is_compatible = parse_version(gpu.capability) >= (8, 0)
    else:
        is_compatible = gpu.capability == built.capability and (level == "same-capability" or gpu.name == built.name)
    if is_compatible:
        return None
    expected = COMPATIBLE_GPUS.get(str(level), f"{built.name} ({{}})").format(built.capability)
    return f"built for {expected}, found {gpu.name} ({gpu.capability}); export it again here"


def validity_error(metadata: EngineMetadata, engine: bytes, trt: Any, gpu: Gpu) -> str | None:
    """Return TensorRT-RTX's own verdict on the header of an engine."""
    with capture_messages(trt) as (logger, messages):
        validity, diagnostics = trt.Runtime(logger).get_engine_validity(engine)
    if validity != trt.EngineValidity.INVALID:
        return None
    flags = trt.EngineInvalidityDiagnostics.__members__.items()
    reasons = [name.lower().replace("_", " ") for name, flag in flags if int(diagnostics) & int(flag)]
    return (
        f"built for compute capabilities {', '.join(metadata.compute_capabilities)}, found {gpu.name} "
        f"({gpu.capability}), which TensorRT-RTX cannot run ({'; '.join(reasons or messages.errors) or 'no reason'});"
        " export it again for this GPU"
    )
