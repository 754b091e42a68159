"""Atomic writes, file locks, hashes and terminal-safe text."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from compress.errors import CompressError, UsageError, first_line

#: what a file system without locks answers
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
#: the disk is full, may not be written to, or fails
WRITE_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
#: what a system that cannot sync this directory answers
NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
#: Pillow's names of the formats in which pictures are opened. Others start programs (EPS: Ghostscript), open a picture
#: inside in any format (IPTC) or unpack without a limit (FITS).
RASTER_FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN",
    "TGA", "TIFF", "WEBP",
)  # fmt: skip
_UMASK = threading.Lock()


class WriteError(CompressError):
    """A file or directory cannot be written: the disk is full, read-only or broken."""


@contextlib.contextmanager
def atomic_write(path: Path, *, size: int | None = None) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` only when it is complete and on the disk.

    The content goes to a hidden temporary file beside the target, which is then synced and renamed.
    If anything fails before the rename, the target is unchanged and the temporary file is removed.

    Args:
        path: The file to replace; its directory is created.
        size: Bytes that will be written, for the message of an error; None: unknown.

    Raises:
        WriteError: The disk is full or the directory cannot be written.
    """
    path = Path(path)
    try:
        make_directory(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise write_error(path, error, size) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~read_umask())
        os.replace(name, path)
        fsync_dir(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise write_error(path, error, size) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically (see `atomic_write`)."""
    with atomic_write(path, size=len(content)) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` atomically as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write `content` atomically as indented JSON. Raises ValueError for NaN, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file that can be computed again; empty if the file is missing or damaged."""
    try:
        content = json.loads(require_regular_file(path).read_bytes())
    except (OSError, UsageError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def append_bytes(path: Path, content: bytes) -> None:
    """Append `content` to a file, all of it or nothing. Raises OSError if that fails."""
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power loss. Raises OSError if that fails."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_error(path: Path | str, error: OSError, size: int | None = None) -> WriteError:
    """The error to raise when `path`, of `size` bytes, cannot be written."""
    return WriteError(f"{path}: cannot be written: {describe_write_failure(Path(path), error, size)}")


def describe_write_failure(path: Path, error: OSError, size: int | None = None) -> str:
    """Return why `path` cannot be written and what to do, with the space that is free and that is required."""
    required = "" if size is None else f", expected {max(size / 1e6, 0.1):,.1f} MB"
    if error.errno == errno.ENOSPC:
        free_bytes, free_files = free_space(path)
        if not free_files:
            return "the disk is full, because it has no free inodes; remove some files and retry."
        return f"the disk is full: found {free_bytes / 1e6:,.1f} MB free{required}; free some space and retry."
    if error.errno == errno.EDQUOT:
        return f"your disk quota is used up{required}; remove some files and retry."
    if error.errno == errno.EROFS:
        return "the file system is read-only; choose another directory with --out."
    if error.errno == errno.EIO:
        return "the disk reports an input/output error; check the disk, or choose another one with --out."
    return f"{error.strerror or error}; choose another directory with --out."


def free_space(path: Path) -> tuple[int, int]:
    """Return the free bytes of the disk of `path`, and its free inodes; 1 inode if their number is unlimited."""
    for parent in (path, *path.absolute().parents):
        with contextlib.suppress(OSError, ValueError):
            status = os.statvfs(parent)
            return status.f_bavail * status.f_frsize, status.f_favail if status.f_files else 1
    return 0, 1


def make_directory(directory: Path) -> None:
    """Create a directory and its parents, so that they survive a power loss. Raises OSError if that fails."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    if missing:
        directory.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        fsync_dir(path.parent)


def require_regular_file(path: Path) -> Path:
    """Return `path` if it is a regular file, or a link to one.

    Opening a named pipe waits for its writer, and a device such as /dev/zero never ends.

    Raises:
        UsageError: it is missing, a directory, a named pipe, a device or a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read ({reason}); give an existing file.") from error
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path}: found {describe_file_type(mode)}, expected a regular file.")
    return Path(path)


def describe_file_type(mode: int) -> str:
    """Return the type of a file with its article; `mode` is that of `os.stat`."""
    kinds = {
        stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_umask() -> int:
    """The umask of this process. It can only be read by setting it, so one thread at a time does."""
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def fsync_dir(directory: Path) -> None:
    """Make the entries of `directory` survive a power loss, if the system can sync directories."""
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_DIRECTORY_SYNC:
            raise


class LockHeldError(CompressError):
    """Another process holds a lock; `holder` is its process id as text, or empty."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path.parent}: in use by process {holder or '?'}; wait for it, or choose another directory.")
        self.holder = holder


@contextlib.contextmanager
def file_lock(path: Path, *, wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`, which contains the process id of its holder.

    The lock ends with the process, so no stale locks remain.

    Args:
        path: File to lock; created if missing, kept afterwards.
        wait: Called once before waiting for another holder. None: do not wait.

    Yields:
        False if the file system has no locks, else True.

    Raises:
        LockHeldError: Another process holds the lock and `wait` is None.
        OSError: The file cannot be opened.
    """
    with open(path, "a+", encoding="utf-8") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if wait is None:
                file.seek(0)
                raise LockHeldError(Path(path), file.read().strip()) from error
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield locked


@contextlib.contextmanager
def lock_open_file(file: IO[Any]) -> Iterator[None]:
    """Hold an exclusive lock on an open file, after waiting for other holders."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory, after waiting for other holders; none if the file system has no locks."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (*NO_LOCKS, errno.EBADF):  # NFS locks only what is open for writing
                raise
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock `path` (see `file_lock` and `lock_directory`)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def is_utf8(path: Path) -> bool:
    """Whether the name of a file is UTF-8; libraries that are not Python's cannot open another one."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_hash(content: Mapping[str, Any], key: str = "sha256") -> dict[str, Any]:
    """Return JSON content in which `key` is the SHA-256 of everything else."""
    rest = {name: value for name, value in content.items() if name != key}
    return rest | {key: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def require_inside(folder: Path, path: Path) -> Path:
    """Return the resolved `path` if it lies inside `folder`, after links are followed.

    Raises:
        UsageError: it lies elsewhere.
    """
    try:
        resolved, inside = (folder / path).resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: cannot be read ({first_line(error)}); give an existing file.") from error
    if not resolved.is_relative_to(inside):
        raise UsageError(f"{path}: found a path out of {folder}, expected one inside it.")
    return resolved


def sanitize(text: str, replacement: str = "?") -> str:
    """`text` without characters that could change a terminal, break a table or hide other characters.

    These are control characters, line ends, bidirectional overrides, invisible characters and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else " " if unicodedata.category(letter) == "Zs" else replacement
        for letter in text
    )


def sanitize_lines(text: str) -> str:
    """`text` as `sanitize` returns it, with its line ends."""
    return "\n".join(map(sanitize, text.split("\n")))
