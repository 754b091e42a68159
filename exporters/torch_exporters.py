"""PyTorch's two ONNX exporters, with the resulting graph checked and free of traces of this machine."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from exporters import seal
from exporters.errors import ExportError
from exporters.onnx_validation import model_opset

INPUT_NAME = "images"
#: size of weights that go to a separate file, because protobuf ends at 2 GiB
EXTERNAL_DATA_BYTES = 2_000_000_000
#: suffix of that file
WEIGHTS_SUFFIX = ".data"


@dataclass(frozen=True)
class GraphSignature:
    """Outputs and open axes of a graph."""

    batch: bool = True  #: whether the batch axis is open
    height: int | None = None  #: height axis if sizes are open; the width axis is the next
    outputs: tuple[str, ...] = ("logits",)

    @property
    def axes(self) -> dict[int, str]:
        """Open axes of the images, with their names."""
        sizes = {} if self.height is None else {self.height: "height", self.height + 1: "width"}
        return {**({0: "batch"} if self.batch else {}), **sizes}


def finalize_model(model: onnx.ModelProto, path: Path, opset: int, metadata: Mapping[str, str]) -> None:
    """Set the metadata, then save and check the model. Raise ExportError if it has another opset."""
    actual = model_opset(model)
    if actual != opset:
        raise ExportError(f"opset: found {actual}, expected {opset}")
    strip_source_info(model)
    onnx.helper.set_model_props(model, dict(metadata))
    save_model(model, path)


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Save and check a model. Weights that are too large for protobuf go to NAME.data beside it."""
    drop_seal(model)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights < EXTERNAL_DATA_BYTES:
        onnx.save_model(model, path)
    else:
        onnx.save_model(model, path, save_as_external_data=True, location=path.name + WEIGHTS_SUFFIX)
    onnx.checker.check_model(str(path), full_check=True)


def drop_seal(model: onnx.ModelProto) -> None:
    """Remove the hash of the file that a model was read from."""
    kept = [entry for entry in model.metadata_props if entry.key != seal.KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def strip_source_info(model: onnx.ModelProto) -> None:
    """Remove the stack traces, with paths of this machine, that the exporters add."""
    del model.metadata_props[:]
    graph = model.graph
    for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""


def export_dynamo(network: nn.Module, images: Tensor, opset: int, signature: GraphSignature) -> onnx.ModelProto:
    """Export through torch.export."""
    axes = signature.axes
    with silence_exporters():
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(signature.outputs),
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in axes.items()},) if axes else None,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def export_torchscript(network: nn.Module, images: Tensor, opset: int, signature: GraphSignature) -> onnx.ModelProto:
    """Export through the tracer."""
    axes = signature.axes
    batch_axis = {axis: name for axis, name in axes.items() if axis == 0}
    with silence_exporters(), mute_stdout(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        path = Path(directory) / "traced.onnx"
        if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
            traced = torch.jit.trace(network, images, check_trace=False)  # the exporter does not trace script modules
            assert isinstance(traced, nn.Module)
            network = traced
        torch.onnx.export(
            network,
            (images,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(signature.outputs),
            dynamic_axes={INPUT_NAME: axes} | dict.fromkeys(signature.outputs, batch_axis) if axes else None,
        )
        return onnx.load(path)


EXPORTERS = {"dynamo": export_dynamo, "torchscript": export_torchscript}


@contextlib.contextmanager
def mute_stdout() -> Iterator[None]:
    """Redirect file descriptor 1, because a failing tracer prints whole graphs from C++."""
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # output that C++ has buffered
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Suppress progress and deprecation warnings of the exporters; their result is verified afterwards."""
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
