"""Output of commands: results to standard output, status lines to standard error.

All text is printed here, without characters that could change the terminal; JSON escapes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from compress.files import sanitize_lines

Result = TypeVar("Result")


def emit(result: Result | None, as_json: bool, format_text: Callable[[Result], str]) -> None:
    """Print `result` as one JSON object or as text; nothing for None (a helper process of torchrun)."""
    if result is None:
        return
    text = json.dumps(to_json(result)) if as_json else sanitize_lines(format_text(result))
    if text:
        click.echo(text)


def to_json(value: Any) -> Any:
    """Convert a result to mappings, lists and scalars of JSON. NaN and infinity become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence | set) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def prepare_streams() -> None:
    """Make the standard streams safe to write: closed ones discard text, unknown characters are escaped.

    Without this a file that the command opens could get the number of a closed stream, and receive messages.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115 - for the whole process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_status(message: str) -> None:
    """Print a message to standard error, if anybody reads it."""
    with contextlib.suppress(OSError):
        click.echo(sanitize_lines(message.expandtabs(4)), err=True)


def print_error(message: str, code: int) -> int:
    """Print `message` to standard error and return `code`."""
    print_status(f"Error: {message}")
    return code


def print_traceback() -> None:
    """Print the traceback of the current error to standard error."""
    click.echo(sanitize_lines(traceback.format_exc()), err=True)


def command_line() -> str:
    """Return the command as the user would type it, for the records."""
    return shlex.join(["compress", *sys.argv[1:]])
