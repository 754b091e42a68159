"""Import code of the user, named `package.module:name`, and start processes that import nothing else of the user's."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from compress.errors import UsageError, first_line

#: runs a module of this package as a program; its arguments are the search path, the module, and those of the module
CHILD_SCRIPT = (
    "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); sys.argv.pop(0); "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def import_object(spec: str, expected: str) -> Any:
    """Import what `spec` names from the working directory or the Python path.

    Only the user's own words may come here: a command line, or arguments from Python. A name that was read from a file
    needs the user's consent first (`compress.training.trust`).

    Args:
        spec: `package.module:name`.
        expected: What the caller expects, for the error.

    Raises:
        UsageError: It cannot be imported.
    """
    module, _, name = spec.partition(":")
    if not all([*module.split("."), name]):
        raise UsageError(f"{spec}: not the name of Python code, expected {expected}.")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # an installed script does not look here, `python -m` does
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's code runs here
        raise UsageError(
            f"{spec}: cannot be imported ({first_line(error)}); expected {expected}, here or on the Python path."
        ) from error


def child_path() -> list[str]:
    """Return the search path of this process for a child, without the working directory.

    A file there that is named like a module, such as `ctypes.py`, must not run. If this package itself is there, the
    directory comes last. `import_object` adds it where the user names code.
    """
    here = os.path.realpath(os.getcwd())
    safe = [path for path in sys.path if path and os.path.realpath(path) != here]
    root = str(Path(__file__).resolve().parents[1])
    return [*safe, root] if root == here else safe


def child_command(module: str, *arguments: str, script: str = CHILD_SCRIPT) -> list[str]:
    """Return the command that runs a module of this package with Python, with `child_path` as its search path."""
    return [sys.executable, "-P", "-c", script, os.pathsep.join(child_path()), module, *arguments]
