"""`exporters.load`: validate a file, then load it into a runtime."""

from __future__ import annotations

import os
from pathlib import Path

from exporters import runtimes
from exporters.cpu import has_exact_int8
from exporters.runtimes import Model, Provider, Runner, Runtime


def load(
    model: Model,
    *,
    runtime: Runtime | None = None,
    provider: Provider | None = None,
    threads: int | None = None,
    trust_engine: bool = False,
) -> Runner:
    """Load a PyTorch module or an exported file into exactly one runtime and device.

    Files may come from anywhere: ONNX files are validated before a runtime reads them. No runtime falls back to another
    device silently.

    Args:
        model: A module that maps images to logits, or a path that ends in .onnx, .xml (OpenVINO) or .engine.
        runtime: "torch", "torch-compile", "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx"; None: the default
            for the kind of model.
        provider: "cpu" or "cuda"; for ONNX Runtime also "tensorrt" or "openvino". None: the GPU for engines, else the
            CPU.
        threads: Number of CPU threads; None: the runtime's default.
        trust_engine: Accept a version-compatible engine, which contains code that runs on the CPU.

    Returns:
        A runner: call it with images [n, 3, h, w] in [0, 1] to get logits [n, classes] as a NumPy array.

    Raises:
        MissingFileError: There is no such file.
        RuntimeUnavailableError: The runtime, provider or device is not available.
        RunnerError: The file is damaged, unsafe, not for this runtime, or takes no images.

    Example:
        >>> import numpy as np, torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> with load(network) as runner:
        ...     runner(np.zeros((2, 3, 8, 8), np.float32)).shape
        (2, 10)
    """
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() not in (".xml", ".engine"):
        from exporters.onnx_validation import read_model
        from exporters.quantization.saturation import find_saturation

        graph = read_model(Path(model))
        runner = runtimes.load(model, runtime=runtime, provider=provider, threads=threads)
        if runner.provider == "cpu" and not has_exact_int8():
            runner.warning = find_saturation(graph, Path(model))
        return runner
    return runtimes.load(model, runtime=runtime, provider=provider, threads=threads, trust_engine=trust_engine)
