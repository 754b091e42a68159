"""How an engine is built: options in the words of TensorRT or TensorRT-RTX, or a refusal where it lacks them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from exporters.failure import ExportError
from exporters.nvidia import NAMES, Gpu, Kind, hearing, no_gpu
from exporters.publishing import drafting, publish
from exporters.sidecar import HardwareCompatible

LEVELS = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
HIGHEST_LEVEL = 5
CURRENT = "current"
LATER = "8.0+"  #: what TensorRT-RTX builds for without being told: 8.0 and what came later
#: kind -> option that it does not have -> why
LACKS: dict[str, dict[str, str]] = {
    "tensorrt": {
        "compute_capabilities": "builds for the GPU that is here; with hardware_compatible it builds for others too"
    },
    "tensorrt-rtx": {
        "timing_cache": "times nothing while it builds, so there is nothing to cache",
        "version_compatible": "runs an engine in the version that built it, and in no other",
        "hardware_compatible": "builds for all GPUs from compute capability 8.0 on; compute_capabilities names others",
        "optimisation_level": "builds the same engine at every level",
    },
}
CacheUse = Literal["new", "read", "replaced"]


@dataclass(frozen=True)
class Options:
    """How an engine is built. What a kind does not have is refused, never passed over."""

    workspace_bytes: int | None = None  #: most GPU memory that a layer may use beside its tensors; None: all there is
    timing_cache: Path | None = None  #: what was timed before: read if it is there, and written (TensorRT)
    version_compatible: bool = False  #: runs in later versions too (TensorRT)
    hardware_compatible: HardwareCompatible | None = None  #: on which other GPUs it runs (TensorRT)
    compute_capabilities: tuple[str, ...] = ()  #: to build for, as "7.5", or "current"; none: 8.0 and later (RTX)
    optimisation_level: int | None = None  #: 0, soon built, to 5, built for long; None: the library's (TensorRT)
    tf32: bool = False  #: whether float32 may be multiplied with 10 bits: as fast as fp16, and hardly more exact


def check(trt: Any, kind: Kind, options: Options, gpu: Gpu | None) -> None:
    """Raises ExportError for an option that the library does not have, or that has no meaning."""
    for field in fields(Options):
        why = LACKS[kind].get(field.name)
        if why is not None and getattr(options, field.name) != field.default:
            raise ExportError(f"{field.name}: {NAMES[kind]} {why}; leave it out.")
    if options.workspace_bytes is not None and options.workspace_bytes < 1:
        raise ExportError(f"workspace_bytes: found {options.workspace_bytes}, expected a number of bytes above 0.")
    if options.optimisation_level is not None and not 0 <= options.optimisation_level <= HIGHEST_LEVEL:
        raise ExportError(f"optimisation_level: found {options.optimisation_level}, expected 0 to {HIGHEST_LEVEL}.")
    if gpu is None and kind == "tensorrt":
        raise ExportError(
            f"TensorRT builds an engine on the GPU that it is for: it needs {no_gpu()}; "
            "take tensorrt-rtx, which does not."
        )
    if gpu is None and CURRENT in options.compute_capabilities:
        raise ExportError(f'compute_capabilities "{CURRENT}" needs {no_gpu()}; name the capabilities instead.')
    if options.compute_capabilities:
        check_capabilities(trt, options.compute_capabilities)


def check_capabilities(trt: Any, wanted: tuple[str, ...]) -> None:
    known = capabilities(trt)
    for one in wanted:
        if one not in known:
            raise ExportError(f"compute_capabilities: found {one!r}, expected some of {', '.join(known)}.")
    if len(set(wanted)) < len(wanted) or (CURRENT in wanted and len(wanted) > 1):
        raise ExportError(
            f'compute_capabilities: found {", ".join(wanted)}, expected each once, and "{CURRENT}" by itself.'
        )


def capabilities(trt: Any) -> dict[str, Any]:
    """Compute capability, as "8.9" -> what the library calls it."""
    members = trt.ComputeCapability.__members__
    numbered = {f"{name[2:-1]}.{name[-1]}": one for name, one in members.items() if name.startswith("SM")}
    return {**numbered, CURRENT: members["CURRENT"]}


def targets(kind: Kind, options: Options, gpu: Gpu | None) -> tuple[str, ...]:
    """The compute capabilities that an engine is built for."""
    here = () if gpu is None else (gpu.capability,)
    if kind == "tensorrt":
        return (LATER,) if options.hardware_compatible == "ampere+" else here
    return here if options.compute_capabilities == (CURRENT,) else options.compute_capabilities or (LATER,)


def configure(trt: Any, config: Any, options: Options) -> None:
    """Hand the options on to the library. Raises ExportError for one that this version does not have."""
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimisation_level is not None:
        config.builder_optimization_level = options.optimisation_level
    if options.version_compatible:
        config.set_flag(member(trt, "BuilderFlag", "VERSION_COMPATIBLE", "version_compatible"))
    if options.hardware_compatible is not None:
        level = LEVELS[options.hardware_compatible]
        config.hardware_compatibility_level = member(trt, "HardwareCompatibilityLevel", level, "hardware_compatible")
    if options.compute_capabilities:
        known = capabilities(trt)
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, one in enumerate(options.compute_capabilities):
            if not config.set_compute_capability(known[one], index):
                raise ExportError(f"compute_capabilities: {trt.__version__} does not build for {one}; leave it out.")


def member(trt: Any, enum: str, name: str, option: str) -> Any:
    found = getattr(getattr(trt, enum, None), name, None)
    if found is None:
        raise ExportError(
            f"{option}: TensorRT {trt.__version__} has no {enum}.{name}; take a newer one, or leave it out."
        )
    return found


def use_cache(config: Any, file: Path, trt: Any) -> str:
    """Give the builder what was timed before. How it went: "new", "read", or "replaced" and why."""
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise ExportError(f"{file}: the timing cache cannot be read ({error.strerror}); name another file.") from error
    with hearing(trt) as (_, said):
        cache = config.create_timing_cache(content)
        fits = cache is not None and config.set_timing_cache(cache, False)
    complaints = [*said.errors, *said.warnings]
    if not content or (fits and not complaints):
        return "read" if content else "new"
    config.set_timing_cache(config.create_timing_cache(b""), False)
    why = "; ".join(complaints) or "it was not accepted"
    return f"replaced: {file.name} was of another version or GPU, or damaged ({why})"


def keep_cache(config: Any, file: Path) -> None:
    """Write what was timed, all of it or nothing."""
    with drafting(file) as draft:
        draft.write_bytes(bytes(config.get_timing_cache().serialize()))
        publish(draft, file)
