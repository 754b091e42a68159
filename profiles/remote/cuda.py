"""As much of CUDA's driver as an engine needs: memory, copies, a stream, and events that time them.

By ctypes, because the driver is there wherever a GPU works, and PyTorch or a binding of CUDA's for Python need not be.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from profiles.remote.order import Refused

LIBRARY = "libcuda.so.1"
#: of all that takes flags
PLAIN = 0
Pointer = ctypes.c_uint64
Handle = ctypes.c_void_p


class Driver:
    """The first GPU, in the context that TensorRT uses too. Raises Refused where there is none."""

    def __init__(self, library: Any = None) -> None:
        try:
            self.library = ctypes.CDLL(LIBRARY) if library is None else library
        except OSError as error:
            raise Refused("there is no NVIDIA driver there, which an engine needs") from error
        self.call("cuInit", ctypes.c_uint(PLAIN))
        device, context = ctypes.c_int(), Handle()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.device = device

    def call(self, function: str, *arguments: Any) -> None:
        """Raises Refused, in the driver's words, where it does not do it."""
        code = getattr(self.library, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            raise Refused(f"the GPU there: {function} fails ({(text.value or b'no reason').decode()})")

    @cached_property
    def uuid(self) -> str:
        """Of the GPU, as NVML has it but for its prefix."""
        found = (ctypes.c_ubyte * 16)()
        self.call("cuDeviceGetUuid", ctypes.byref(found), self.device)
        return str(UUID(bytes=bytes(found)))

    @cached_property
    def stream(self) -> Handle:
        """One for all that is done."""
        found = Handle()
        self.call("cuStreamCreate", ctypes.byref(found), ctypes.c_uint(PLAIN))
        return found

    def room(self, size: int) -> Pointer:
        """Memory of the GPU for so many bytes; kept until the process ends."""
        found = Pointer()
        self.call("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(max(1, size)))
        return found

    def copy_in(self, array: NDArray[Any], place: Pointer) -> None:
        self.call("cuMemcpyHtoDAsync_v2", place, pointer(array), ctypes.c_size_t(array.nbytes), self.stream)

    def copy_out(self, place: Pointer, array: NDArray[Any]) -> None:
        self.call("cuMemcpyDtoHAsync_v2", pointer(array), place, ctypes.c_size_t(array.nbytes), self.stream)

    def wait(self) -> None:
        """Until all that was asked for is done."""
        self.call("cuStreamSynchronize", self.stream)


class Event:
    """A mark in the stream's order of work, as `profiles.latency.gpu.StageEvent` wants one."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.handle = driver, Handle()
        driver.call("cuEventCreate", ctypes.byref(self.handle), ctypes.c_uint(PLAIN))

    def record(self) -> None:
        self.driver.call("cuEventRecord", self.handle, self.driver.stream)

    def synchronize(self) -> None:
        self.driver.call("cuEventSynchronize", self.handle)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this mark to another."""
        found = ctypes.c_float()
        self.driver.call("cuEventElapsedTime", ctypes.byref(found), self.handle, end_event.handle)
        return found.value


def pointer(array: NDArray[np.generic]) -> Handle:
    return Handle(array.ctypes.data)
