"""Import of the runtimes' packages, which need not be installed."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from compress.errors import first_line
from exporters.errors import RuntimeUnavailableError

#: errors that an import, or a call into a runtime's library, may raise
LIBRARY_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, OSError, ImportError)


def import_package(module: str, name: str, distribution: str) -> Any:
    """Import a runtime's module.

    Args:
        module: Name of the module.
        name: Name of the runtime in error messages.
        distribution: Name of its package for pip.

    Raises:
        RuntimeUnavailableError: The package is missing or does not load; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except LIBRARY_ERRORS as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise RuntimeUnavailableError(f"{name} is not installed; {install_hint(distribution)}.") from error
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        raise RuntimeUnavailableError(
            f"{name} is installed but does not load ({first_line(error)}); {install_hint(missing or distribution)}."
        ) from error


def install_hint(distribution: str) -> str:
    """Return the sentence that says how to install a package for this Python."""
    return f"install it with: {sys.executable} -m pip install {distribution}"


def parse_version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, `10.13.3.9` as (10, 13, 3, 9).

    Raises:
        ValueError: The text does not begin with a number.

    Example:
        >>> parse_version("10.13.3.9") > parse_version("10.2")
        True
    """
    match = re.match(r"\d+(?:\.\d+)*", text)
    if match is None:
        raise ValueError(f"found {text!r}, expected a version such as 10.13.3")
    return tuple(int(part) for part in match[0].split("."))
