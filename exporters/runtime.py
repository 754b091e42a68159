"""One call for every runtime: float32 images [n, 3, h, w] in, logits [n, classes, ...] out, both in host memory."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.failure import MissingFileError, RunnerError, first_line

Provider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: types of an output that holds labels
WHOLE = ("tensor(uint8)", "tensor(int32)", "tensor(int64)")
Images = NDArray[np.float32] | Tensor


class Runner(ABC):
    """A network ready to answer. The call returns when the answer is in host memory, so timing it times everything."""

    runtime: str  #: "torch" or "onnxruntime"

    def __init__(self, provider: Provider, threads: int | None) -> None:
        self.provider = provider  #: where it really runs
        self.threads = threads  #: None: as many as the runtime likes
        self.input_size: tuple[int, int] | None = None  #: (height, width); None where any size goes or nobody knows
        self.channels = 3  #: that the images must have
        self.batch_size: int | None = None  #: the only batch size it takes; None: any
        self.classes: int | None = None  #: width of the answer; None where nobody knows before the first call
        self.labels = False  #: whether it answers with labels [n, ...], whole numbers, and not with logits
        self.dense = False  #: whether it answers with maps, as far as is known before the first call
        self.metadata: Mapping[str, str] = {}

    @abstractmethod
    def __call__(self, images: Images) -> NDArray[np.float32] | NDArray[np.integer]:
        """Float32 images [n, 3, h, w] -> logits [n, classes], maps of logits [n, classes, h, w], or labels of either.

        Raises RunnerError for images of another shape.
        """


def load(model: str | Path | nn.Module, *, provider: Provider = "cpu", threads: int | None = None) -> Runner:
    """Make an .onnx file (ONNX Runtime) or a module (PyTorch) answer on `provider`, in float32.

    Raises RunnerError for a file that is missing, truncated or no network of one image input and one answer, and
    for a provider that is not there: no runtime falls back to another device in silence.
    """
    if isinstance(model, nn.Module):
        return TorchRunner(model, provider=provider, threads=threads)
    return OnnxRunner(Path(model), provider=provider, threads=threads)


class TorchRunner(Runner):
    """A module in eval mode, moved to the provider's device."""

    runtime = "torch"

    def __init__(self, module: nn.Module, *, provider: Provider = "cpu", threads: int | None = None) -> None:
        if provider == "cuda" and not torch.cuda.is_available():
            raise RunnerError("CUDA was asked for, but PyTorch sees no CUDA device here; use cpu.")
        super().__init__(provider, threads)
        self.module = module.to(provider).eval()

    def __call__(self, images: Images) -> NDArray[np.float32]:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            answer = self.module(torch.as_tensor(images).to(self.provider))
        if not isinstance(answer, Tensor):
            raise RunnerError(f"the network answers with a {type(answer).__name__}, expected one tensor of logits.")
        logits = answer.float().cpu().numpy()
        self.classes = logits.shape[1]
        return logits


class OnnxRunner(Runner):
    """An ONNX file of one image input and one answer in ONNX Runtime."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, provider: Provider = "cpu", threads: int | None = None) -> None:
        super().__init__(provider, threads)
        self.path = path
        self.session = open_session(path, provider, threads)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            raise RunnerError(
                f"{path}: found inputs {[(i.name, i.type, i.shape) for i in inputs]} and {len(outputs)} outputs, "
                "expected one float input [n, 3, height, width] and one output of logits."
            )
        self.input_name, self.shape = inputs[0].name, inputs[0].shape
        batch, channels, height, width = self.shape
        self.channels = channels if isinstance(channels, int) else 3
        self.input_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.batch_size = batch if isinstance(batch, int) else None
        answer = outputs[0].shape
        self.labels = outputs[0].type in WHOLE
        self.dense = len(answer or []) == (3 if self.labels else 4)
        known = not self.labels and answer and len(answer) > 1 and isinstance(answer[1], int)
        self.classes = answer[1] if known else None
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)

    def __call__(self, images: Images) -> NDArray[np.float32] | NDArray[np.integer]:
        array = images.numpy(force=True) if isinstance(images, Tensor) else images
        try:
            (logits,) = self.session.run(None, {self.input_name: np.ascontiguousarray(array, dtype=np.float32)})
        except FAILURES as error:
            wanted = json.dumps([part if isinstance(part, int) else "any" for part in self.shape])
            raise RunnerError(
                f"{self.path}: images {list(array.shape)} do not run, expected {wanted} ({first_line(error)})."
            ) from error
        return np.asarray(logits)


def open_session(path: Path, provider: Provider, threads: int | None) -> onnxruntime.InferenceSession:
    """A session on exactly the provider asked for."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected an .onnx file.")
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise RunnerError(
            f"{name} is not in the installed ONNX Runtime {onnxruntime.__version__} (it has "
            f"{', '.join(onnxruntime.get_available_providers())}); install onnxruntime-gpu in the place of onnxruntime."
        )
    if provider == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[name])
    except FAILURES as error:
        raise RunnerError(
            f"{path}: cannot be loaded as ONNX ({reason(error)}); the file is damaged or another kind: export it again."
        ) from error
    if session.get_providers()[0] != name:
        raise RunnerError(
            f"{path}: {name} was asked for, but ONNX Runtime fell back to {session.get_providers()[0]}; "
            "its CUDA and cuDNN libraries do not load here (see `compress doctor`)."
        )
    return session


def reason(error: Exception) -> str:
    """What ONNX Runtime says, without the path that it repeats."""
    return first_line(error).rsplit(" failed:", 1)[-1].strip()


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own exceptions share no base but Exception, and come by name."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, OSError)


FAILURES = failures()
