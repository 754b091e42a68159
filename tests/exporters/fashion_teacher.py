"""The shipped Fashion-MNIST teacher as ONNX, with its images: small and real, for the tests of int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from compress.data import open_images
from compress.data.cache import build_cache
from compress.models.loading import load_model
from exporters.onnx_export import export_onnx

EXAMPLE = torch.zeros(1, 3, 32, 32)


@cache
def fashion_images(split: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images [n, 3, 32, 32] in [0, 1] and their labels."""
    result = open_images("embedded/fashion", split=split)
    with tempfile.TemporaryDirectory() as folder:
        cached = build_cache(result, image_size=(32, 32), resize=32, folder=Path(folder), limit=count)
        pixels, labels = cached.gather(np.arange(count)), cached.gather_targets(np.arange(count))
    assert labels is not None
    return pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255), labels


def teacher() -> torch.nn.Module:
    return load_model("embedded/fashion_wrn16_2")[0].eval()


def export_fashion(net: torch.nn.Module, path: Path, **options) -> Path:
    options = {"metadata": {"task": "classification"}, "exporter": "torchscript", **options}
    export_onnx(net, EXAMPLE, path, **options)
    return path


def batch_function(images: NDArray, size: int = 16) -> Callable[[], Iterator[NDArray]]:
    return lambda: (images[i : i + size] for i in range(0, len(images), size))


def session(path: Path, **options) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def accuracy(path: Path, count: int = 500) -> float:
    """Return the accuracy in ONNX Runtime on the first validation images, in percent."""
    images, labels = fashion_images("val", count)
    return 100.0 * float((answers(path, images).argmax(1) == labels).mean())


def answers(path: Path, images: NDArray) -> NDArray:
    return np.asarray(session(path).run(None, {"images": images})[0])
