"""A file takes its name only once it has proven itself: drafts in a hidden folder, then a rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exporters.failure import UnwritableError


@contextlib.contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """A draft of `path` under its own name in a hidden folder beside it, which is gone afterwards.

    What goes with the file (weights, a description) is written beside the draft, and may name it: names stay.
    Raises UnwritableError for a folder that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise unwritable(path, error) from error
    with folder as name:
        yield Path(name) / path.name


def publish(draft: Path, path: Path) -> None:
    """Make the draft and what stands beside it last, and give them their names; the file itself comes last.

    Raises UnwritableError where they cannot be written; `path` is then what it was.
    """
    parts = sorted(draft.parent.iterdir(), key=lambda part: part == draft)
    mask = os.umask(0)
    os.umask(mask)
    try:
        for part in parts:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~mask)
        for part in parts:
            os.replace(part, path.parent / part.name)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UnwritableError:
    return UnwritableError(f"{path}: cannot be written ({error.strerror}); choose another file with --out.")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a draft and of what goes with it."""
    return sum(part.stat().st_size for part in path.parent.iterdir())
