"""The libraries TensorRT and TensorRT-RTX, which have the same interface in modules of different names."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from exporters.errors import RuntimeUnavailableError
from exporters.packages import import_package, install_hint, parse_version

EngineKind = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
DISTRIBUTIONS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx-cu13"}
LIBRARY_NAMES: dict[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
MIN_VERSIONS = {"tensorrt": (10, 0), "tensorrt-rtx": (1, 1)}


def import_library(kind: EngineKind) -> Any:
    """Return the module of TensorRT or TensorRT-RTX.

    Raises:
        RuntimeUnavailableError: It is not installed, does not load or is too old; the message says what to install.
    """
    name, distribution, oldest = LIBRARY_NAMES[kind], DISTRIBUTIONS[kind], MIN_VERSIONS[kind]
    module = import_package(MODULES[kind], name, distribution)
    version = str(getattr(module, "__version__", ""))
    try:
        is_supported = parse_version(version) >= oldest
    except ValueError:
        is_supported = False
    if not is_supported:
        expected = ".".join(map(str, oldest))
        raise RuntimeUnavailableError(
            f"{name}: found version {version or 'unknown'}, expected {expected} or newer; {install_hint(distribution)}."
        )
    return module


@dataclass(frozen=True)
class LibraryMessages:
    """Messages of a library, one line each, without duplicates."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def capture_messages(trt: Any) -> Iterator[tuple[Any, LibraryMessages]]:
    """Yield the library's logger and the messages that arrive in this context, except in a nested one."""
    logger, messages = get_logger(trt.ILogger), LibraryMessages()
    logger.listeners.append(messages)
    try:
        yield logger, messages
    finally:
        # compared by identity, because two lists of messages may be equal
        logger.listeners[:] = [listener for listener in logger.listeners if listener is not messages]


@functools.cache
def get_logger(interface: Any) -> Any:
    """Return the process's logger: a library keeps the first logger that it was given as long as its objects live."""
    severity = interface.Severity

    class Logger(interface):
        def __init__(self) -> None:
            interface.__init__(self)
            self.listeners: list[LibraryMessages] = []

        def log(self, level: Any, message: str) -> None:
            line = " ".join(message.split())
            messages = self.listeners[-1] if self.listeners else LibraryMessages()
            lines = {
                severity.WARNING: messages.warnings,
                severity.ERROR: messages.errors,
                severity.INTERNAL_ERROR: messages.errors,
            }
            if level in lines and line not in lines[level]:
                lines[level].append(line)

    return Logger()
