"""One exported file: the graph in its precision, compiled, compared with PyTorch, and only then named."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from compress.files import sha256
from exporters.cpu import SAFE_WEIGHT, has_exact_int8
from exporters.divergence import first_divergent_operator, max_magnitudes
from exporters.errors import ExportError, RejectedError, RunnerError
from exporters.onnx_export import ReferenceModel
from exporters.onnx_validation import read_model, seal_model
from exporters.openvino_export import convert_to_openvino
from exporters.output import commit_output, temporary_output, total_size
from exporters.parity import TOLERANCES, Parity, Tolerance
from exporters.quantization import modelopt, static
from exporters.quantization.float16 import Float16Result, Float16Session, LowPrecision, convert_float16
from exporters.quantization.mixed_precision import MixedPrecisionResult, quantize_within_budget
from exporters.quantization.saturation import list_unsafe_weights
from exporters.quantization.static import Calibrator, QuantizationResult, Quantizer, Target
from exporters.runtimes import Runner, Runtime, load
from exporters.seal import seal_file
from exporters.tensorrt.build import build_engine
from exporters.tensorrt.options import BuildOptions, ShapeRanges
from exporters.torch_exporters import save_model

Format = Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine", "tensorrt-rtx": ".engine",
}  # fmt: skip
#: format -> runtime that int8 is optimized for by default
TARGETS: dict[Format, Target] = {
    "onnx": "ort-cpu", "openvino": "openvino", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx",
}  # fmt: skip
#: target -> runtime of the graph before it is compiled, if it is not ONNX Runtime
TARGET_RUNTIMES: dict[Target, Runtime] = {"openvino": "openvino", "openvino-vnni": "openvino"}
#: targets whose files compute the same on every CPU
PORTABLE_TARGETS: tuple[Target, ...] = ("ort-cpu", "openvino")
#: targets that require VNNI -> the same target for every CPU
VNNI_TARGETS: dict[Target, Target] = {"ort-cpu-vnni": "ort-cpu", "openvino-vnni": "openvino"}
BF16_UNVERIFIED = (
    "ONNX Runtime has bf16 convolutions on CUDA only; the same graph was compared with every operator's output rounded "
    "to bf16"
)
GRAPH_VERIFIED = "the graph that it was built from was compared"
NO_DIVERGENCE = "no single operator differs by a tenth: the errors add up"
#: passes every output
ANY_TOLERANCE = Tolerance(None, 1.0)


@dataclass(frozen=True)
class Int8Options:
    """Options of int8 quantization."""

    #: returns the calibration batches, as the file takes them, anew at each call
    calibration: Callable[[], Iterable[NDArray[Any]]]
    target: Target | None = None  #: runtime that int8 is optimized for; None: by format
    calibrator: Calibrator = "auto"  #: method that finds the ranges of activations
    quantizer: Quantizer = "onnxruntime"  #: "onnxruntime", or "modelopt" for NVIDIA's runtimes
    #: compares the fp32 file with the verified draft in the given runtime, and raises RejectedError to reject the
    #: draft; called only if the target is the runtime of the format
    accept: Callable[[Path, Path, Runtime], None] | None = None


@dataclass(frozen=True)
class AccuracyBudget:
    """Largest loss of a precision below fp32. As few layers as necessary stay in fp32."""

    max_drop: float  #: largest loss of `score`, in [0, 1]
    score: Callable[[Runner], float] | None = None  #: returns a value in [0, 1]; None: agreement with PyTorch


@dataclass(frozen=True)
class ExportSettings:
    """Options of an export besides format and precision."""

    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: TOLERANCES)  #: by precision
    int8: Int8Options | None = None  #: required for int8
    budget: AccuracyBudget | None = None  #: None: the tolerance alone decides
    shapes: ShapeRanges | None = None  #: image shapes of engines
    options: BuildOptions = field(default_factory=BuildOptions)  #: build options of engines


@dataclass(frozen=True)
class ExportResult:
    """A verified file."""

    path: str  #: of the file
    format: Format  #: of the file
    precision: Precision  #: of the graph
    bytes: int  #: size, with companion files
    sha256: str  #: of the file
    parity: Parity  #: differences from PyTorch
    tolerance: Tolerance  #: largest allowed differences
    verified_in: str  #: runtime that computed the compared outputs, with its precision if that is another
    unverified: str | None  #: why only the graph was run, not the file itself; None: the file was run
    real_images: bool  #: whether it was compared on images that were given, not on noise
    batch_sizes: tuple[int, ...]  #: batch sizes of the comparison
    details: dict[str, Any]  #: of the precision (operators in fp32, calibration) and of the format (versions, profiles)


def export_artifact(
    reference: ReferenceModel,
    base: Path,
    path: Path,
    format: Format,
    precision: Precision,
    settings: ExportSettings | None = None,
) -> ExportResult:
    """Write one format and precision of a verified fp32 graph.

    The graph is converted to `precision`, run and compared with PyTorch. Then it is compiled. The compiled file is run
    and compared as well if its runtime is available.

    Args:
        reference: The network and its outputs.
        base: The verified fp32 graph.
        path: The file to write.
        format: Format of the file.
        precision: Precision of the graph.
        settings: Tolerances, int8 options, accuracy budget, and build options of engines.

    Raises:
        RejectedError: The outputs differ too much; the message names the first operator that diverges.
        ExportError: The file cannot be built. What was at `path` is unchanged in both cases.
    """
    settings = settings or ExportSettings()
    with temporary_output(path) as draft, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        graph = draft if format == "onnx" else Path(directory) / f"{path.stem}.onnx"
        try:
            result = build_artifact(reference, base, graph, draft, format, precision, settings)
        except (ExportError, RunnerError) as error:
            reason = str(error)
            for inner in (graph, draft, base, base.name):  # temporary paths mean nothing to the user
                reason = reason.removeprefix(f"{inner}: ")
            if isinstance(error, RejectedError):
                raise RejectedError(f"{path}: {precision} rejected: {reason}") from error
            raise ExportError(f"{path}: not written: {reason}") from error
        commit_output(draft, path)
    return replace(result, path=str(path))


def build_artifact(
    reference: ReferenceModel,
    base: Path,
    graph: Path,
    draft: Path,
    format: Format,
    precision: Precision,
    settings: ExportSettings,
) -> ExportResult:
    """Write and verify `draft`. `graph` is the ONNX file that it is compiled from, or the draft itself."""
    tolerance, unverified = settings.tolerances[precision], None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        details, runnable = convert_precision(reference, base, graph, format, precision, settings, Path(directory))
        if format == "openvino":
            details["openvino"] = asdict(convert_to_openvino(graph, draft))
            parity, verified_in = verify_or_locate(reference, base, runnable, draft, "openvino", tolerance)
        else:
            parity, verified_in = verify_or_locate(reference, base, runnable, runnable, "onnxruntime", tolerance)
            if precision == "bf16":
                verified_in, unverified = f"{verified_in}, rounding to bf16", BF16_UNVERIFIED
        if format in ("tensorrt", "tensorrt-rtx"):
            built = build_engine(
                graph, draft, kind=format, shapes=settings.shapes or ShapeRanges(), options=settings.options
            )
            details[format] = asdict(built)
            if built.incompatibility is None:
                parity, verified_in = verify_or_locate(reference, base, runnable, draft, format, tolerance)
                unverified = None
            else:
                unverified = f"{built.incompatibility}; {GRAPH_VERIFIED}"
    if precision == "int8" and unverified is None:
        run_acceptance_test(base, draft, format, settings.int8)
    if format == "openvino":
        seal_file(draft, [draft.with_suffix(".bin")])
    elif format == "onnx":
        seal_model(draft)
    return ExportResult(
        path=str(draft),
        format=format,
        precision=precision,
        bytes=total_size(draft),
        sha256=sha256(draft),
        parity=parity,
        tolerance=tolerance,
        verified_in=verified_in,
        unverified=unverified,
        real_images=reference.has_real_images,
        batch_sizes=reference.batch_sizes,
        details=details,
    )


def run_acceptance_test(base: Path, draft: Path, format: Format, options: Int8Options | None) -> None:
    """Run the user's test on an int8 draft, unless it is for another runtime than that of the format."""
    if options is None or options.accept is None or format.startswith("tensorrt"):
        return
    target = options.target or TARGETS[format]
    if VNNI_TARGETS.get(target, target) == TARGETS[format]:
        options.accept(base, draft, "openvino" if format == "openvino" else "onnxruntime")


def convert_precision(
    reference: ReferenceModel,
    base: Path,
    graph: Path,
    format: Format,
    precision: Precision,
    settings: ExportSettings,
    directory: Path,
) -> tuple[dict[str, Any], Path]:
    """Write `graph` in its precision. Return details of the conversion, and the file that ONNX Runtime runs."""
    if precision == "fp32":
        save_model(onnx.load(base), graph)
        return {}, graph
    if precision != "int8":
        return convert_to_float16(reference, base, graph, precision, settings, directory)
    if settings.int8 is None:
        raise ExportError("int8: found no calibration data; give some with --calibration.")
    options, budget = settings.int8, settings.budget
    target = options.target or TARGETS[format]
    if target in VNNI_TARGETS and not has_exact_int8():
        raise ExportError(
            f"target {target}: this CPU has no VNNI and cannot verify the file; export it on a CPU with VNNI, or "
            f"use {VNNI_TARGETS[target]}."
        )
    calibrated_session = modelopt.calibrated_session if options.quantizer == "modelopt" else static.calibrated_session
    with calibrated_session(base, options.calibration, target=target, calibrator=options.calibrator) as session:
        if budget is None:
            result: QuantizationResult | MixedPrecisionResult = session.write(graph)
        else:
            score = create_scorer(reference, budget, TARGET_RUNTIMES.get(target))
            result = quantize_within_budget(session, graph, options.calibration, score, score(base), budget.max_drop)
    if target in PORTABLE_TARGETS:
        require_no_saturation(graph)
    return {"int8": asdict(result)}, graph


def require_no_saturation(graph: Path) -> None:
    """Raise ExportError for a file that can compute other outputs on a CPU without VNNI."""
    unsafe = list_unsafe_weights(read_model(graph), graph.parent)
    if unsafe:
        raise ExportError(
            f"found {len(unsafe)} int8 weights beyond {SAFE_WEIGHT} in magnitude ({unsafe[0]} first), so sums saturate "
            "on CPUs without VNNI."
        )


def convert_to_float16(
    reference: ReferenceModel,
    base: Path,
    graph: Path,
    precision: LowPrecision,
    settings: ExportSettings,
    directory: Path,
) -> tuple[dict[str, Any], Path]:
    """Convert as `convert_precision`. For bf16, which ONNX Runtime lacks on CPUs, a graph that rounds to bf16 runs."""
    magnitudes = max_magnitudes(base, reference.batches[0]) if precision == "fp16" else {}
    is_emulated, budget = precision == "bf16", settings.budget
    runnable = directory / "rounded.onnx" if is_emulated else graph
    if budget is None:
        result: Float16Result | MixedPrecisionResult = convert_float16(base, graph, precision, ranges=magnitudes)
        if is_emulated:
            convert_float16(base, runnable, precision, emulate=True)
    else:
        session = Float16Session(base, precision, magnitudes, emulate=is_emulated)
        score = create_scorer(reference, budget, None, settings.tolerances[precision])
        base_score = create_scorer(reference, budget, None)(base)
        result = quantize_within_budget(
            session, runnable, lambda: reference.batches, score, base_score, budget.max_drop
        )
        if is_emulated:
            convert_float16(base, graph, precision, keep=result.kept_fp32)
    return {precision: asdict(result)}, runnable


def create_scorer(
    reference: ReferenceModel, budget: AccuracyBudget, runtime: Runtime | None, tolerance: Tolerance | None = None
) -> Callable[[Path], float]:
    """Return the budget's score of a file, else its agreement with PyTorch; NaN beyond `tolerance`."""

    def score(graph: Path) -> float:
        with load(graph, runtime=runtime) as runner:
            if budget.score is not None and tolerance is None:
                return budget.score(runner)
            try:
                agreement = reference.measure_parity(runner, tolerance or ANY_TOLERANCE).top1_agreement
            except ExportError:
                return math.nan
            return agreement if budget.score is None else budget.score(runner)

    return score


def verify_or_locate(
    reference: ReferenceModel, base: Path, runnable: Path, artifact: Path, runtime: Runtime, tolerance: Tolerance
) -> tuple[Parity, str]:
    """Compare a file with PyTorch. If it differs too much, add the first divergent operator to the error."""
    try:
        return measure_parity(reference, artifact, runtime, tolerance)
    except ExportError as error:
        first = first_divergent_operator(base, runnable, reference.batches[0])
        location = f"the first divergent operator is {first}" if first else NO_DIVERGENCE
        raise type(error)(f"{error}; {location}") from error


def measure_parity(
    reference: ReferenceModel, artifact: Path, runtime: Runtime, tolerance: Tolerance
) -> tuple[Parity, str]:
    """Return the differences from PyTorch, and the runtime with its precision if that is not the graph's."""
    with load(artifact, runtime=runtime, trust_engine=True) as runner:
        parity = reference.measure_parity(runner, tolerance)
        precision = runner.metadata.get("precision", runner.precision)
        return parity, runtime if runner.precision == precision else f"{runtime}, computing in {runner.precision}"
