"""Export a model in several formats and precisions. Every file is run and compared with PyTorch before it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.errors import UsageError
from exporters.artifacts import (
    SUFFIXES,
    ExportResult,
    ExportSettings,
    Format,
    Int8Options,
    Precision,
    export_artifact,
)
from exporters.errors import ExportError, UnwritableError
from exporters.onnx_export import (
    MIN_OPSET,
    Exporter,
    OnnxExportResult,
    ReferenceModel,
    create_reference,
    write_onnx,
)
from exporters.parity import TOLERANCES, Tolerance
from exporters.pre_post import Postprocess, Preprocessing

#: batches of images, or a function that returns them anew at each call
Calibration = Iterable[Any] | Callable[[], Iterable[Any]]
#: metadata of files whose input and output differ from plain float images and logits
UINT8_INPUT = "images: uint8 RGB, NHWC, any height and width; the graph crops the center, resizes and normalizes"
OUTPUT_DESCRIPTIONS = {
    "argmax": "labels: uint8 [batch] or [batch, height, width], the class with the largest logit",
    "softmax": "probabilities: float32 [batch, classes, ...], summing to 1 over the classes",
    "sigmoid": "probabilities: float32 [batch, labels, ...], each in [0, 1] for itself",
    "threshold": "labels: uint8 [batch, labels] or [batch, height, width], 1 above the threshold",
    "topk": "labels: int32 [batch, k], best first; probabilities: float32 [batch, k]",
}


@dataclass(frozen=True)
class RejectedExport:
    """A file that was not written."""

    format: Format  #: requested format
    precision: Precision  #: requested precision
    reason: str  #: why it was not written


@dataclass(frozen=True)
class ExportOutcome:
    """The files of one export."""

    source: OnnxExportResult  #: fp32 graph that all files were made from
    artifacts: list[ExportResult] = field(default_factory=list)  #: verified files
    rejected: list[RejectedExport] = field(default_factory=list)  #: files that were not written


def ignore_progress(_: str) -> None:
    """Do nothing with a progress message."""


def export(
    model: nn.Module,
    example_input: Tensor,
    output_dir: str | Path,
    *,
    formats: Sequence[Format] = ("onnx",),
    precisions: Sequence[Precision] = ("fp32",),
    calibration: Calibration | None = None,
    images: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
    preprocessing: Preprocessing | None = None,
    postprocess: Postprocess = "none",
    threshold: float | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    opset: int = MIN_OPSET,
    exporter: Exporter = "auto",
    settings: ExportSettings | None = None,
    progress: Callable[[str], None] = ignore_progress,
) -> list[ExportResult]:
    """Export a model to a directory, one verified file for each format and precision.

    Args:
        model: Module that maps float32 images [n, 3, h, w] in [0, 1] to logits [n, classes, ...]. It is copied.
        example_input: Images [n, 3, h, w]. They give the image size, and the batch size unless `dynamic_batch`.
        output_dir: Directory of the files `model.onnx`, `model.int8.onnx`, `model.xml`, ...
        formats: "onnx", "openvino", "tensorrt", "tensorrt-rtx".
        precisions: "fp32", "fp16", "bf16", "int8".
        calibration: Batches for int8: float32 [n, 3, h, w], or uint8 [n, h, w, 3] with `preprocessing`; tensors, arrays
            or (images, labels) pairs. A function is called several times and returns the batches anew.
        images: Images [m, 3, h, w] for the comparison with PyTorch; None: noise in [0, 1].
        metadata: Text to store in the files.
        preprocessing: The files take uint8 images [n, h, w, 3] of any size; None: float32 images.
        postprocess: "none" for logits, "softmax", "argmax" for uint8 labels, or "topk" for the best five labels. With
            `threshold`: "none", "sigmoid" for probabilities, or "threshold" for uint8 0 and 1.
        threshold: Probability above which a logit is positive, for logits that are decisions of their own.
        dynamic_batch: The files take batches of any size.
        dynamic_size: The files take images of any height and width.
        opset: ONNX opset, 18 or more.
        exporter: "dynamo", "torchscript", or "auto" to try both in this order.
        settings: Tolerances, int8 options, accuracy budget, and build options of engines.
        progress: Called with one sentence for each file that is rejected.

    Returns:
        The files, formats first, then precisions.

    Raises:
        ExportError: A file could not be written or was rejected. The other files are kept.

    Example:
        >>> import tempfile, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
        >>> directory = tempfile.mkdtemp()
        >>> files = export(network, torch.zeros(1, 3, 8, 8), directory, precisions=["fp32", "fp16"])
        >>> [file.precision for file in files]
        ['fp32', 'fp16']
    """
    settings = settings or ExportSettings()
    if calibration is not None:
        if settings.int8 is not None:
            raise ExportError("calibration: found calibration= and settings.int8, expected only one of them.")
        settings = replace(settings, int8=Int8Options(create_batch_function(calibration)))
    reference = create_reference(
        model, example_input, images=images, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size,
        preprocessing=preprocessing, postprocess=postprocess, threshold=threshold,
    )  # fmt: skip
    several = len(formats) * len(precisions) > 1
    output = Path(output_dir)
    outcome = export_all(
        reference, output if several else output / artifact_name(formats[0], precisions[0]), formats, precisions,
        opset=opset, exporter=exporter, metadata={**(metadata or {}), **graph_metadata(reference)}, settings=settings,
        progress=progress,
    )  # fmt: skip
    if outcome.rejected:
        raise ExportError(" ".join(rejected.reason for rejected in outcome.rejected))
    return outcome.artifacts


def export_all(
    reference: ReferenceModel,
    output: Path,
    formats: Sequence[Format],
    precisions: Sequence[Precision],
    *,
    opset: int = MIN_OPSET,
    exporter: Exporter = "auto",
    metadata: Mapping[str, str] | None = None,
    settings: ExportSettings | None = None,
    progress: Callable[[str], None] = ignore_progress,
) -> ExportOutcome:
    """Write a verified file for each format and precision. A rejected file does not stop the others.

    Args:
        reference: The model and its outputs, from `create_reference`.
        output: The file, if there is only one format and precision, else the directory.
        formats: Formats to write.
        precisions: Precisions to write.
        opset: ONNX opset, 18 or more.
        exporter: "dynamo", "torchscript" or "auto".
        metadata: Text to store in the files.
        settings: Tolerances, int8 options, accuracy budget, and build options of engines.
        progress: Called with one sentence for each file that is rejected.

    Raises:
        ExportError: The fp32 graph does not match PyTorch.
        UnwritableError: A file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from exporters.onnx_export import create_reference
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> reference = create_reference(network, torch.zeros(1, 3, 8, 8))
        >>> outcome = export_all(reference, Path(tempfile.mkdtemp()), ["onnx"], ["fp32", "int8"])
        >>> len(outcome.artifacts), outcome.rejected[0].precision
        (1, 'int8')
    """
    settings = settings or ExportSettings()
    combinations: list[tuple[Format, Precision]] = [
        (format, precision) for format in formats for precision in precisions
    ]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = Path(directory) / "model.onnx"
        source = write_onnx(
            reference, base, opset=opset, metadata=metadata, exporter=exporter, name=output,
            tolerance=settings.tolerances["fp32"].max_rel,
        )  # fmt: skip
        outcome = ExportOutcome(source)
        for format, precision in combinations:
            path = output if len(combinations) == 1 else output / artifact_name(format, precision)
            try:
                outcome.artifacts.append(export_artifact(reference, base, path, format, precision, settings))
            except UnwritableError:
                raise
            except ExportError as error:
                outcome.rejected.append(RejectedExport(format, precision, str(error)))
                progress(str(error))
    return outcome


def create_batch_function(calibration: Calibration) -> Callable[[], Iterable[NDArray[Any]]]:
    """Return a function that yields calibration batches as arrays, anew at each call."""
    if callable(calibration):
        source = calibration
    else:
        batches = list(calibration) if isinstance(calibration, Iterator) else calibration
        source = lambda: batches  # noqa: E731

    def iter_arrays() -> Iterator[NDArray[Any]]:
        for batch in source():
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            yield images.numpy(force=True) if isinstance(images, Tensor) else np.asarray(images)

    return iter_arrays


def artifact_name(format: Format, precision: Precision) -> str:
    """Return the file name of an artifact, such as `model.int8.onnx`.

    Example:
        >>> artifact_name("onnx", "fp32"), artifact_name("tensorrt", "fp16")
        ('model.onnx', 'model.fp16.tensorrt.engine')
    """
    parts = ["model", *([] if precision == "fp32" else [precision])]
    return ".".join([*parts, *([format] if format.startswith("tensorrt") else [])]) + SUFFIXES[format]


def resolve_output_path(
    model: str | Path, output: Path | None, formats: Sequence[Format], precisions: Sequence[Precision]
) -> Path:
    """Return the file (for one format and precision) or the directory (for several) that an export writes to.

    Args:
        model: Path or name of the model; without `output`, files go beside it.
        output: Requested file or directory, or None.
        formats: Formats to write.
        precisions: Precisions to write.

    Raises:
        UsageError: `output` is a file although there are several, or has another suffix than the format.

    Example:
        >>> resolve_output_path("wrn16_1", None, ["onnx"], ["int8"]).name
        'model.int8.onnx'
    """
    count, suffix = len(formats) * len(precisions), SUFFIXES[formats[0]]
    if output is None:
        path = Path(model)
        directory = path if path.is_dir() else path.parent if path.exists() else Path()
        if count > 1:
            return directory / "export" if path.is_dir() else directory / f"{path.stem}-export"
        stem = "model" if path.is_dir() or not path.exists() else path.stem
        return directory / f"{stem}{'' if precisions[0] == 'fp32' else f'.{precisions[0]}'}{suffix}"
    if count > 1 and (output.suffix in SUFFIXES.values() or output.is_file()):
        raise UsageError(f"output {output}: found a file name for {count} files, expected a directory.")
    if count == 1 and output.suffix.lower() != suffix:
        if output.is_dir() or not output.suffix:
            return output / f"model{suffix}"
        raise UsageError(f"output {output}: found suffix {output.suffix}, expected {suffix} for {formats[0]}.")
    return output


def list_outputs(output: Path, formats: Sequence[Format], precisions: Sequence[Precision]) -> list[tuple[Path, Format]]:
    """Return path and format of every file that an export to `output` (see `resolve_output_path`) writes."""
    pairs: list[tuple[Format, Precision]] = [(format, precision) for format in formats for precision in precisions]
    return [(output if len(pairs) == 1 else output / artifact_name(*pair), pair[0]) for pair in pairs]


def graph_metadata(reference: ReferenceModel) -> dict[str, str]:
    """Return the metadata that describe input, output and precision of the files."""
    source = reference.source
    has_open_size = source.dynamic_size or source.preprocessing is not None
    metadata = {
        "postprocess": source.postprocess,
        "input_size": "any" if has_open_size else "image_size",
        "precision": "fp32",
    }
    if source.preprocessing is not None:
        metadata["input"] = UINT8_INPUT
    if source.postprocess != "none":
        metadata["output"] = OUTPUT_DESCRIPTIONS[source.postprocess]
    return metadata


def create_tolerances(max_rel: float | None = None, min_agreement: float | None = None) -> dict[str, Tolerance]:
    """Return the tolerance of each precision, with the defaults replaced where a value is given.

    Args:
        max_rel: Largest difference of a logit, relative to the largest |logit|.
        min_agreement: Smallest share of equal predictions, in [0, 1]; not for fp32.

    Example:
        >>> create_tolerances(max_rel=0.01)["fp16"].max_rel
        0.01
    """
    tolerances = dict(TOLERANCES)
    for precision, tolerance in tolerances.items():
        if max_rel is not None:
            tolerance = replace(tolerance, max_rel=max_rel, min_cosine=-1.0)
        if min_agreement is not None and precision != "fp32":
            tolerance = replace(tolerance, max_disagreement=1 - min_agreement)
        tolerances[precision] = tolerance
    return tolerances
