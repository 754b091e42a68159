"""Verified files of one model; the implementation of `compress.export`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError
from compress.evaluation import create_file_scorer
from compress.measure import (
    append_format_measurement,
    default_image_source,
    load_comparison_images,
)
from compress.model_options import split_model_options
from compress.predictor import load_predictor, spec_name

if TYPE_CHECKING:
    from compress.data.calibration import CalibrationImages
    from compress.models.card import ModelCard
    from compress.models.model_input import ModelInput
    from exporters.api import RejectedExport
    from exporters.artifacts import AccuracyBudget, ExportResult, ExportSettings
    from exporters.onnx_export import ReferenceModel
    from exporters.onnx_source import OnnxSource
    from exporters.script import ScriptFacts

#: minimum, optimal and maximum batch size of an engine
DEFAULT_BATCH = (1, 1, 16)
#: an int8 file that takes a larger share of the fp32 latency is rejected
MAX_INT8_LATENCY = 1.0
DYNAMIC = "dynamic"
#: other name of a format -> its name
FORMAT_ALIASES = {"engine": "tensorrt"}
#: arguments that only engines use
ENGINE_OPTIONS = (
    "compute_capabilities", "hardware_compatible", "sizes", "timing_cache", "version_compatible", "workspace",
)  # fmt: skip


@dataclass(frozen=True)
class ExportSummary:
    """The files of one model."""

    model: str  #: as given
    images: str  #: data that the outputs were compared on
    calibration: str | None  #: data that int8 was calibrated on; None without int8
    calibration_images: int | None  #: number of these images
    opset: int  #: ONNX opset version
    exporter: str  #: "dynamo" or "torchscript"
    failed_exporters: dict[str, str]  #: exporters that failed -> reason
    preprocess: bool  #: whether the files accept uint8 images [n, h, w, 3] of any size
    postprocess: str  #: "none", "softmax", "argmax", "topk", "sigmoid" or "threshold"
    dynamic_size: bool  #: whether the files accept images of any height and width
    input: ModelInput  #: how the model reads images, and where these facts come from
    scripts: list[str]  #: scripts that run the files on a picture
    artifacts: list[ExportResult]  #: files that were saved
    rejected: list[RejectedExport]  #: files that were not saved


def export(
    model: Any, output_path: str | Path | None, *, formats: Sequence[Any], precisions: Sequence[Any], allow_code: bool,
    record: Path | None, progress: Callable[[str], None], **options: Any,
) -> ExportSummary:  # fmt: skip
    """Export a model; see `compress.export`."""
    from compress.data.calibration import open_calibration_images
    from compress.models.metadata import card_to_metadata
    from compress.training.generator_samples import iter_generator_samples
    from exporters.api import export_all, graph_metadata, list_outputs, resolve_output_path
    from exporters.script import require_own_scripts, write_script

    formats = list(dict.fromkeys(FORMAT_ALIASES.get(name, name) for name in formats))
    if options["quantizer"] == "modelopt":
        validate_modelopt(formats, options)
    spec = spec_name(model)
    path = resolve_output_path(spec, None if output_path is None else Path(output_path), formats, precisions)
    overrides, options = split_model_options(options)
    dynamic_size = overrides.get("image_size") == DYNAMIC
    if dynamic_size:
        del overrides["image_size"]
    require_other_file(spec, path)
    if options["script"]:
        require_own_scripts(list_outputs(path, formats, precisions))
    predictor = load_predictor(model, progress=progress, onnx_as_network=True, **overrides)
    card = predictor.card
    images = options["images"] if options["images"] is not None else default_image_source(card)
    reference = create_reference_model(predictor.network, spec, card, images, options, dynamic_size=dynamic_size)
    with contextlib.ExitStack() as stack:
        calibration = None
        if "int8" in precisions:
            calibration = stack.enter_context(
                open_calibration_images(
                    options["calibration"], spec, card, options["calibration_images"], root=options["data_root"],
                    progress=progress,
                    generate=partial(
                        iter_generator_samples, allow_code=allow_code,
                        trust_pickle=overrides.get("trust_pickle", False), progress=progress,
                    ),
                )
            )  # fmt: skip
        settings = create_settings(reference, card, formats, precisions, calibration, options, progress)
        outcome = export_all(
            reference, path, formats, precisions, opset=graph_opset(reference, options["opset"]),
            exporter=options["exporter"], metadata={**card_to_metadata(card), **graph_metadata(reference)},
            settings=settings, progress=progress,
        )  # fmt: skip
    scripts = []
    if options["script"]:
        facts = describe_for_script(card, options, dynamic_size=dynamic_size)
        scripts = [str(write_script(Path(one.path), one.format, facts)) for one in outcome.artifacts]
    for name, reason in outcome.source.failed_exporters.items():
        progress(f"The exporter {name} failed: {reason}")
    if record is not None:
        for one in outcome.artifacts:
            append_format_measurement(
                record, spec, card, one.format, one.precision, export=asdict(one), size_bytes=one.bytes
            )
    return ExportSummary(
        spec, spec_name(images), calibration and calibration.name, calibration and calibration.images,
        outcome.source.opset, outcome.source.exporter, outcome.source.failed_exporters, options["preprocess"],
        options["postprocess"], outcome.source.dynamic_size, predictor.input, scripts, outcome.artifacts,
        outcome.rejected,
    )  # fmt: skip


def batch_range(options: dict[str, Any]) -> tuple[int, int, int]:
    """Return minimum, optimal and maximum batch size."""
    return (1, 1, 1) if options["static_batch"] else options["batch"] or DEFAULT_BATCH


def require_other_file(spec: str, output: Path) -> None:
    """Raise UsageError if an export would replace the file that it reads."""
    if Path(spec).exists() and output.exists() and Path(spec).samefile(output) and output.is_file():
        raise UsageError(f"{spec}: would be replaced by its own export; give another file with --out.")


def graph_opset(reference: ReferenceModel, opset: int) -> int:
    """Return the requested ONNX opset, or that of an ONNX file if it is newer: graphs are only converted upwards."""
    source = reference.source.onnx_source
    return opset if source is None else max(opset, source.opset)


def open_onnx_source(network: Any, spec: str, options: dict[str, Any], *, dynamic_size: bool) -> OnnxSource | None:
    """Return the graph of a network that is an ONNX file; None for others.

    Raises:
        UsageError: The file has a fixed batch or image size, and the export shall have another.
        ExportError: The file is not in fp32.
    """
    from compress.models.onnx_teacher import OnnxTeacher, create_onnx_source
    from exporters.errors import ExportError

    teacher = network.body
    if not isinstance(teacher, OnnxTeacher):
        return None
    least, _, most = batch_range(options)
    fixed = teacher.fixed_batch_size
    if fixed is not None and not least == most == fixed:
        raise UsageError(f"{spec}: found a file for batches of {fixed}; add --batch {fixed}.")
    try:
        source = create_onnx_source(network)
    except ExportError as error:
        raise ExportError(f"{spec}: {error}") from error
    if dynamic_size and (teacher.signature.image_size is not None or source.after is not None):
        raise UsageError(f"{spec}: found a file for images of one size; leave out --image-size dynamic.")
    return source


def create_reference_model(
    network: Any, spec: str, card: ModelCard, images: Any, options: dict[str, Any], *, dynamic_size: bool
) -> ReferenceModel:
    """Return the network with its pre- and postprocessing, and the images to compare outputs on."""
    import torch

    from exporters.onnx_export import create_reference
    from exporters.pre_post import Preprocessing

    least, _, most = batch_range(options)
    source = open_onnx_source(network, spec, options, dynamic_size=dynamic_size)
    return create_reference(
        network,
        torch.zeros(most if least == most else 1, 3, *card.image_size),
        images=load_comparison_images(images, card, root=options["data_root"]),
        dynamic_batch=least != most,
        dynamic_size=dynamic_size,
        preprocessing=Preprocessing(card.image_size, card.resize) if options["preprocess"] else None,
        postprocess=options["postprocess"],
        threshold=card.decision_threshold,
        onnx_source=source,
    )


def describe_for_script(card: ModelCard, options: dict[str, Any], *, dynamic_size: bool) -> ScriptFacts:
    """Return what a script must know about the files."""
    from exporters.script import ScriptFacts

    least, _, most = batch_range(options)
    return ScriptFacts(
        card.image_size, card.resize, card.decision_names, card.predicts_maps, card.decision_threshold,
        options["preprocess"], options["postprocess"], dynamic_size, most if least == most else 1,
    )  # fmt: skip


def create_settings(
    reference: ReferenceModel, card: ModelCard, formats: Sequence[str], precisions: Sequence[str],
    calibration: CalibrationImages | None, options: dict[str, Any], progress: Callable[[str], None],
) -> ExportSettings:  # fmt: skip
    """Return tolerances, int8 and engine options. Raises UsageError for options without effect."""
    from exporters.api import create_tolerances
    from exporters.artifacts import ExportSettings, Int8Options
    from exporters.tensorrt.options import BuildOptions, ShapeRanges

    has_engine = any(one.startswith("tensorrt") for one in formats)
    unused = [name for name in ENGINE_OPTIONS if options[name]]
    if unused and not has_engine:
        option = {"compute_capabilities": "compute-capability"}.get(unused[0], unused[0].replace("_", "-"))
        raise UsageError(f"--{option}: has an effect on engines only; add --format tensorrt or tensorrt-rtx.")
    is_dynamic = reference.source.dynamic_size or reference.source.preprocessing is not None
    if is_dynamic and not options["sizes"] and has_engine:
        raise UsageError("an engine with dynamic input size needs a range; give --sizes 480x640, or MIN:OPT:MAX.")
    int8 = None
    if calibration is not None:
        batches = calibration.batches if reference.source.preprocessing is None else calibration.uint8_batches()
        accept = None if options["allow_slower"] else create_latency_check(card)
        int8 = Int8Options(batches, options["target"], options["calibrator"], options["quantizer"], accept)
    return ExportSettings(
        tolerances=create_tolerances(options["tolerance"], options["min_agreement"]),
        int8=int8,
        budget=create_budget(card, precisions, options, progress),
        shapes=ShapeRanges(batch_range(options), options["sizes"]),
        options=BuildOptions(
            workspace_bytes=options["workspace"],
            timing_cache=options["timing_cache"],
            version_compatible=options["version_compatible"],
            hardware_compatible=options["hardware_compatible"],
            compute_capabilities=tuple(options["compute_capabilities"]),
        ),
    )


def validate_modelopt(formats: Sequence[Any], options: dict[str, Any]) -> None:
    """Raise UsageError for what Model Optimizer does not support, before anything is exported."""
    from exporters.artifacts import TARGETS
    from exporters.quantization.modelopt import unsupported_reason

    for name in formats:
        reason = unsupported_reason(options["target"] or TARGETS[name], options["calibrator"])
        if reason is not None:
            raise UsageError(f"--quantizer {reason}.")


def create_budget(
    card: ModelCard, precisions: Sequence[str], options: dict[str, Any], progress: Callable[[str], None]
) -> AccuracyBudget | None:
    """Return the accuracy loss that is allowed. Raises UsageError for a budget without effect."""
    from exporters.artifacts import AccuracyBudget

    max_drop, validation = options["max_drop"], options["validation"]
    if max_drop is None:
        if validation is not None:
            raise UsageError("--val: measures the loss for --max-drop; give that too.")
        return None
    if set(precisions) == {"fp32"}:
        raise UsageError("--max-drop: has an effect below fp32 only; add a precision, such as --precision int8.")
    score = None if validation is None else create_file_scorer(validation, card, options["data_root"], progress)
    return AccuracyBudget(max_drop / 100, score)


def create_latency_check(card: ModelCard) -> Callable[[Path, Path, Any], None]:
    """Return a function that raises RejectedError if an int8 file takes longer per image than its fp32 file."""

    def check_latency(base: Path, draft: Path, runtime: Any) -> None:
        from exporters.errors import RejectedError
        from profiles.latency.benchmark import benchmark_interleaved
        from profiles.latency.cases import create_candidate, preserve_threads

        candidates = {
            name: create_candidate(path, card.image_size, 1, runtime=runtime if path is base else None)
            for name, path in (("fp32", base), ("int8", draft))
        }
        with preserve_threads():
            timed = benchmark_interleaved(candidates, duration_s=1.0).latencies
        fp32, int8 = timed["fp32"].latency_ms_p50, timed["int8"].latency_ms_p50
        if int8 > MAX_INT8_LATENCY * fp32:
            raise RejectedError(
                f"slower: found {int8:.2f} ms per image, expected less than {fp32:.2f} ms (fp32), interleaved in "
                f"{timed['int8'].runtime} on this machine; --allow-slower keeps the file."
            )

    return check_latency
