"""Atomic output: files are written to a hidden directory and renamed once they are verified."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from compress.errors import UsageError
from compress.files import (
    WRITE_FAILURES,
    describe_write_failure,
    fsync_dir,
    is_locked,
    is_utf8,
    lock_directory,
    make_directory,
    read_umask,
    sync_file,
)
from exporters.errors import UnwritableError

DRAFT_SUFFIX = ".draft"
#: a younger directory of drafts may not be locked yet
DRAFT_SECONDS = 60


@contextlib.contextmanager
def temporary_output(path: Path) -> Iterator[Path]:
    """Yield a path with the same name in a hidden directory beside `path`, which is removed afterwards.

    Companion files (weights, metadata) are written beside it and may refer to it, because names do not change. Removes
    what killed processes have left of the same output.

    Raises:
        UsageError: The path is not UTF-8.
        UnwritableError: The directory cannot be written, or the disk becomes full meanwhile.
    """
    if not is_utf8(path):
        raise UsageError(f"{path}: found a name that is not UTF-8, which libraries of ONNX cannot open; use another.")
    try:
        make_directory(path.parent)
        remove_old_drafts(path)
        directory = tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", suffix=DRAFT_SUFFIX, dir=path.parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise unwritable_error(path, error) from error
    with directory as name, lock_directory(Path(name)):
        draft = Path(name) / path.name
        try:
            yield draft
        except OSError as error:
            if error.errno not in WRITE_FAILURES:
                raise
            raise unwritable_error(path, error, total_size(draft)) from error


def remove_old_drafts(path: Path) -> None:
    """Remove the directories in which killed processes were writing `path`; the lock of a process ends with it."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}{re.escape(DRAFT_SUFFIX)}")
    entries = list(path.parent.iterdir()) if os.access(path.parent, os.R_OK) else []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # another process removes it, too
            is_draft = pattern.fullmatch(entry.name) and not entry.is_symlink() and entry.is_dir()
            if is_draft and time.time() - entry.stat().st_mtime > DRAFT_SECONDS and not is_locked(entry):
                shutil.rmtree(entry, ignore_errors=True)


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
        with lock_directory(path.parent):  # two processes must not mix their companions
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
