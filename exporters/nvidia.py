"""The libraries TensorRT and TensorRT-RTX, which differ in the name of the module, and the GPU that is here."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator

from exporters.failure import first_line

Kind = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NAMES: dict[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
OLDEST = {"tensorrt": Version("10"), "tensorrt-rtx": Version("1.1")}
#: what an import, or a call into the library, may raise
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, OSError, ImportError)


def numbers(text: str) -> str:
    """A version that can be compared, as it was. Raises ValueError for another text."""
    Version(text)
    return text


Numbers = Annotated[str, AfterValidator(numbers)]


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: Numbers  #: compute capability, "8.9"


def library(kind: Kind, failure: type[Exception]) -> Any:
    """The module of TensorRT or TensorRT-RTX. Raises `failure`, with what to install, where none is that fits."""
    module, install = MODULES[kind], f'pip install "compress[{kind}]"'
    try:
        found = importlib.import_module(module)
        version = Version(str(found.__version__))
    except (*FAILURES, InvalidVersion) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise failure(f"{NAMES[kind]} is not installed; install it with: {install}.") from error
        why = f"{NAMES[kind]} is installed, but does not load here ({first_line(error)})"
        raise failure(f"{why}; install it anew with: {install}.") from error
    if version < OLDEST[kind]:
        raise failure(f"found {NAMES[kind]} {version}, expected {OLDEST[kind]} or newer; install it with: {install}.")
    return found


@dataclass(frozen=True)
class Said:
    """What a library said in the meantime, each message in one line and none twice."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def hearing(trt: Any) -> Iterator[tuple[Any, Said]]:
    """The logger of a library, and what it says until the end of the context, except to a context within."""
    logger, said = logger_of(trt.ILogger), Said()
    logger.listeners.append(said)
    try:
        yield logger, said
    finally:
        # by identity, for two may have heard the same
        logger.listeners[:] = [one for one in logger.listeners if one is not said]


@functools.cache
def logger_of(interface: Any) -> Any:
    """One for the process: while anything of a library lives, it goes on using the first logger that it was given."""
    severity = interface.Severity

    class Journal(interface):
        def __init__(self) -> None:
            interface.__init__(self)
            self.listeners: list[Said] = []

        def log(self, level: Any, message: str) -> None:
            line = " ".join(message.split())
            said = self.listeners[-1] if self.listeners else Said()
            kept = {severity.WARNING: said.warnings, severity.ERROR: said.errors, severity.INTERNAL_ERROR: said.errors}
            if level in kept and line not in kept[level]:
                kept[level].append(line)

    return Journal()


def gpu_here() -> Gpu | None:
    """The GPU that PyTorch uses; None where there is none, or no driver."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(found.name, f"{found.major}.{found.minor}")


def no_gpu() -> str:
    why = "finds none here" if torch.version.cuda else "is built without CUDA here"
    return f"an NVIDIA GPU with its driver, and PyTorch {why}"
