"""One artefact for one target: the graph in its precision, compiled, compared with PyTorch, and only then named."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from exporters import int8, modelopt
from exporters.bisection import first_departure, ranges
from exporters.budget import Budgeted, within_budget
from exporters.comparison import TOLERANCES, Tolerance
from exporters.failure import ExportError, RejectedError, RunnerError
from exporters.graph import write
from exporters.int8 import Calibrator, Quantised, Quantizer, Target
from exporters.onnx import Question
from exporters.openvino import convert
from exporters.parity import Parity
from exporters.precision import Low, Typed, Typing, retype
from exporters.publishing import drafting, publish, sha256, size_of
from exporters.reading import read_model
from exporters.runner import Runner
from exporters.runtime import Runtime, load
from exporters.saturation import SAFE_WEIGHT, has_exact_int8, list_unsafe_weights
from exporters.tensorrt import Options, Shapes, build

Format = Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine", "tensorrt-rtx": ".engine"}
TARGETS: dict[Format, Target] = {
    "onnx": "ort-cpu", "openvino": "openvino", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx",
}  # fmt: skip
#: where the graph of a target is run before it is compiled
RUNTIMES: dict[Target, Runtime] = {"openvino": "openvino", "openvino-vnni": "openvino"}
#: targets whose files compute the same on every processor
PORTABLE: tuple[Target, ...] = ("ort-cpu", "openvino")
#: targets for processors with VNNI only -> the same for every processor
VNNI: dict[Target, Target] = {"ort-cpu-vnni": "ort-cpu", "openvino-vnni": "openvino"}
NO_BF16 = (
    "ONNX Runtime has no bf16 convolutions on the CPU, CUDA's has; compared was the same graph rounding to bf16 after "
    "every operator"
)

#: answers that are as far from PyTorch's as they like
ANY = Tolerance(None, 1.0)
ADDS_UP = "no single operator departs by a tenth: the error adds up"
OF_THE_GRAPH = "the graph that it was built from is what was compared"


@dataclass(frozen=True)
class Int8:
    """How weights and activations become bytes."""

    calibration: Callable[[], Iterable[NDArray[Any]]]  #: batches of images as the file takes them, each call anew
    target: Target | None = None  #: None: what the format is for
    calibrator: Calibrator = "auto"
    quantizer: Quantizer = "onnxruntime"
    #: looks at the fp32 file and the verified draft, which both run in the runtime named, and raises RejectedError to
    #: reject the draft; asked where what the bytes are for is here
    accept: Callable[[Path, Path, Runtime], None] | None = None


@dataclass(frozen=True)
class Budget:
    """What a precision below fp32 may lose; as few layers as that takes stay in fp32."""

    max_drop: float  #: greatest loss of `score`, a share in [0, 1]
    score: Callable[[Runner], float] | None = None  #: in [0, 1]; None: agreement with PyTorch's decisions


@dataclass(frozen=True)
class Settings:
    """What is asked of artefacts beside their format and precision."""

    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: TOLERANCES)  #: by precision
    int8: Int8 | None = None
    budget: Budget | None = None  #: None: whatever the tolerance allows
    shapes: Shapes | None = None  #: of engines
    options: Options = field(default_factory=Options)  #: of engines


@dataclass(frozen=True)
class Artefact:
    """What was written, how far it is from PyTorch, and where that was seen."""

    path: str
    format: Format
    precision: Precision
    bytes: int  #: with what stands beside it
    sha256: str
    parity: Parity
    tolerance: Tolerance
    verified_in: str  #: runtime that gave the answers compared, and in what it computed if that is another precision
    unverified: str | None  #: why the artefact itself was not run here, only the graph it was built from; None: it was
    real_images: bool
    batch_sizes: tuple[int, ...]
    details: dict[str, Any]  #: of the precision (operators kept, calibration) and of the format (versions, profiles)


def make(
    question: Question, base: Path, path: Path, format: Format, precision: Precision, settings: Settings | None = None
) -> Artefact:
    """Write the artefact of a verified float32 graph, `base`, to `path`.

    The graph is turned into `precision`, run, and compared with PyTorch; then compiled, run and compared again where
    that runtime is here. Raises ExportError, leaving what was at `path` untouched, where it answers too differently
    (with the first operator that departs), where the settings reject it, and where something to build it is missing.
    """
    settings = settings or Settings()
    with drafting(path) as draft, tempfile.TemporaryDirectory() as folder:
        graph = draft if format == "onnx" else Path(folder) / f"{path.stem}.onnx"
        try:
            found = made(question, base, graph, draft, format, precision, settings)
        except (ExportError, RunnerError) as error:
            reason = str(error)
            for inner in (graph, draft, base, base.name):  # where the user will find nothing
                reason = reason.removeprefix(f"{inner}: ")
            if isinstance(error, RejectedError):
                raise RejectedError(f"{path}: {precision} rejected: {reason}") from error
            raise ExportError(f"{path}: not written: {reason}") from error
        publish(draft, path)
    return replace(found, path=str(path))


def made(
    question: Question, base: Path, graph: Path, draft: Path, format: Format, precision: Precision, settings: Settings
) -> Artefact:
    """The draft of an artefact, compared; `graph` is the ONNX file that it is compiled from, or the draft itself."""
    tolerance, unverified = settings.tolerances[precision], None
    with tempfile.TemporaryDirectory() as folder:
        details, twin = lowered(question, base, graph, format, precision, settings, Path(folder))
        if format == "openvino":
            details["openvino"] = asdict(convert(graph, draft))
            parity, where = compared(question, base, twin, draft, "openvino", tolerance)
        else:
            parity, where = compared(question, base, twin, twin, "onnxruntime", tolerance)
            if precision == "bf16":
                where, unverified = f"{where}, rounding to bf16", NO_BF16
        if format in ("tensorrt", "tensorrt-rtx"):
            built = build(graph, draft, kind=format, shapes=settings.shapes or Shapes(), options=settings.options)
            details[format] = asdict(built)
            if built.runs_here:
                parity, where = compared(question, base, twin, draft, format, tolerance)
            unverified = None if built.why_not is None else f"{built.why_not}; {OF_THE_GRAPH}"
    if precision == "int8" and unverified is None:
        accept(base, draft, format, settings.int8)
    return Artefact(
        path=str(draft),
        format=format,
        precision=precision,
        bytes=size_of(draft),
        sha256=sha256(draft),
        parity=parity,
        tolerance=tolerance,
        verified_in=where,
        unverified=unverified,
        real_images=question.real,
        batch_sizes=question.batch_sizes,
        details=details,
    )


def accept(base: Path, draft: Path, format: Format, wish: Int8 | None) -> None:
    """Let the user's test look at an int8 draft, unless it is for a place that is not here."""
    if wish is None or wish.accept is None or format.startswith("tensorrt"):
        return
    target = wish.target or TARGETS[format]
    if VNNI.get(target, target) == TARGETS[format]:
        wish.accept(base, draft, "openvino" if format == "openvino" else "onnxruntime")


def put(question: Question, artefact: Path, runtime: Runtime, tolerance: Tolerance) -> tuple[Parity, str]:
    """How far the answers are from PyTorch's, and the runtime that gave them, with its precision if that is another."""
    with load(artefact, runtime=runtime, trusted=True) as runner:
        parity, asked = question.put(runner, tolerance), runner.metadata.get("precision", runner.precision)
        return parity, runtime if runner.precision == asked else f"{runtime}, computing in {runner.precision}"


def lowered(
    question: Question, base: Path, graph: Path, format: Format, precision: Precision, settings: Settings, folder: Path
) -> tuple[dict[str, Any], Path]:
    """Write the graph in its precision; what there is to say of it, and what ONNX Runtime runs of it."""
    if precision == "fp32":
        write(onnx.load(base), graph)
        return {}, graph
    if precision != "int8":
        return typed(question, base, graph, precision, settings, folder)
    if settings.int8 is None:
        raise ExportError("no calibration data; give some with --calibration.")
    wish, budget = settings.int8, settings.budget
    target = wish.target or TARGETS[format]
    if target in VNNI and not has_exact_int8():
        raise ExportError(
            f"target {target}: this processor has no VNNI, so the file cannot be verified here; export it on one that "
            f"has, or use {VNNI[target]}."
        )
    calibrated = modelopt.calibrated if wish.quantizer == "modelopt" else int8.calibrated
    with calibrated(base, wish.calibration, target=target, calibrator=wish.calibrator) as subject:
        if budget is None:
            made: Quantised | Budgeted = subject.write(graph)
        else:
            score = scoring(question, budget, RUNTIMES.get(target))
            made = within_budget(subject, graph, wish.calibration, score, score(base), budget.max_drop)
    if target in PORTABLE:
        refuse_saturation(graph)
    return {"int8": asdict(made)}, graph


def refuse_saturation(graph: Path) -> None:
    """Raises ExportError for a file that can compute otherwise on a processor without VNNI than it does here."""
    unsafe = list_unsafe_weights(read_model(graph), graph.parent)
    if unsafe:
        raise ExportError(
            f"{len(unsafe)} int8 weights exceed {SAFE_WEIGHT} in magnitude ({unsafe[0]} first), so sums saturate on "
            "processors without VNNI."
        )


def typed(
    question: Question, base: Path, graph: Path, precision: Low, settings: Settings, folder: Path
) -> tuple[dict[str, Any], Path]:
    """As `lowered`. ONNX Runtime has no bf16 on the CPU: a twin that rounds to bf16 takes the graph's place there."""
    seen = ranges(base, question.batches[0]) if precision == "fp16" else {}
    rounding, budget = precision == "bf16", settings.budget
    twin = folder / "rounded.onnx" if rounding else graph
    if budget is None:
        made: Typed | Budgeted = retype(base, graph, precision, ranges=seen)
        if rounding:
            retype(base, twin, precision, emulate=True)
    else:
        subject = Typing(base, precision, seen, emulate=rounding)
        score, whole = scoring(question, budget, None, settings.tolerances[precision]), scoring(question, budget, None)
        made = within_budget(subject, twin, lambda: question.batches, score, whole(base), budget.max_drop)
        if rounding:
            retype(base, graph, precision, keep=made.kept)
    return {precision: asdict(made)}, twin


def scoring(
    question: Question, budget: Budget, runtime: Runtime | None, tolerance: Tolerance | None = None
) -> Callable[[Path], float]:
    """What the budget is measured by: the score that was given, else agreement with PyTorch; NaN beyond `tolerance`."""

    def score(graph: Path) -> float:
        with load(graph, runtime=runtime) as runner:
            if budget.score is not None and tolerance is None:
                return budget.score(runner)
            try:
                agreement = question.put(runner, tolerance or ANY).top1_agreement
            except ExportError:
                return math.nan
            return agreement if budget.score is None else budget.score(runner)

    return score


def compared(
    question: Question, base: Path, twin: Path, artefact: Path, runtime: Runtime, tolerance: Tolerance
) -> tuple[Parity, str]:
    """How far an artefact is from PyTorch, and where it ran; raises with the first operator of `twin` that departs."""
    try:
        return put(question, artefact, runtime, tolerance)
    except ExportError as error:
        first = first_departure(base, twin, question.batches[0])
        raise type(error)(f"{error}; {f'the first operator to depart is {first}' if first else ADDS_UP}") from error
