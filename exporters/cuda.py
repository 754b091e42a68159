"""The part of the CUDA driver that TensorRT engines need: memory, copies, a stream and timing events.

It is called through ctypes, because the driver exists wherever a GPU works, unlike PyTorch or CUDA's Python bindings.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from exporters.errors import RuntimeUnavailableError

LIBRARY = "libcuda.so.1"
#: value of every `flags` argument
NO_FLAGS = 0
#: numbers of device attributes in the driver API
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
NAME_BYTES = 256
NO_GPU = "an NVIDIA GPU with its driver, and none was found"
DevicePointer = ctypes.c_uint64
Handle = ctypes.c_void_p


@dataclass(frozen=True)
class Gpu:
    """A GPU model."""

    name: str
    capability: str  #: compute capability, such as "8.9"


def load_library() -> Any:
    """Return the driver, initialized.

    Raises:
        RuntimeUnavailableError: There is no driver, or it does not start.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise RuntimeUnavailableError("no NVIDIA driver is installed, but a CUDA device was requested.") from error
    call(library, "cuInit", ctypes.c_uint(NO_FLAGS))
    return library


def call(library: Any, function: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        RuntimeUnavailableError: The function fails; the message is the driver's.
    """
    code = getattr(library, function)(*arguments)
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
        raise RuntimeUnavailableError(f"CUDA driver: {function} fails ({(text.value or b'no reason').decode()}).")


def first_device(library: Any) -> ctypes.c_int:
    device = ctypes.c_int()
    call(library, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    return device


def detect_gpu() -> Gpu | None:
    """Return the first GPU that CUDA shows, or None."""
    try:
        library = load_library()
        device = first_device(library)
        name = ctypes.create_string_buffer(NAME_BYTES)
        call(library, "cuDeviceGetName", name, ctypes.c_int(NAME_BYTES), device)
        capability = [ctypes.c_int(), ctypes.c_int()]
        for value, attribute in zip(capability, (CAPABILITY_MAJOR, CAPABILITY_MINOR), strict=True):
            call(library, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
    except RuntimeUnavailableError:
        return None
    return Gpu(name.value.decode(), f"{capability[0].value}.{capability[1].value}")


def gpu_uuid() -> str | None:
    """Return the NVML identifier of the first GPU, without the prefix `GPU-`, or None without a GPU."""
    try:
        library = load_library()
        value = (ctypes.c_ubyte * 16)()
        call(library, "cuDeviceGetUuid", ctypes.byref(value), first_device(library))
    except RuntimeUnavailableError:
        return None
    return str(UUID(bytes=bytes(value)))


class CudaDriver:
    """The first GPU in its primary context, which PyTorch and TensorRT use as well.

    Raises:
        RuntimeUnavailableError: There is no GPU or no driver.
    """

    def __init__(self) -> None:
        self.library = load_library()
        self.device = first_device(self.library)
        self.context = Handle()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.activate()

    def call(self, function: str, *arguments: Any) -> None:
        call(self.library, function, *arguments)

    def activate(self) -> None:
        """Make the GPU's context current in the calling thread."""
        self.call("cuCtxSetCurrent", self.context)

    @cached_property
    def stream(self) -> Handle:
        """The stream of all copies and launches."""
        stream = Handle()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(NO_FLAGS))
        return stream

    def allocate(self, size: int) -> DevicePointer:
        """Return device memory of `size` bytes."""
        pointer = DevicePointer()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        return pointer

    def free(self, pointer: DevicePointer) -> None:
        self.call("cuMemFree_v2", pointer)

    def copy_to_device(self, array: NDArray[Any], target: DevicePointer) -> None:
        """Start a copy. The array must live until `synchronize` returns."""
        self.call("cuMemcpyHtoDAsync_v2", target, host_pointer(array), ctypes.c_size_t(array.nbytes), self.stream)

    def copy_to_host(self, source: DevicePointer, array: NDArray[Any]) -> None:
        """Start a copy. The array is complete when `synchronize` returns."""
        self.call("cuMemcpyDtoHAsync_v2", host_pointer(array), source, ctypes.c_size_t(array.nbytes), self.stream)

    def synchronize(self) -> None:
        """Wait until all work of the stream is done."""
        self.call("cuStreamSynchronize", self.stream)

    def destroy_stream(self) -> None:
        self.call("cuStreamDestroy_v2", self.stream)
        del self.stream


class CudaEvent:
    """A timing event on the driver's stream, with the methods of `torch.cuda.Event`."""

    def __init__(self, driver: CudaDriver) -> None:
        self.driver, self.handle = driver, Handle()
        driver.call("cuEventCreate", ctypes.byref(self.handle), ctypes.c_uint(NO_FLAGS))

    def record(self) -> None:
        self.driver.call("cuEventRecord", self.handle, self.driver.stream)

    def synchronize(self) -> None:
        self.driver.call("cuEventSynchronize", self.handle)

    def elapsed_time(self, end_event: CudaEvent) -> float:
        """Return the milliseconds from this event to another."""
        milliseconds = ctypes.c_float()
        self.driver.call("cuEventElapsedTime", ctypes.byref(milliseconds), self.handle, end_event.handle)
        return milliseconds.value


def host_pointer(array: NDArray[np.generic]) -> Handle:
    return Handle(array.ctypes.data)
