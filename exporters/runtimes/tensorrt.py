"""Engines of TensorRT and TensorRT-RTX, run with NumPy and the CUDA driver alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.cuda import CudaDriver, CudaEvent, DevicePointer, detect_gpu, gpu_uuid
from exporters.errors import RunnerError, RuntimeUnavailableError
from exporters.packages import LIBRARY_ERRORS
from exporters.runtimes.base import (
    Images,
    ModelInfo,
    OutputArray,
    Runner,
    is_on_gpu,
    require_uint8,
    to_host_array,
    wait_for_tensor,
)
from exporters.tensorrt.libraries import LIBRARY_NAMES, LibraryMessages, capture_messages, import_library
from exporters.tensorrt.metadata import incompatibility_reason, metadata_path, read_engine

#: types without a NumPy equivalent -> NumPy type of the same size
STORAGE_TYPES = {"bfloat16": "uint16"}


class EngineInfo(ModelInfo):
    """An engine as its metadata describe it. Needs neither the library nor a GPU."""

    def __init__(self, path: Path, *, trust_engine: bool = False) -> None:
        """Read the engine and its metadata.

        Args:
            path: The .engine file; its metadata lie beside it.
            trust_engine: Accept a version-compatible engine, which contains CPU code.

        Raises:
            RunnerError: The engine is damaged, or contains code although `trust_engine` is false.
        """
        super().__init__("cuda")
        self.path = path
        self.content, self.engine = read_engine(path)
        self.runtime = self.engine.kind
        self.precision, self.metadata = self.engine.precision, self.engine.metadata
        self.companion_files = (metadata_path(path),)
        self.inputs = {name: list(spec.shape) for name, spec in self.engine.inputs.items()}
        self.outputs = {name: list(spec.shape) for name, spec in self.engine.outputs.items()}
        ((self.input_name, images),) = self.engine.inputs.items()
        output, self.profile = next(iter(self.engine.outputs.values())), self.engine.profiles[0]
        self.expects_uint8 = images.type == "uint8"
        axes = zip(self.profile.min, self.profile.max, images.shape, strict=True)
        shape = [low if low == high else name for low, high, name in axes]
        self.set_shapes(shape, list(output.shape), has_labels="float" not in output.type)
        self.batch_range = self.profile.min[0], self.profile.max[0]
        if self.engine.options.get("version_compatible") and not trust_engine:
            raise RunnerError(
                f"{path}: a version-compatible engine contains code that runs when it is loaded; if you trust its "
                "author, pass --trust-engine."
            )


class TensorRTRunner(EngineInfo, Runner):
    """An engine on the first GPU, with its own execution context and stream.

    A call copies images to the GPU, unless they are a torch tensor there already, and all outputs back. The three steps
    `copy_in`, `compute` and `copy_out` can be called and timed separately, with events of `create_event`.
    """

    def __init__(self, path: Path, runtime: str | None = None, *, trust_engine: bool = False) -> None:
        """Load an engine.

        Args:
            path: The .engine file; its metadata lie beside it.
            runtime: Expected library, "tensorrt" or "tensorrt-rtx"; None: the engine's.
            trust_engine: Accept a version-compatible engine, which contains CPU code.

        Raises:
            RuntimeUnavailableError: The library, the driver or the GPU is missing.
            RunnerError: The engine is damaged, for another runtime, version or GPU, or contains untrusted code.
        """
        super().__init__(path, trust_engine=trust_engine)
        if runtime not in (None, self.runtime):
            raise RunnerError(f"{path}: found runtime {runtime}, expected {self.runtime}.")
        self.trt = import_library(self.engine.kind)
        gpu = detect_gpu()
        reason = incompatibility_reason(self.engine, self.content, self.trt, gpu)
        if reason is not None:
            raise (RunnerError if gpu else RuntimeUnavailableError)(f"{path}: {reason}.")
        self.driver, self.gpu_uuid = CudaDriver(), gpu_uuid()
        self.load_engine()
        self.shape: tuple[int, ...] = ()  #: of the images that memory is allocated for
        self.image_buffer: DevicePointer | None = None
        self.output_buffers: dict[str, DevicePointer] = {}
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self.images: Any = None  #: kept alive until the outputs are copied

    def load_engine(self) -> None:
        """Deserialize the engine and create its execution context."""
        with capture_messages(self.trt) as (logger, messages):
            try:
                self.library_runtime = self.trt.Runtime(logger)
                # A version-compatible engine contains the runtime of its own version, which has to be allowed.
                if self.engine.options.get("version_compatible"):
                    self.library_runtime.engine_host_code_allowed = True
                self.cuda_engine = self.library_runtime.deserialize_cuda_engine(self.content)
                self.context: Any = None if self.cuda_engine is None else self.cuda_engine.create_execution_context()
            except LIBRARY_ERRORS as error:
                raise self.library_error(f"cannot be loaded: {error}", messages) from error
        if self.context is None:
            raise self.library_error("cannot be loaded", messages)
        self.content = b""

    def library_error(self, problem: str, messages: LibraryMessages) -> RunnerError:
        reason = "; ".join(messages.errors) or "no reason"
        return RunnerError(f"{self.path}: {problem} ({LIBRARY_NAMES[self.runtime]}: {reason}); export it again here.")

    def run(self, images: Images) -> dict[str, OutputArray]:
        self.copy_in(images)
        self.compute()
        return self.copy_out()

    def copy_in(self, images: Images) -> None:
        """Start the copy of images to the GPU and bind all buffers; a torch tensor on the GPU is bound in place."""
        self.driver.activate()  # in every call, because LoadGen calls from a thread of its own
        if is_on_gpu(images):
            self.images = self.to_input_tensor(images)
            self.bind_buffers(tuple(self.images.shape))
            self.bind(self.input_name, self.images.data_ptr())
            return
        self.images = to_host_array(images, expects_uint8=self.expects_uint8)
        self.bind_buffers(self.images.shape)
        if self.image_buffer is None:
            self.image_buffer = self.driver.allocate(self.images.nbytes)
        self.driver.copy_to_device(self.images, self.image_buffer)
        self.bind(self.input_name, self.image_buffer.value)

    def to_input_tensor(self, images: Any) -> Any:
        """Return a GPU tensor in the engine's input type and memory order."""
        if self.expects_uint8:
            require_uint8(images.dtype)
        images = images.detach()
        images = (images if self.expects_uint8 else images.float()).contiguous()
        wait_for_tensor(images)
        return images

    def bind_buffers(self, shape: tuple[int, ...]) -> None:
        """Allocate memory for images of this shape and their outputs, unless that is the present shape."""
        if shape == self.shape:
            return
        self.validate_shape(shape)
        self.free_buffers()
        with capture_messages(self.trt) as (_, messages):
            if not self.context.set_input_shape(self.input_name, shape):
                raise self.library_error(f"does not take images {list(shape)}", messages)
        for name, spec in self.engine.outputs.items():
            output_shape = tuple(self.context.get_tensor_shape(name))
            if any(size < 0 for size in output_shape):
                raise RunnerError(f"{self.path}: the shape of {name} depends on image content, which is not supported.")
            size = np.empty(output_shape, STORAGE_TYPES.get(spec.type, spec.type)).nbytes
            self.output_shapes[name] = output_shape
            self.output_buffers[name] = self.driver.allocate(size)
            self.bind(name, self.output_buffers[name].value)
        self.shape = shape

    def validate_shape(self, shape: tuple[int, ...]) -> None:
        """Raise RunnerError if the engine was built for images of other shapes."""
        axes = list(zip(self.profile.min, self.profile.max, strict=True))
        if len(shape) != 4 or any(not low <= n <= high for n, (low, high) in zip(shape, axes, strict=True)):
            expected = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in axes)
            raise RunnerError(f"{self.path}: found images {list(shape)}, expected [{expected}].")

    def bind(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise RunnerError(f"{self.path}: {name} cannot be bound to GPU memory; export it again here.")

    def compute(self, _: object = None) -> None:
        """Start the engine on the bound images."""
        with capture_messages(self.trt) as (_logger, messages):
            is_started = self.context.execute_async_v3(self.driver.stream.value or 0)
        if not is_started:
            raise self.library_error(f"does not run on images {list(self.shape)}", messages)

    def copy_out(self, _: object = None) -> dict[str, OutputArray]:
        """Copy all outputs to the host and wait for them."""
        arrays = {}
        for name, spec in self.engine.outputs.items():
            arrays[name] = np.empty(self.output_shapes[name], STORAGE_TYPES.get(spec.type, spec.type))
            self.driver.copy_to_host(self.output_buffers[name], arrays[name])
        self.driver.synchronize()
        self.images = None
        return {name: to_output_array(array, self.engine.outputs[name].type) for name, array in arrays.items()}

    def create_event(self) -> CudaEvent:
        """Create a timing event on the runner's stream."""
        return CudaEvent(self.driver)

    def free_buffers(self) -> None:
        for buffer in (self.image_buffer, *self.output_buffers.values()):
            if buffer is not None:
                self.driver.free(buffer)
        self.shape, self.image_buffer, self.output_buffers = (), None, {}

    def close(self) -> None:
        self.driver.activate()
        self.free_buffers()
        self.driver.destroy_stream()
        del self.context, self.cuda_engine, self.library_runtime


def to_output_array(array: NDArray[Any], kind: str) -> OutputArray:
    """Convert floats to float32 and bool to uint8; other integers stay."""
    if kind == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if kind == "bool":
        return array.astype(np.uint8)
    return array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array
