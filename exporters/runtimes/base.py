"""Interface of all runtimes: images in, NumPy arrays out. Imports no framework, so it runs where NumPy alone exists."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from exporters.errors import RunnerError

if TYPE_CHECKING:
    from torch import Tensor

Runtime = Literal["torch", "torch-compile", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Provider = Literal["cpu", "cuda", "tensorrt", "openvino"]
#: float32 [n, 3, h, w] in [0, 1], or uint8 [n, h, w, 3]
Images = Union["NDArray[np.float32]", "NDArray[np.uint8]", "Tensor"]
#: logits or probabilities as float32, labels as integers
OutputArray = Union["NDArray[np.float32]", "NDArray[np.integer]"]
#: sizes of axes; an open axis has a name
Shape = list[Any]
RunnerType = TypeVar("RunnerType", bound="Runner")


class ModelInfo:
    """Inputs and outputs of a model, and where it runs."""

    runtime: Runtime

    def __init__(self, provider: Provider, threads: int | None = None) -> None:
        self.provider: Provider = provider  #: device that the model runs on
        self.threads = threads  #: number of CPU threads; None: the runtime's default
        self.precision = "fp32"  #: precision of most operators at run time: "fp32", "fp16", "bf16" or "int8"
        self.input_size: tuple[int, int] | None = None  #: (height, width); None if open or unknown
        self.channels = 3  #: of the images
        self.batch_size: int | None = None  #: fixed batch size; None if it is open
        self.batch_range: tuple[int, int | None] = (1, None)  #: smallest and largest batch size
        self.expects_uint8 = False  #: whether images are uint8 [n, h, w, 3], not float32 [n, 3, h, w]
        self.classes: int | None = None  #: width of the logits; None if unknown before the first call
        self.returns_labels = False  #: whether outputs are integer labels [n, ...], not logits
        self.predicts_maps = False  #: whether outputs are maps, as far as known before the first call
        self.metadata: Mapping[str, str] = {}  #: of the ONNX file
        self.warning: str | None = None  #: why outputs may be wrong on this CPU
        self.inputs: dict[str, Shape] = {}  #: name -> shape; empty if unknown
        self.outputs: dict[str, Shape] = {}
        self.gpu_uuid: str | None = None  #: NVML identifier of the GPU
        self.companion_files: tuple[Path, ...] = ()  #: other files that the model consists of, as far as known

    def set_shapes(self, images: Shape, output: Shape, *, has_labels: bool) -> None:
        """Set sizes, batch range and output kind from the shapes of the input and of the first output."""
        batch, *rest = images
        channels, height, width = (rest[-1], *rest[:2]) if self.expects_uint8 else rest
        self.channels = channels if isinstance(channels, int) else 3
        self.input_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.batch_size = batch if isinstance(batch, int) else None
        self.batch_range = (self.batch_size or 1, self.batch_size)
        self.returns_labels = has_labels
        self.predicts_maps = len(output) == (3 if has_labels else 4)
        is_known = not has_labels and len(output) > 1 and isinstance(output[1], int)
        self.classes = int(output[1]) if is_known else None


class Runner(ModelInfo, ABC):
    """A loaded model. A call returns when the outputs are in host memory, so timing a call times everything.

    Close it after use, or use it as a context manager: some runtimes hold device memory until then.
    """

    def __call__(self, images: Images) -> OutputArray:
        """Return the first output.

        Args:
            images: float32 [n, 3, h, w] in [0, 1], or uint8 [n, h, w, 3] if `expects_uint8`.

        Returns:
            Logits [n, classes] or [n, classes, h, w] as float32; integer labels [n] or [n, h, w]; or 0 and 1 for each
            label [n, labels]. If the model returns the k best labels, only the best one.

        Raises:
            RunnerError: The model does not take images of this shape or type.
        """
        output = next(iter(self.run(images).values()))
        is_top_k = self.returns_labels and output.ndim == 2 and self.metadata.get("postprocess") != "threshold"
        return output[:, 0] if is_top_k else output

    @abstractmethod
    def run(self, images: Images) -> dict[str, OutputArray]:
        """Return all outputs by name."""

    @abstractmethod
    def close(self) -> None:
        """Release the runtime's resources. The runner cannot be used afterwards."""

    def __enter__(self: RunnerType) -> RunnerType:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_tensor(images: Images) -> bool:
    """Return whether images are a torch tensor, without importing torch."""
    return hasattr(images, "data_ptr")


def is_on_gpu(images: Images) -> bool:
    """Return whether images are a torch tensor in GPU memory."""
    return bool(getattr(images, "is_cuda", False))


def wait_for_tensor(images: Any) -> None:
    """Wait until PyTorch has computed a GPU tensor, because runtimes use streams of their own."""
    sys.modules["torch"].cuda.current_stream(images.device).synchronize()


def to_host_array(images: Any, *, expects_uint8: bool) -> NDArray[Any]:
    """Return images as a contiguous array of the model's input type, without a copy if possible."""
    array = images.numpy(force=True) if is_tensor(images) else images
    if expects_uint8:
        require_uint8(array.dtype)
    return np.ascontiguousarray(array, dtype=np.uint8 if expects_uint8 else np.float32)


def require_uint8(dtype: object) -> None:
    """Raise RunnerError if images are not uint8 although the model preprocesses them itself."""
    name = str(dtype).removeprefix("torch.")
    if name != "uint8":
        raise RunnerError(f"images: found type {name}, expected uint8 [n, height, width, 3].")


def to_uint8_images(images: Any) -> NDArray[np.uint8]:
    """Convert float images [n, 3, h, w] in [0, 1] to uint8 [n, h, w, 3]."""
    array = images.numpy(force=True) if is_tensor(images) else images
    return np.ascontiguousarray(np.rint(array.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def unsupported_input_error(path: Path, inputs: object, outputs: int) -> RunnerError:
    return RunnerError(
        f"{path}: found inputs {inputs} and {outputs} outputs, expected one input, float32 [n, 3, height, width] or "
        "uint8 [n, height, width, 3], and at least one output."
    )


def shape_mismatch_error(path: Path, images: Sequence[int], expected: Shape, reason: str) -> RunnerError:
    shape = ", ".join(str(size) if isinstance(size, int) else '"any"' for size in expected)
    return RunnerError(f"{path}: found images {list(images)}, expected [{shape}] ({reason}).")
