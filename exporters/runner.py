"""What every runtime looks like from outside: images in, answers out, both in host memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exporters.failure import RunnerError

Runtime = Literal["torch", "torch-compile", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Provider = Literal["cpu", "cuda", "tensorrt", "openvino"]
Images = NDArray[np.float32] | NDArray[np.uint8] | Tensor
Answer = NDArray[np.float32] | NDArray[np.integer]


class Runner(ABC):
    """A network ready to answer. The call returns when the answer is in host memory, so timing it times everything.

    To be closed after use, or used as a context: some runtimes hold a device's memory until then.
    """

    runtime: Runtime

    def __init__(self, provider: Provider, threads: int | None) -> None:
        self.provider = provider  #: where it really runs
        self.threads = threads  #: None: as many as the runtime likes
        self.precision = "fp32"  #: that really runs: "fp32", "fp16", "bf16" or "int8"
        self.input_size: tuple[int, int] | None = None  #: (height, width); None where any size goes or nobody knows
        self.channels = 3  #: that the images must have
        self.batch_size: int | None = None  #: the only batch size it takes; None: any
        self.batches: tuple[int, int | None] = (1, None)  #: fewest and most images a call
        self.takes_bytes = False  #: whether images are uint8 [n, h, w, 3], 0 to 255, and not float32 [n, 3, h, w]
        self.classes: int | None = None  #: width of the answer; None where nobody knows before the first call
        self.labels = False  #: whether it answers with labels [n, ...], whole numbers, and not with logits
        self.dense = False  #: whether it answers with maps, as far as is known before the first call
        self.metadata: Mapping[str, str] = {}
        self.caution: str | None = None  #: why its answers may be wrong on this processor
        self.inputs: dict[str, list[int | str]] = {}  #: name -> shape, axes that are open by name; empty if unknown
        self.outputs: dict[str, list[int | str]] = {}

    def __call__(self, images: Images) -> Answer:
        """The answer to images: logits [n, classes], maps of logits [n, classes, h, w], or labels of either.

        Images are float32 [n, 3, h, w] in [0, 1], or uint8 [n, h, w, 3] where it `takes_bytes`. Of a file with several
        outputs the first; of the best k labels of an image the best one. Raises RunnerError for images of another
        shape.
        """
        answer = next(iter(self.run(images).values()))
        return answer[:, 0] if self.labels and answer.ndim == 2 else answer

    def read_shapes(self, shape: list[int | str], answer: list[int | str], *, whole: bool) -> None:
        """What the shapes say. Of k labels an image the second axis is no height."""
        batch, *rest = shape
        channels, height, width = (rest[-1], *rest[:2]) if self.takes_bytes else rest
        self.channels = channels if isinstance(channels, int) else 3
        self.input_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.batch_size = batch if isinstance(batch, int) else None
        self.batches = (self.batch_size or 1, self.batch_size)
        self.labels = whole
        self.dense = len(answer) == (3 if whole else 4)
        known = not whole and len(answer) > 1 and isinstance(answer[1], int)
        self.classes = int(answer[1]) if known else None

    @abstractmethod
    def run(self, images: Images) -> dict[str, Answer]:
        """All outputs by name."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the runtime holds. The runner answers no more."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def to_host(images: Images, *, takes_bytes: bool) -> NDArray[Any]:
    """Images as a contiguous array of the type that a file takes; no copy where they are that already."""
    array = images.numpy(force=True) if isinstance(images, Tensor) else images
    if takes_bytes:
        require_bytes(array.dtype)
    return np.ascontiguousarray(array, dtype=np.uint8 if takes_bytes else np.float32)


def require_bytes(found: np.dtype[Any] | torch.dtype) -> None:
    """Raises RunnerError for images of another type than a file takes that prepares them itself."""
    name = str(found).removeprefix("torch.")
    if name != "uint8":
        raise RunnerError(f"found images of type {name}, expected uint8 [n, height, width, 3]: it prepares them.")


def to_bytes(images: Images) -> NDArray[np.uint8]:
    """Float images [n, 3, h, w] in [0, 1] -> uint8 [n, h, w, 3]."""
    array = images.numpy(force=True) if isinstance(images, Tensor) else images
    return np.ascontiguousarray(np.rint(array.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def mismatch(path: Path, found: Sequence[int], shape: list[int | str], error: str) -> RunnerError:
    """Images that a file does not take."""
    wanted = ", ".join(str(part) if isinstance(part, int) else '"any"' for part in shape)
    return RunnerError(f"{path}: images {list(found)} do not run, expected [{wanted}] ({error}).")
