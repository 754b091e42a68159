"""Errors of the package. `exit_code` is the exit code of a command that fails with the error."""

from __future__ import annotations

import re
from pathlib import Path

from compress.errors import CompressError

#: terminal color sequences in error messages of PyTorch's exporter
ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class ExportError(CompressError):
    """The model cannot be exported, or the exported file does not match it. No file is kept."""


class RejectedError(ExportError):
    """The exported file runs, but its outputs differ too much or it is slower than fp32."""


class UnwritableError(ExportError):
    """The output file or directory cannot be written."""


class RunnerError(CompressError):
    """A model file cannot be run: damaged, of another kind, or for another device."""


class RuntimeUnavailableError(RunnerError):
    """A runtime, its provider or its device is not available on this machine."""


class MissingFileError(RunnerError):
    """The model file does not exist."""

    exit_code = 2


def first_line(error: BaseException, length: int = 200) -> str:
    """Return the first line of an error, or of its cause, cut to `length` characters."""
    text = ANSI_COLOR.sub("", str(error.__cause__ or error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:length]


def damaged_file_error(path: Path, reason: str) -> RunnerError:
    return RunnerError(
        f"{path}: cannot be loaded as ONNX ({reason}); the file is damaged or no ONNX file: export it again."
    )


def require_file(path: Path, kind: str) -> None:
    """Raise MissingFileError if there is no file at `path`."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected {kind}.")
