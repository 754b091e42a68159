"""Atomic output: files are written to a hidden directory and renamed once they are verified."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compress.errors import UsageError
from compress.files import (
    WRITE_FAILURES,
    describe_write_failure,
    fsync_dir,
    is_utf8,
    make_directory,
    read_umask,
    sync_file,
)
from exporters.errors import UnwritableError


@contextlib.contextmanager
def temporary_output(path: Path) -> Iterator[Path]:
    """Yield a path with the same name in a hidden directory beside `path`, which is removed afterwards.

    Companion files (weights, metadata) are written beside it and may refer to it, because names do not change.

    Raises:
        UsageError: The path is not UTF-8.
        UnwritableError: The directory cannot be written, or the disk becomes full meanwhile.
    """
    if not is_utf8(path):
        raise UsageError(f"{path}: found a name that is not UTF-8, which libraries of ONNX cannot open; use another.")
    try:
        make_directory(path.parent)
        directory = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise unwritable_error(path, error) from error
    with directory as name:
        draft = Path(name) / path.name
        try:
            yield draft
        except OSError as error:
            if error.errno not in WRITE_FAILURES:
                raise
            raise unwritable_error(path, error, total_size(draft)) from error


def commit_output(draft: Path, path: Path) -> None:
    """Flush a temporary output and its companions to disk and rename them, the file itself last.

    With companions, the old file is removed first: an interruption leaves no file, not an old one with new weights.

    Raises:
        UnwritableError: A file cannot be written; without companions, `path` is unchanged.
    """
    files = sorted(draft.parent.iterdir(), key=lambda file: file == draft)
    mask = read_umask()
    try:
        for file in files:
            sync_file(file)
            os.chmod(file, 0o666 & ~mask)
        if len(files) > 1 and path.exists():
            path.unlink()
            fsync_dir(path.parent)
        for file in files:
            os.replace(file, path.parent / file.name)
        fsync_dir(path.parent)
    except OSError as error:
        raise unwritable_error(path, error, total_size(draft)) from error


def unwritable_error(path: Path, error: OSError, size: int | None = None) -> UnwritableError:
    """The error to raise when `path`, of at least `size` bytes, cannot be written."""
    return UnwritableError(f"{path}: cannot be written: {describe_write_failure(path, error, size)}")


def total_size(path: Path) -> int:
    """Return the bytes of all files in the directory of a temporary output."""
    return sum(file.stat().st_size for file in path.parent.iterdir())
