"""A PyTorch network as an ONNX graph, by either of PyTorch's exporters, checked and free of traces of this machine."""

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

from exporters.failure import ExportError
from exporters.reading import opset_of

INPUT = "images"
#: bytes of weights from which on they stand in a file of their own, for protobuf ends at 2 GiB
LARGE = 2_000_000_000
#: end of the name of that file
WEIGHTS = ".data"


@dataclass(frozen=True)
class Signature:
    """What the file takes and gives: names, and which axes it leaves open."""

    batch: bool = True
    height: int | None = None  #: the axis of the heights, if sizes are open; the widths are the next
    outputs: tuple[str, ...] = ("logits",)

    @property
    def axes(self) -> dict[int, str]:
        """Axis of the images -> its name."""
        sizes = {} if self.height is None else {self.height: "height", self.height + 1: "width"}
        return {**({0: "batch"} if self.batch else {}), **sizes}


def finish(model: onnx.ModelProto, draft: Path, opset: int, metadata: Mapping[str, str]) -> None:
    """Put the metadata in, write the model to `draft` (weights beside it if they are LARGE), check what is there."""
    found = opset_of(model)
    if found != opset:
        raise ExportError(f"asked for opset {opset}, the exporter wrote {found}")
    forget_source(model)
    onnx.helper.set_model_props(model, dict(metadata))
    write(model, draft)


def write(model: onnx.ModelProto, draft: Path) -> None:
    """Write and check a model. Weights that protobuf cannot hold go into NAME.data beside the draft."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights < LARGE:
        onnx.save_model(model, draft)
    else:
        onnx.save_model(model, draft, save_as_external_data=True, location=draft.name + WEIGHTS)
    onnx.checker.check_model(str(draft), full_check=True)


def forget_source(model: onnx.ModelProto) -> None:
    """Take out what the exporters note of the source: stack traces with the folders of this machine."""
    del model.metadata_props[:]
    graph = model.graph
    for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""


def dynamo(network: nn.Module, images: Tensor, opset: int, signature: Signature) -> onnx.ModelProto:
    """The graph of torch.export."""
    axes = signature.axes
    with silence():
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(signature.outputs),
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in axes.items()},) if axes else None,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def torchscript(network: nn.Module, images: Tensor, opset: int, signature: Signature) -> onnx.ModelProto:
    """The graph of the tracer."""
    axes = signature.axes
    same = {axis: name for axis, name in axes.items() if axis == 0}
    with silence(), mute(), tempfile.TemporaryDirectory() as folder:
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
            output_names=list(signature.outputs),
            dynamic_axes={INPUT: axes} | dict.fromkeys(signature.outputs, same) if axes else None,
        )
        return onnx.load(file)


WRITERS = {"dynamo": dynamo, "torchscript": torchscript}


@contextlib.contextmanager
def mute() -> Iterator[None]:
    """Where the tracer's exporter fails it prints whole graphs on the standard output, from C++, told to or not."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C++ has not written yet
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


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
