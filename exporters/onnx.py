"""A network as one ONNX file that has proven, on images, that it answers as PyTorch does.

Two exporters are tried in turn: torch.export's graph ("dynamo"), then the tracer ("torchscript"). Each result goes
through the ONNX checker and runs in ONNX Runtime at several batch sizes. A file that fails never gets its name.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor, nn

from exporters.comparison import BATCHES, TOLERANCE, batches_of, odd_batches, verify
from exporters.failure import ExportError, RunnerError, first_line
from exporters.parity import Parity

__all__ = ["BATCHES", "TOLERANCE", "Export", "Exporter", "Free", "Postprocess", "export"]

Exporter = Literal["auto", "dynamo", "torchscript"]
Postprocess = Literal["none", "argmax"]
INPUT, OUTPUT = "images", "logits"
LABELS = "labels"  #: name of the output where argmax is baked in
TRACED_BATCH = 3
LOWEST_OPSET = 18
#: what exporters, the checker and serialisation raise for a network that they cannot write
FAILURES = (
    ExportError,
    RunnerError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    torch.onnx.errors.OnnxExporterError,
    *(RuntimeError, ValueError, TypeError, AssertionError, AttributeError, KeyError, IndexError, ImportError, OSError),
)


@dataclass(frozen=True)
class Free:
    """Which axes of the images the file leaves open."""

    batch: bool = True
    size: bool = False

    @property
    def axes(self) -> dict[int, str]:
        """Axis -> its name."""
        return {**({0: "batch"} if self.batch else {}), **({2: "height", 3: "width"} if self.size else {})}


class Argmax(nn.Module):
    """The class of the largest logit: labels [n, ...] for logits [n, classes, ...]. At most 256 classes: uint8."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).argmax(1).to(torch.uint8)


@dataclass(frozen=True)
class Export:
    """What was written, and how far it is from PyTorch."""

    path: str
    opset: int
    bytes: int
    sha256: str
    exporter: str  #: "dynamo" or "torchscript"
    parity: Parity
    tolerance: float  #: greatest parity.max_rel that would have passed; of maps, greatest share of other labels too
    postprocess: Postprocess  #: "argmax": the file answers with uint8 labels
    dynamic_size: bool  #: takes images of any height and width
    real_images: bool  #: compared on images that were given, not on noise
    batch_sizes: tuple[int, ...]  #: that were run
    refused: dict[str, str]  #: exporter that was tried first and failed -> why


def export(
    module: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    opset: int = LOWEST_OPSET,
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] | None = None,
    images: Tensor | None = None,
    tolerance: float = TOLERANCE,
    exporter: Exporter = "auto",
    postprocess: Postprocess = "none",
    dynamic_size: bool = False,
) -> Export:
    """Write `module` (float32 images [n, 3, h, w] -> logits) to `path` as one ONNX file, verified in ONNX Runtime.

    `example`: [n, 3, h, w], gives the image size (and the batch size unless `dynamic_batch`). `images`: [m, 3, h, w],
    real ones to compare on; noise in [0, 1] without. `tolerance`: greatest difference of a logit as a share of the
    greatest |logit|, and greatest share of the labels that may differ where the network answers with maps or the file
    with labels. `postprocess="argmax"`: the file answers with uint8 labels, [n, h, w] of maps. `dynamic_size`: it takes
    images of any size, which two odd ones prove. `metadata` goes into the file. The module is left as it was.

    Raises ExportError, leaving what was at `path` untouched, if no exporter writes a file that passes.
    """
    if opset < LOWEST_OPSET:
        raise ExportError(f"opset {opset}: expected {LOWEST_OPSET} or more.")
    path = Path(path)
    network = copied(module)
    example = example.detach().float().cpu()
    batches = batches_of(example if images is None else images, example, dynamic_batch, noise=images is None)
    if dynamic_size:
        batches += odd_batches(network, batches[-1])
    free, answering = Free(dynamic_batch, dynamic_size), baked(network, example, postprocess)
    refused: dict[str, str] = {}
    for name in ("dynamo", "torchscript") if exporter == "auto" else (exporter,):
        with temporary(path) as draft:
            try:
                model = WRITERS[name](answering, example, opset, free)
                content = finish(model, draft, opset, metadata or {})
                parity = verify(network, draft, batches, tolerance)
            except FAILURES as error:
                refused[name] = first_line(error)
                continue
            publish(draft, path)
        return Export(
            path=str(path),
            opset=opset,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            exporter=name,
            parity=parity,
            tolerance=tolerance,
            postprocess=postprocess,
            dynamic_size=dynamic_size,
            real_images=images is not None,
            batch_sizes=tuple(sorted({len(batch) for batch in batches})),
            refused=refused,
        )
    why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise ExportError(f"{path}: not written, for no exporter gives a file that answers as PyTorch does ({why}).")


def copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and eval mode throughout: the caller's module keeps its modes and device."""
    try:
        with torch.no_grad(), silence():
            return copy.deepcopy(module).float().cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"the network cannot be copied for the export ({first_line(error)}).") from error


def baked(network: nn.Module, example: Tensor, postprocess: Postprocess) -> nn.Module:
    """The network with what comes after it. Raises ExportError for more classes than uint8 holds."""
    if postprocess == "none":
        return network
    with torch.no_grad():
        classes = network(example[:1]).shape[1]
    if classes > 256:
        raise ExportError(f"{classes} classes do not fit into a uint8 label; export the logits, without argmax.")
    return Argmax(network).eval()


def output_name(network: nn.Module) -> str:
    return LABELS if isinstance(network, Argmax) else OUTPUT


def finish(model: onnx.ModelProto, draft: Path, opset: int, metadata: Mapping[str, str]) -> bytes:
    """Put the metadata in, check the model, write it to `draft`; the file's content."""
    found = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    if found != opset:
        raise ExportError(f"asked for opset {opset}, the exporter wrote {found}")
    forget_source(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    draft.write_bytes(content)
    return content


def forget_source(model: onnx.ModelProto) -> None:
    """Take out what the exporters note of the source: stack traces with the folders of this machine."""
    del model.metadata_props[:]
    graph = model.graph
    for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""


def traced(example: Tensor, dynamic_batch: bool) -> Tensor:
    """What the exporter sees: a batch size that the comparison does not use, unless the example's is the only one."""
    return example[:1].expand(TRACED_BATCH, -1, -1, -1).contiguous() if dynamic_batch else example


def dynamo(network: nn.Module, example: Tensor, opset: int, free: Free) -> onnx.ModelProto:
    with silence():
        program = torch.onnx.export(
            network,
            (traced(example, free.batch),),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[output_name(network)],
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in free.axes.items()},) if free.axes else None,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def torchscript(network: nn.Module, example: Tensor, opset: int, free: Free) -> onnx.ModelProto:
    images = traced(example, free.batch)
    output = output_name(network)
    same = {axis: name for axis, name in free.axes.items() if axis == 0}
    with silence(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "traced.onnx"
        if any(isinstance(part, torch.jit.ScriptModule) for part in network.modules()):
            script = torch.jit.trace(network, images, check_trace=False)  # the exporter's own tracer stops at scripts
            assert isinstance(script, nn.Module)
            network = script
        torch.onnx.export(
            network,
            (images,),
            str(file),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes={INPUT: free.axes, output: same} if free.axes else None,
        )
        return onnx.load(file)


WRITERS = {"dynamo": dynamo, "torchscript": torchscript}


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` that is gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".onnx", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror}); choose another file with --out.") from error
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def publish(draft: Path, path: Path) -> None:
    """Make the draft last, then give it its name."""
    try:
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)
        os.replace(draft, path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror}); choose another file with --out.") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """The exporters print their progress and warn of their own future; what matters is verified afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
