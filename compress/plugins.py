"""Import code of the user, named `package.module:name`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from compress.errors import UsageError


def import_object(spec: str, expected: str) -> Any:
    """Import what `spec` names from the working directory or the Python path.

    Args:
        spec: `package.module:name`.
        expected: What the caller expects, for the error.

    Raises:
        UsageError: It cannot be imported.
    """
    module, _, name = spec.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # an installed script does not look here, `python -m` does
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{spec}: cannot be imported ({error}); expected {expected}, here or on the Python path."
        ) from error
