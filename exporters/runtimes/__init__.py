"""Runtimes that run a model: PyTorch, ONNX Runtime, OpenVINO, TensorRT and TensorRT-RTX.

No module here except `torch` imports PyTorch, so that these files run on a machine with NumPy and one runtime. They do
not validate ONNX files either: `exporters.load` does, and is the function for files of unknown origin.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Union

from exporters.errors import RunnerError
from exporters.runtimes.base import Images, ModelInfo, OutputArray, Provider, Runner, Runtime

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SUFFIXES", "Images", "ModelInfo", "OutputArray", "Provider", "Runner", "Runtime", "load"]

#: file suffix -> runtimes that run such files, the default first
SUFFIXES: dict[str, tuple[Runtime, ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".engine": ("tensorrt", "tensorrt-rtx"),
}
Model = Union[str, "os.PathLike[str]", "nn.Module"]


def load(
    model: Model,
    *,
    runtime: Runtime | None = None,
    provider: Provider | None = None,
    threads: int | None = None,
    trust_engine: bool = False,
) -> Runner:
    """Load a model into exactly one runtime and device. See `exporters.load`, which validates ONNX files first."""
    if not isinstance(model, (str, os.PathLike)):
        from exporters.runtimes.torch import TorchRunner

        if runtime not in (None, "torch", "torch-compile"):
            raise RunnerError(f"{runtime} runs files, found a PyTorch module; export it first.")
        is_compiled = runtime == "torch-compile"
        return TorchRunner(model, provider=provider or "cpu", threads=threads, is_compiled=is_compiled)
    path = Path(model)
    runtimes = SUFFIXES.get(path.suffix.lower(), SUFFIXES[".onnx"])
    if runtime is not None and runtime not in runtimes:
        raise RunnerError(f"{path}: found runtime {runtime}, expected {' or '.join(runtimes)}.")
    if runtimes == SUFFIXES[".engine"]:
        from exporters.runtimes.tensorrt import TensorRTRunner

        require_provider(path, "an engine", provider, "cuda")
        return TensorRTRunner(path, runtime, trust_engine=trust_engine)
    if (runtime or runtimes[0]) == "openvino":
        from exporters.runtimes.openvino import OpenVINORunner

        require_provider(path, "OpenVINO", provider, "cpu")
        return OpenVINORunner(path, threads=threads)
    from exporters.runtimes.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(path, provider=provider or "cpu", threads=threads)


def require_provider(path: Path, name: str, provider: Provider | None, expected: Provider) -> None:
    """Raise RunnerError if a provider other than the only possible one was requested."""
    if provider not in (None, expected):
        raise RunnerError(f"{path}: found provider {provider}, expected {expected}, where {name} runs.")
