"""Atomic output: files are written to a hidden directory and renamed once they are verified."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compress.files import read_umask
from exporters.errors import UnwritableError


@contextlib.contextmanager
def temporary_output(path: Path) -> Iterator[Path]:
    """Yield a path with the same name in a hidden directory beside `path`, which is removed afterwards.

    Companion files (weights, metadata) are written beside it and may refer to it, because names do not change.

    Raises:
        UnwritableError: The directory cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        directory = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise unwritable_error(path, error) from error
    with directory as name:
        yield Path(name) / path.name


def commit_output(draft: Path, path: Path) -> None:
    """Flush a temporary output and its companions to disk and rename them, the file itself last.

    Raises:
        UnwritableError: A file cannot be written; `path` is unchanged.
    """
    files = sorted(draft.parent.iterdir(), key=lambda file: file == draft)
    mask = read_umask()
    try:
        for file in files:
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            os.chmod(file, 0o666 & ~mask)
        for file in files:
            os.replace(file, path.parent / file.name)
    except OSError as error:
        raise unwritable_error(path, error) from error


def unwritable_error(path: Path, error: OSError) -> UnwritableError:
    return UnwritableError(f"{path}: cannot be written ({error.strerror}); choose another output path.")


def total_size(path: Path) -> int:
    """Return the bytes of all files in the directory of a temporary output."""
    return sum(file.stat().st_size for file in path.parent.iterdir())
