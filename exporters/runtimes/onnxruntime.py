"""ONNX files in ONNX Runtime, on exactly the requested execution provider."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import first_line
from compress.files import is_utf8
from compress.resources import default_threads
from exporters.cuda import gpu_uuid
from exporters.errors import RunnerError, RuntimeUnavailableError, damaged_file_error, require_file
from exporters.packages import import_package
from exporters.runtimes.base import (
    Images,
    OutputArray,
    Provider,
    Runner,
    is_on_gpu,
    require_uint8,
    shape_mismatch_error,
    to_host_array,
    unsupported_input_error,
    wait_for_tensor,
)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
#: distribution of ONNX Runtime that contains a provider
PROVIDER_PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "openvino": "onnxruntime-openvino"}
NVIDIA_PROVIDERS = ("cuda", "tensorrt")
#: operators that take most of a network's time
COMPUTE_OPERATORS = {
    "Conv", "ConvTranspose", "FusedConv", "QLinearConv", "Gemm", "MatMul", "FusedMatMul", "QLinearMatMul",
}  # fmt: skip
#: types of an output that holds labels
LABEL_TYPES = ("tensor(uint8)", "tensor(int32)", "tensor(int64)")
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class OnnxRuntimeRunner(Runner):
    """An ONNX file with one image input."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, provider: Provider = "cpu", threads: int | None = None) -> None:
        super().__init__(provider, threads)
        self.path = path
        self.session = create_session(path, provider, threads)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES or len(inputs[0].shape) != 4 or not outputs:
            raise unsupported_input_error(path, [(i.name, i.type, i.shape) for i in inputs], len(outputs))
        self.dtype = INPUT_TYPES[inputs[0].type]
        self.expects_uint8 = self.dtype is np.uint8
        self.inputs, self.outputs = {i.name: i.shape for i in inputs}, {o.name: o.shape for o in outputs}
        self.set_shapes(inputs[0].shape, outputs[0].shape or [], has_labels=outputs[0].type in LABEL_TYPES)
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        self.precision = self.metadata.get("precision", "fp32")
        self.gpu_uuid = gpu_uuid() if provider in NVIDIA_PROVIDERS else None

    def run(self, images: Images) -> dict[str, OutputArray]:
        ((name, shape),) = self.inputs.items()
        try:
            if is_on_gpu(images) and self.provider in NVIDIA_PROVIDERS:
                outputs = self.run_on_device(name, images)
            else:
                outputs = self.session.run(None, {name: to_host_array(images, expects_uint8=self.expects_uint8)})
        except runtime_errors() as error:
            raise shape_mismatch_error(self.path, images.shape, shape, error_reason(error)) from error
        return {name: np.asarray(output) for name, output in zip(self.outputs, outputs, strict=True)}

    def run_on_device(self, name: str, images: Any) -> list[NDArray[Any]]:
        """Run on a tensor in the memory of the provider's device, without a copy to the host."""
        if self.expects_uint8:
            require_uint8(images.dtype)
        device = images.device.type
        images = images.detach().to(f"{device}:0")  # the provider uses the first device
        images = (images if self.expects_uint8 else images.float()).contiguous()
        if is_on_gpu(images):
            wait_for_tensor(images)
        binding = self.session.io_binding()
        binding.bind_input(name, device, 0, self.dtype, tuple(images.shape), images.data_ptr())
        for output in self.outputs:
            binding.bind_output(output)
        self.session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    def close(self) -> None:
        del self.session


def create_session(path: Path, provider: Provider = "cpu", threads: int | None = None) -> Any:
    """Create an `onnxruntime.InferenceSession` that uses exactly one execution provider.

    Args:
        path: ONNX file from a trusted source.
        provider: Where it runs. No other provider takes over silently.
        threads: Number of CPU threads; None: ONNX Runtime's default, within the CPU quota of a container.

    Raises:
        MissingFileError: There is no such file.
        RuntimeUnavailableError: ONNX Runtime or the provider is not available, or it leaves operators to the CPU.
        RunnerError: The file cannot be loaded.
    """
    require_file(path, "an .onnx file")
    if not is_utf8(path):
        raise RunnerError(f"{path}: found a name that is not UTF-8, which ONNX Runtime cannot open; rename the file.")
    onnxruntime = import_package("onnxruntime", "ONNX Runtime", "onnxruntime")
    name = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise RuntimeUnavailableError(
            f"{name}: ONNX Runtime {onnxruntime.__version__} has {', '.join(available)}; install "
            f"{PROVIDER_PACKAGES.get(provider, 'onnxruntime')} in place of onnxruntime."
        )
    if provider in NVIDIA_PROVIDERS and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    threads = default_threads() if threads is None else threads
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[name])
    except runtime_errors() as error:
        raise damaged_file_error(path, error_reason(error)) from error
    used = session.get_providers()[0]
    if used != name:
        raise RuntimeUnavailableError(
            f"{path}: found ONNX Runtime on {used}, expected {name}; its libraries do not load (see `compress doctor`)."
        )
    if provider != "cpu" and (operators := find_cpu_fallbacks(session)):
        raise RuntimeUnavailableError(
            f"{path}: found {len(operators)} convolutions and matrix products on the CPU ({', '.join(operators[:3])}), "
            f"expected all on {name}; use another provider, or export with other operators."
        )
    return session


def find_cpu_fallbacks(session: Any) -> list[str]:
    """Return the compute operators that run on the CPU. Older versions of ONNX Runtime do not report them."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == PROVIDERS["cpu"]]
    return [
        node.name or node.op_type for part in parts for node in part.get_nodes() if node.op_type in COMPUTE_OPERATORS
    ]


def error_reason(error: BaseException) -> str:
    """Return ONNX Runtime's message without the path that it repeats."""
    return first_line(error).rsplit(" failed:", 1)[-1].strip()


@functools.cache
def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of ONNX Runtime. Its own share no base class, so they are collected by name."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, OSError)
