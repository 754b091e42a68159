"""Export of a network to one fp32 ONNX file that is verified against PyTorch.

Two exporters are tried in turn: torch.export ("dynamo"), then the tracer ("torchscript"). Each result passes the ONNX
checker and runs in ONNX Runtime at several batch sizes. A file that fails never gets its name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.errors import first_line
from compress.files import WRITE_FAILURES, sha256
from exporters.errors import ExportError, RunnerError
from exporters.onnx_source import OnnxSource, join_model
from exporters.onnx_validation import seal_model
from exporters.output import commit_output, temporary_output, total_size, unwritable_error
from exporters.parity import (
    TOLERANCES,
    Parity,
    Tolerance,
    as_uint8_images,
    odd_sized_batches,
    split_batches,
    verify_parity,
)
from exporters.pre_post import (
    OUTPUT_NAMES,
    Postprocess,
    Preprocessing,
    WithPreprocessing,
    threshold_logit,
    with_postprocessing,
)
from exporters.runtimes.base import Images, OutputArray, Runner
from exporters.runtimes.onnxruntime import OnnxRuntimeRunner
from exporters.runtimes.torch import TorchRunner
from exporters.torch_exporters import EXPORTERS, GraphSignature, finalize_model, silence_exporters

Exporter = Literal["auto", "dynamo", "torchscript"]
Batches = Sequence[NDArray[Any]]
#: batch size of the traced input, which the comparison does not use
TRACED_BATCH = 3
#: height and width of the traced input with preprocessing; no image of the comparison has this size
TRACED_SIZE = (45, 61)
MIN_OPSET = 18
#: errors of exporters, checker and serialization for a network that they cannot export
EXPORT_ERRORS = (
    ExportError,
    RunnerError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    torch.onnx.errors.OnnxExporterError,
    *(RuntimeError, ValueError, TypeError, AssertionError, AttributeError, KeyError, IndexError, ImportError, OSError),
)


@dataclass(frozen=True)
class ExportSource:
    """A network to export, and how its files differ from it."""

    network: nn.Module  #: images [n, 3, h, w] -> logits [n, classes, ...]; a copy of the user's module
    example: Tensor  #: [n, 3, h, w]; gives the image size, and the batch size unless that is open
    dynamic_batch: bool = True  #: whether the files take batches of any size
    dynamic_size: bool = False  #: whether the files take images of any height and width
    preprocessing: Preprocessing | None = None  #: the files take uint8 images of any size
    postprocess: Postprocess = "none"  #: kind of output
    onnx_source: OnnxSource | None = None  #: the graph of the network, if it is an ONNX file
    threshold: float | None = None  #: probability above which a logit is positive; None: classes exclude each other

    @property
    def cut(self) -> float | None:
        """Output above which a decision is positive; None for one class per image or pixel."""
        if self.threshold is None or self.postprocess == "sigmoid":
            return self.threshold
        return threshold_logit(self.threshold)

    @property
    def signature(self) -> GraphSignature:
        height_axis = 1 if self.preprocessing is not None else 2 if self.dynamic_size else None
        return GraphSignature(self.dynamic_batch, height_axis, OUTPUT_NAMES[self.postprocess])

    def build_graph(self) -> nn.Module:
        """Return the module that is exported: preprocessing, network, postprocessing."""
        network = self.network
        if self.preprocessing is not None:
            network = WithPreprocessing(network, self.preprocessing).eval()
        return with_postprocessing(network, self.trace_input(), self.postprocess, self.threshold)

    def build_model(self, exporter: str, opset: int) -> onnx.ModelProto:
        """Return the graph of all of this, exported by PyTorch, around the network's own graph if it has one."""
        images = self.trace_input()
        if self.onnx_source is None:
            return EXPORTERS[exporter](self.build_graph(), images, opset, self.signature)
        before, after = self.onnx_source.before, self.onnx_source.after
        if self.preprocessing is not None:
            before = WithPreprocessing(before or nn.Identity(), self.preprocessing).eval()
        with torch.no_grad():
            output = self.onnx_source.run(images if before is None else before(images))
        if self.postprocess != "none":
            after = with_postprocessing(after or nn.Identity(), output, self.postprocess, self.threshold)
        return join_model(self.onnx_source, before, after, images, output, opset, self.signature, EXPORTERS[exporter])

    def trace_input(self) -> Tensor:
        """Return the exporter's input. The comparison uses other sizes where they are open."""
        count = TRACED_BATCH if self.dynamic_batch else len(self.example)
        if self.preprocessing is not None:
            generator = torch.Generator().manual_seed(0)
            return torch.randint(0, 256, (count, *TRACED_SIZE, 3), dtype=torch.uint8, generator=generator)
        return self.example[:1].expand(count, -1, -1, -1).contiguous()


@dataclass(frozen=True)
class ReferenceModel:
    """A network with the images on which its exported files are compared with it."""

    source: ExportSource
    batches: Batches  #: images as the files take them
    has_real_images: bool  #: whether the images were given, not noise

    @cached_property
    def expected_outputs(self) -> list[OutputArray]:
        """PyTorch's logits (probabilities with "softmax" and "sigmoid") for each batch, computed once for all files."""
        source = self.source
        network = source.network
        if source.preprocessing is not None:
            network = WithPreprocessing(network, source.preprocessing)
        if source.postprocess in ("softmax", "sigmoid"):
            network = with_postprocessing(network, source.trace_input(), source.postprocess, source.threshold)
        runner = TorchRunner(network)
        return [runner(batch) for batch in self.batches]

    def measure_parity(self, candidate: Runner, tolerance: Tolerance) -> Parity:
        """Compare a file with PyTorch. Raise RejectedError if it differs more than the tolerance allows."""
        outputs = iter(self.expected_outputs)
        parity = verify_parity(lambda _: next(outputs), candidate, self.batches, tolerance, cut=self.source.cut)
        if self.source.postprocess != "topk":
            return parity
        graph = self.source.build_graph()

        def reference_probabilities(images: Images) -> OutputArray:
            with torch.inference_mode():
                return graph(torch.as_tensor(images))[1].numpy()

        probabilities = verify_parity(
            reference_probabilities,
            lambda images: candidate.run(images)["probabilities"],
            self.batches,
            replace(tolerance, max_disagreement=None),
        )
        return replace(probabilities, top1_agreement=parity.top1_agreement)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted({len(batch) for batch in self.batches}))


@dataclass(frozen=True)
class OnnxExportResult:
    """A verified fp32 ONNX file."""

    path: str  #: of the file
    opset: int  #: ONNX opset
    bytes: int  #: size, with weights in a separate file
    sha256: str  #: of the file
    exporter: str  #: "dynamo" or "torchscript"
    parity: Parity  #: differences from PyTorch
    tolerance: float  #: largest parity.max_rel allowed; for maps also the largest share of other labels
    postprocess: Postprocess  #: kind of output
    preprocess: bool  #: whether the file takes uint8 images [n, h, w, 3] of any size
    dynamic_size: bool  #: whether the file takes images of any height and width
    real_images: bool  #: whether it was compared on images that were given, not on noise
    batch_sizes: tuple[int, ...]  #: batch sizes of the comparison
    failed_exporters: dict[str, str]  #: exporter that was tried before and failed -> reason


def create_reference(
    module: nn.Module,
    example: Tensor,
    *,
    images: Tensor | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    preprocessing: Preprocessing | None = None,
    postprocess: Postprocess = "none",
    onnx_source: OnnxSource | None = None,
    threshold: float | None = None,
) -> ReferenceModel:
    """Copy a module for export and prepare the images for the comparison. Arguments as in `export_onnx`.

    `onnx_source` is the graph of the module if it runs an ONNX file.

    Raises:
        ExportError: The network cannot be copied, or does not take the images.
    """
    if dynamic_size and preprocessing is not None:
        raise ExportError("found dynamic_size and preprocessing, expected one: preprocessing takes any size already.")
    network, example = copy_network(module), example.detach().float().cpu()
    source = ExportSource(
        network, example, dynamic_batch, dynamic_size, preprocessing, postprocess, onnx_source, threshold
    )
    with_postprocessing(network, example, postprocess, threshold)  # raises if it does not fit
    float_batches = split_batches(
        example if images is None else images, example, dynamic_batch, is_noise=images is None
    )
    if dynamic_size:
        float_batches += odd_sized_batches(network, float_batches[-1])
    batches: Batches = float_batches if preprocessing is None else as_uint8_images(float_batches)
    return ReferenceModel(source, batches, images is not None)


def export_onnx(
    module: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    opset: int = MIN_OPSET,
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] | None = None,
    images: Tensor | None = None,
    tolerance: float | None = None,
    exporter: Exporter = "auto",
    postprocess: Postprocess = "none",
    dynamic_size: bool = False,
    preprocessing: Preprocessing | None = None,
    threshold: float | None = None,
) -> OnnxExportResult:
    """Export a module to one fp32 ONNX file and verify it in ONNX Runtime. The module is left as it was.

    Args:
        module: Maps float32 images [n, 3, h, w] to logits [n, classes, ...].
        example: Images [n, 3, h, w]. They give the image size, and the batch size unless `dynamic_batch`.
        path: The file to write.
        opset: ONNX opset, 18 or more.
        dynamic_batch: The file takes batches of any size.
        metadata: Text to store in the file.
        images: Images [m, 3, h, w] for the comparison; None: noise in [0, 1].
        tolerance: Largest difference of a logit, relative to the largest |logit|, and largest share of other labels for
            maps and labels. Default 0.001.
        exporter: "dynamo", "torchscript", or "auto" to try both in this order.
        postprocess: "none" for logits, "softmax" for probabilities, "argmax" for uint8 labels [n] or [n, h, w], or
            "topk" for the best five labels (int32) and their probabilities, [n, 5] each. With `threshold`: "none",
            "sigmoid" for probabilities, or "threshold" for uint8 0 and 1, [n, labels] or [n, h, w].
        dynamic_size: The file takes images of any height and width; two odd sizes are tested.
        preprocessing: The file takes uint8 images [n, h, w, 3] of any size.
        threshold: Probability above which a logit is positive, for logits that are decisions of their own.

    Raises:
        ExportError: No exporter writes a file that matches the module. What was at `path` is unchanged.

    Example:
        >>> import tempfile, torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> path = tempfile.mkdtemp() + "/net.onnx"
        >>> export_onnx(network, torch.zeros(1, 3, 8, 8), path).parity.top1_agreement
        1.0
    """
    reference = create_reference(
        module, example, images=images, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size,
        preprocessing=preprocessing, postprocess=postprocess, threshold=threshold,
    )  # fmt: skip
    path = Path(path)
    with temporary_output(path) as draft:
        result = write_onnx(
            reference, draft, opset=opset, metadata=metadata, tolerance=tolerance, exporter=exporter, name=path
        )
        commit_output(draft, path)
    return replace(result, path=str(path))


def write_onnx(
    reference: ReferenceModel,
    path: Path,
    *,
    opset: int = MIN_OPSET,
    metadata: Mapping[str, str] | None = None,
    tolerance: float | None = None,
    exporter: Exporter = "auto",
    name: Path | None = None,
) -> OnnxExportResult:
    """Write the fp32 graph to `path`, verified. `name` replaces the path in error messages."""
    if opset < MIN_OPSET:
        raise ExportError(f"opset: found {opset}, expected {MIN_OPSET} or more.")
    source = reference.source
    limits = TOLERANCES["fp32"] if tolerance is None else Tolerance(tolerance, None)
    failed: dict[str, str] = {}
    for kind in select_exporters(source, exporter):
        try:
            finalize_model(source.build_model(kind, opset), path, opset, metadata or {})
            with OnnxRuntimeRunner(path) as runner:
                parity = reference.measure_parity(runner, limits)
            seal_model(path)
        except EXPORT_ERRORS as error:
            if isinstance(error, OSError) and error.errno in WRITE_FAILURES:
                raise unwritable_error(name or path, error) from error
            failed[kind] = first_line(error)
            continue
        return OnnxExportResult(
            path=str(path),
            opset=opset,
            bytes=total_size(path),
            sha256=sha256(path),
            exporter=kind,
            parity=parity,
            tolerance=limits.max_rel or 0.0,
            postprocess=source.postprocess,
            preprocess=source.preprocessing is not None,
            dynamic_size=source.dynamic_size,
            real_images=reference.has_real_images,
            batch_sizes=reference.batch_sizes,
            failed_exporters=failed,
        )
    reasons = "; ".join(f"{kind}: {reason}" for kind, reason in failed.items())
    raise ExportError(f"{name or path}: not written, no exporter gives a file that matches PyTorch ({reasons}).")


def select_exporters(source: ExportSource, exporter: Exporter) -> tuple[str, ...]:
    """Return the exporters to try. Raise ExportError for one that cannot export this source."""
    if source.preprocessing is None:
        return ("dynamo", "torchscript") if exporter == "auto" else (exporter,)
    if exporter == "torchscript":
        raise ExportError("torchscript: fixes the image size, but preprocessing takes images of any size; use dynamo.")
    return ("dynamo",)


def copy_network(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in float32 and eval mode throughout."""
    try:
        with torch.no_grad(), silence_exporters():
            return copy.deepcopy(module).float().cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"the network cannot be copied for the export ({first_line(error)}).") from error
