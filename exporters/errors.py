"""Errors of the package. `exit_code` is the exit code of a command that fails with the error."""

from __future__ import annotations

from pathlib import Path

from compress.errors import CompressError


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


def damaged_file_error(path: Path, reason: str) -> RunnerError:
    return RunnerError(
        f"{path}: cannot be loaded as ONNX ({reason}); the file is damaged or no ONNX file: export it again."
    )


def require_file(path: Path, kind: str) -> None:
    """Raise MissingFileError if there is no file at `path`."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected {kind}.")
