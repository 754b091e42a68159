"""One call for every runtime: `load` makes a module or an exported file answer, exactly where it was asked to."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from exporters.failure import RunnerError, first_line
from exporters.reading import damaged, read_model
from exporters.runner import Answer, Images, Provider, Runner, Runtime, mismatch, require_bytes, to_host
from exporters.saturation import describe_saturation, has_exact_int8

__all__ = ["FAILURES", "PROVIDERS", "SUFFIXES", "Answer", "Images", "Provider", "Runner", "Runtime", "load"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
#: the package of ONNX Runtime that has a provider
PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "openvino": "onnxruntime-openvino"}
#: end of a file's name -> the runtimes that run it, its own first
SUFFIXES: dict[str, tuple[Runtime, ...]] = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".engine": ("tensorrt", "tensorrt-rtx"),
}
#: operators in which a network's time goes
HEAVY = {"Conv", "ConvTranspose", "FusedConv", "QLinearConv", "Gemm", "MatMul", "FusedMatMul", "QLinearMatMul"}
#: types of an output that holds labels
WHOLE = ("tensor(uint8)", "tensor(int32)", "tensor(int64)")


def load(
    model: str | Path | nn.Module,
    *,
    runtime: Runtime | None = None,
    provider: Provider | None = None,
    threads: int | None = None,
    trusted: bool = False,
) -> Runner:
    """Make a module or an exported file answer on `provider`.

    `runtime`: None is a module's PyTorch and a file's own, by the end of its name. `provider`: of PyTorch "cpu" or
    "cuda", of ONNX Runtime its execution provider; the others know but one place, OpenVINO the processor and an engine
    the GPU; None is that place, or the processor. `trusted`: code inside of an engine may run. Raises RunnerError for a
    file that is missing, damaged, hostile or no network of one image input, for a runtime that is not installed or does
    not read it, and for a provider that is not there: no runtime falls back to another device in silence.
    """
    if isinstance(model, nn.Module):
        if runtime not in (None, "torch", "torch-compile"):
            raise RunnerError(f"{runtime} runs files, found a network of PyTorch; export it first.")
        return TorchRunner(model, provider=provider or "cpu", threads=threads, compiled=runtime == "torch-compile")
    path = Path(model)
    readers = SUFFIXES.get(path.suffix.lower(), SUFFIXES[".onnx"])
    if runtime is not None and runtime not in readers:
        raise RunnerError(f"{path}: {runtime} does not read it; it runs in {' or '.join(readers)}.")
    if readers == SUFFIXES[".engine"]:
        from exporters.engines import EngineRunner

        only(path, "an engine", provider, "cuda")
        return EngineRunner(path, runtime, trusted=trusted)
    if (runtime or readers[0]) == "openvino":
        from exporters.openvino import OpenVinoRunner

        only(path, "OpenVINO", provider, "cpu")
        return OpenVinoRunner(path, threads=threads)
    return OnnxRunner(path, provider=provider or "cpu", threads=threads)


def only(path: Path, who: str, provider: Provider | None, place: Provider) -> None:
    if provider not in (None, place):
        raise RunnerError(f"{path}: {provider} was asked for, but {who} runs on {place}.")


class TorchRunner(Runner):
    """A module in eval mode, moved to the provider's device."""

    runtime = "torch"

    def __init__(
        self, module: nn.Module, *, provider: Provider = "cpu", threads: int | None = None, compiled: bool = False
    ) -> None:
        if provider not in ("cpu", "cuda"):
            raise RunnerError(f"{provider} was asked for, but PyTorch runs on cpu or cuda.")
        if provider == "cuda" and not torch.cuda.is_available():
            raise RunnerError("CUDA was asked for, but PyTorch sees no CUDA device here; use cpu.")
        super().__init__(provider, threads)
        self.module = module.to(provider).eval()
        self.answer: Any = torch.compile(self.module, dynamic=False) if compiled else self.module
        self.runtime = "torch-compile" if compiled else "torch"

    def run(self, images: Images) -> dict[str, Answer]:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            answer = self.ask(torch.as_tensor(images).to(self.provider))
        if not isinstance(answer, Tensor):
            raise RunnerError(f"the network answers with a {type(answer).__name__}, expected one tensor of logits.")
        logits = answer.float().cpu().numpy()
        self.classes = logits.shape[1]
        return {"logits": logits}

    def ask(self, images: Tensor) -> Any:
        if self.runtime == "torch":
            return self.answer(images)
        try:
            return self.answer(images)
        except RuntimeError as error:
            raise RunnerError(f"torch.compile does not make this network answer ({first_line(error)}).") from error

    def close(self) -> None:
        del self.answer


class OnnxRunner(Runner):
    """An ONNX file of one image input in ONNX Runtime."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, provider: Provider = "cpu", threads: int | None = None) -> None:
        super().__init__(provider, threads)
        self.path = path
        self.session = open_session(path, provider, threads)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        floats = len(inputs) == 1 and inputs[0].type == "tensor(float)"
        self.takes_bytes = len(inputs) == 1 and inputs[0].type == "tensor(uint8)"
        if not (floats or self.takes_bytes) or len(inputs[0].shape) != 4 or not outputs:
            raise RunnerError(
                f"{path}: found inputs {[(i.name, i.type, i.shape) for i in inputs]} and {len(outputs)} outputs, "
                "expected one float input [n, 3, height, width], or one of uint8 [n, height, width, 3], and an answer."
            )
        self.inputs, self.outputs = {i.name: i.shape for i in inputs}, {o.name: o.shape for o in outputs}
        self.read_shapes(inputs[0].shape, outputs[0].shape or [], whole=outputs[0].type in WHOLE)
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        self.precision = self.metadata.get("precision", "fp32")
        if provider == "cpu" and not has_exact_int8():
            self.caution = describe_saturation(path)

    def run(self, images: Images) -> dict[str, Answer]:
        ((name, shape),) = self.inputs.items()
        try:
            if isinstance(images, Tensor) and images.is_cuda and self.provider in ("cuda", "tensorrt"):
                answers = self.bound(name, images.detach())
            else:
                answers = self.session.run(None, {name: to_host(images, takes_bytes=self.takes_bytes)})
        except FAILURES as error:
            raise mismatch(self.path, images.shape, shape, first_line(error)) from error
        return {name: np.asarray(answer) for name, answer in zip(self.outputs, answers, strict=True)}

    def bound(self, name: str, images: Tensor) -> list[Any]:
        """The answers to images that are read where they lie, on the device of the session's provider."""
        if self.takes_bytes:
            require_bytes(images.dtype)
        device = torch.device(images.device.type, 0)  # a session's provider is on the first
        images = images.to(device, torch.uint8 if self.takes_bytes else torch.float32).contiguous()
        if images.is_cuda:
            torch.cuda.current_stream(device).synchronize()  # ONNX Runtime has a stream of its own
        kind = np.uint8 if self.takes_bytes else np.float32
        binding = self.session.io_binding()
        binding.bind_input(name, device.type, 0, kind, tuple(images.shape), images.data_ptr())
        for output in self.outputs:
            binding.bind_output(output)  # to the host, where it is wanted
        self.session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    def close(self) -> None:
        del self.session


def open_session(path: Path, provider: Provider, threads: int | None) -> onnxruntime.InferenceSession:
    """A session on exactly the provider asked for."""
    read_model(path)
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise RunnerError(
            f"{name} is not in the installed ONNX Runtime {onnxruntime.__version__} (it has "
            f"{', '.join(onnxruntime.get_available_providers())}); install {PACKAGES[provider]} in the place of "
            "onnxruntime."
        )
    if provider in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised besides
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[name])
    except FAILURES as error:
        raise damaged(path, reason(error)) from error
    if session.get_providers()[0] != name:
        raise RunnerError(
            f"{path}: {name} was asked for, but ONNX Runtime fell back to {session.get_providers()[0]}; "
            "its libraries do not load here (see `compress doctor`)."
        )
    if provider != "cpu" and (left := left_behind(session)):
        raise RunnerError(
            f"{path}: {name} was asked for, but ONNX Runtime runs {len(left)} of its convolutions and products on the "
            f"processor ({', '.join(left[:3])}); run it elsewhere, or export it with other operators."
        )
    return session


def left_behind(session: onnxruntime.InferenceSession) -> list[str]:
    """Convolutions and products that run on the processor all the same; an older ONNX Runtime does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == PROVIDERS["cpu"]]
    return [node.name or node.op_type for part in parts for node in part.get_nodes() if node.op_type in HEAVY]


def reason(error: Exception) -> str:
    """What ONNX Runtime says, without the path that it repeats."""
    return first_line(error).rsplit(" failed:", 1)[-1].strip()


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own exceptions share no base but Exception, and come by name."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, OSError)


FAILURES = failures()
