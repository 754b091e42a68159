"""Build options and image shapes of engines, with errors for options that a library does not have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compress.files import require_regular_file
from exporters.cuda import NO_GPU, Gpu
from exporters.errors import ExportError
from exporters.output import commit_output, temporary_output
from exporters.tensorrt.libraries import LIBRARY_NAMES, EngineKind, capture_messages
from exporters.tensorrt.metadata import HardwareCompatibility, ShapeProfile, TensorSpec

HARDWARE_LEVELS = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
MAX_OPTIMIZATION_LEVEL = 5
CURRENT = "current"
DEFAULT_CAPABILITY = "8.0+"  #: default of TensorRT-RTX: 8.0 and later
#: kind -> option that it does not have -> reason
UNSUPPORTED_OPTIONS: dict[str, dict[str, str]] = {
    "tensorrt": {
        "compute_capabilities": "builds for the GPU of this machine; hardware_compatible builds for others as well"
    },
    "tensorrt-rtx": {
        "timing_cache": "measures nothing while it builds, so there is nothing to cache",
        "version_compatible": "runs an engine only in the version that built it",
        "hardware_compatible": "builds for all GPUs from compute capability 8.0; compute_capabilities selects others",
        "optimization_level": "builds the same engine at every level",
    },
}
Size = tuple[int, int]
Range = tuple[int, int, int]


@dataclass(frozen=True)
class BuildOptions:
    """Build options of an engine. An option that a library does not have is an error, never ignored."""

    workspace_bytes: int | None = None  #: GPU memory that a layer may use besides its tensors; None: unlimited
    timing_cache: Path | None = None  #: file of earlier measurements, read if it exists, and written (TensorRT)
    version_compatible: bool = False  #: runs in later versions as well (TensorRT)
    hardware_compatible: HardwareCompatibility | None = None  #: other GPUs that it runs on (TensorRT)
    compute_capabilities: tuple[str, ...] = ()  #: "7.5", …, or "current"; empty: 8.0 and later (TensorRT-RTX)
    optimization_level: int | None = None  #: 0 (fast build) to 5 (slow build); None: library's default (TensorRT)
    tf32: bool = False  #: whether float32 products may use 10-bit mantissas: as fast as fp16, little more accurate


@dataclass(frozen=True)
class ShapeRanges:
    """Image shapes that an engine takes. Raise ExportError for ranges that do not increase.

    Example:
        >>> ShapeRanges(batch=(1, 8, 64), size=(224, 224)).size_ranges
        ((224, 224, 224), (224, 224, 224))
    """

    batch: Range = (1, 1, 1)  #: smallest, optimal and largest batch size
    #: (height, width), or smallest, optimal and largest (height, width); None: that of the file
    size: Size | tuple[Size, Size, Size] | None = None

    def __post_init__(self) -> None:
        ranges = {"batch": self.batch}
        if self.size_ranges is not None:
            ranges |= {"height": self.size_ranges[0], "width": self.size_ranges[1]}
        for name, (low, best, high) in ranges.items():
            if not 1 <= low <= best <= high:
                raise ExportError(f"{name}: found {low}:{best}:{high}, expected MIN:OPT:MAX from 1, such as 1:8:64.")

    @property
    def size_ranges(self) -> tuple[Range, Range] | None:
        """Ranges of height and width."""
        match self.size:
            case None:
                return None
            case (int(height), int(width)):
                return (height, height, height), (width, width, width)
            case (low, best, high):
                return (low[0], best[0], high[0]), (low[1], best[1], high[1])


def create_profile(source: Path, images: TensorSpec, shapes: ShapeRanges) -> ShapeProfile:
    """Combine the input shape of an ONNX file with the requested ranges.

    Raises:
        ExportError: The file fixes an axis to another size, or an open axis has no range.
    """
    height_axis = 1 if images.type == "uint8" else 2
    names = {0: "batch", height_axis: "height", height_axis + 1: "width"}
    ranges = {0: shapes.batch} | dict(enumerate(shapes.size_ranges or (), start=height_axis))
    axes: list[Range] = []
    for axis, size in enumerate(images.shape):
        name, requested = names.get(axis, "channels"), ranges.get(axis)
        if isinstance(size, int):
            if requested is not None and set(requested) != {size}:
                raise ExportError(
                    f"{source}: found {name} {size}, expected {format_range(requested)}; request {size}, or export an "
                    f"ONNX file with open {name}."
                )
            requested = (size, size, size)
        if requested is None:
            remedy = "export it with fixed channels" if name == "channels" else "give the image size or a range"
            raise ExportError(f"{source}: found open {name} without a range; {remedy}.")
        axes.append(requested)
    low, best, high = zip(*axes, strict=True)
    return ShapeProfile(low, best, high)


def format_range(values: Range) -> str:
    low, best, high = values
    return str(low) if low == high else f"{low}:{best}:{high}"


def validate_options(trt: Any, kind: EngineKind, options: BuildOptions, gpu: Gpu | None) -> None:
    """Raise ExportError for an option that is invalid or that the library does not have."""
    for field in fields(BuildOptions):
        reason = UNSUPPORTED_OPTIONS[kind].get(field.name)
        if reason is not None and getattr(options, field.name) != field.default:
            raise ExportError(f"{field.name}: {LIBRARY_NAMES[kind]} {reason}; remove it.")
    level = options.optimization_level
    if options.workspace_bytes is not None and options.workspace_bytes < 1:
        raise ExportError(f"workspace_bytes: found {options.workspace_bytes}, expected a number above 0.")
    if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
        raise ExportError(f"optimization_level: found {level}, expected 0 to {MAX_OPTIMIZATION_LEVEL}.")
    if gpu is None and kind == "tensorrt":
        raise ExportError(f"TensorRT builds an engine on its target GPU and needs {NO_GPU}; use tensorrt-rtx.")
    if gpu is None and CURRENT in options.compute_capabilities:
        raise ExportError(f'compute_capabilities "{CURRENT}" needs {NO_GPU}; name the capabilities instead.')
    if options.compute_capabilities:
        validate_capabilities(trt, options.compute_capabilities)


def validate_capabilities(trt: Any, capabilities: tuple[str, ...]) -> None:
    known = known_capabilities(trt)
    for capability in capabilities:
        if capability not in known:
            raise ExportError(f"compute_capabilities: found {capability!r}, expected some of {', '.join(known)}.")
    if len(set(capabilities)) < len(capabilities) or (CURRENT in capabilities and len(capabilities) > 1):
        raise ExportError(
            f'compute_capabilities: found {", ".join(capabilities)}, expected each once, and "{CURRENT}" alone.'
        )


def known_capabilities(trt: Any) -> dict[str, Any]:
    """Return the library's constants by compute capability, such as "8.9"."""
    members = trt.ComputeCapability.__members__
    numbered = {f"{name[2:-1]}.{name[-1]}": one for name, one in members.items() if name.startswith("SM")}
    return {**numbered, CURRENT: members["CURRENT"]}


def target_capabilities(kind: EngineKind, options: BuildOptions, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the compute capabilities that an engine is built for."""
    current = () if gpu is None else (gpu.capability,)
    if kind == "tensorrt":
        return (DEFAULT_CAPABILITY,) if options.hardware_compatible == "ampere+" else current
    if options.compute_capabilities == (CURRENT,):
        return current
    return options.compute_capabilities or (DEFAULT_CAPABILITY,)


def configure_builder(trt: Any, config: Any, options: BuildOptions) -> None:
    """Pass the options to the library. Raise ExportError for one that this version does not have."""
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(require_member(trt, "BuilderFlag", "VERSION_COMPATIBLE", "version_compatible"))
    if options.hardware_compatible is not None:
        config.hardware_compatibility_level = require_member(
            trt, "HardwareCompatibilityLevel", HARDWARE_LEVELS[options.hardware_compatible], "hardware_compatible"
        )
    if options.compute_capabilities:
        known = known_capabilities(trt)
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            if not config.set_compute_capability(known[capability], index):
                raise ExportError(f"compute_capabilities: {trt.__version__} cannot build for {capability}.")


def require_member(trt: Any, enum: str, name: str, option: str) -> Any:
    member = getattr(getattr(trt, enum, None), name, None)
    if member is None:
        raise ExportError(f"{option}: TensorRT {trt.__version__} has no {enum}.{name}; use a newer version.")
    return member


def load_timing_cache(config: Any, file: Path, trt: Any) -> str:
    """Give the builder its earlier measurements. Return "new", "read", or "replaced" with the reason."""
    try:
        content = require_regular_file(file).read_bytes() if file.exists() else b""
    except OSError as error:
        raise ExportError(f"{file}: the timing cache cannot be read ({error.strerror}); name another file.") from error
    with capture_messages(trt) as (_, messages):
        cache = config.create_timing_cache(content)
        is_accepted = cache is not None and config.set_timing_cache(cache, False)
    complaints = [*messages.errors, *messages.warnings]
    if not content or (is_accepted and not complaints):
        return "read" if content else "new"
    config.set_timing_cache(config.create_timing_cache(b""), False)
    reason = "; ".join(complaints) or "not accepted"
    return f"replaced: {file.name} was of another version or GPU, or damaged ({reason})"


def save_timing_cache(config: Any, file: Path) -> None:
    """Write the measurements atomically."""
    with temporary_output(file) as draft:
        draft.write_bytes(bytes(config.get_timing_cache().serialize()))
        commit_output(draft, file)
