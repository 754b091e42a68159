"""Writing files so that a crash, a full disk or a kill never costs the user what was there before."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from compress.errors import CompressError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` only once it is complete and on the disk.

    Written beside the target as a hidden temporary file, then fsync, rename, fsync of the folder. If anything fails the
    target is as it was and the temporary file is gone. Raises CompressError where the disk is full or the folder
    cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise write_failed(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~current_umask())
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise write_failed(path, error) from error
        raise


def current_umask() -> int:
    """The process's file mask, which can only be read by setting it: one thread at a time."""
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


_UMASK = threading.Lock()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a loss of power, where the system allows a folder to be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_failed(path: Path, error: OSError) -> CompressError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CompressError(
            f"{path}: the disk is full; what was there before is intact. Free some space and run again."
        )
    return CompressError(f"{path}: cannot be written ({error.strerror or error}); choose another folder with --out.")


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    """`content` as indented JSON; NaN is refused, for other readers would choke on it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
