"""Detect the kind of a model file with the reader that torch loads it with, and bound what it unpacks to.

Other readers of zip archives may see other records in the same file, so they are not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from compress.errors import CompressError
from compress.files import require_regular_file

FileKind = Literal["weights", "program", "script", "onnx"]

#: archives store tensors uncompressed; one that unpacks to far more than its size is a decompression bomb
BOMB_RATIO, BOMB_SLACK = 20, 64 * 2**20
ARCHIVE_START = b"PK\x03\x04"


def detect_file_kind(path: Path) -> FileKind:
    """The kind of a model file: ONNX from its suffix, all else from its content.

    Raises:
        UsageError: It is not a regular file.
        CompressError: It is damaged or a file for another runtime.
    """
    require_regular_file(path)
    if path.suffix.lower() == ".onnx":
        return "onnx"
    if path.suffix.lower() in (".xml", ".engine"):
        raise CompressError(
            f"{path}: a file for OpenVINO or TensorRT, which contains no network; give the model that it was exported "
            "from, or measure it with `compress eval` or `compress bench`."
        )
    if not is_archive(path):
        if path.suffix == ".pt2":
            raise CompressError(f"{path}: truncated or not a torch.export program; export it again.")
        return "weights"
    _, names = open_archive(path)
    if path.suffix == ".pt2" or "archive_format" in names:
        return "program"
    return "script" if "constants.pkl" in names else "weights"


def is_archive(path: Path) -> bool:
    """Whether torch reads a file as a zip archive."""
    try:
        with open(path, "rb") as file:
            return file.read(len(ARCHIVE_START)) == ARCHIVE_START
    except OSError as error:
        raise CompressError(f"{path}: cannot be read ({error.strerror}).") from error


def open_archive(path: Path) -> tuple[Any, list[str]]:
    """Open an archive with torch's reader; return it and the names of its records.

    Raises CompressError if the archive is damaged.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        return reader, reader.get_all_records()
    except (RuntimeError, UnicodeError, ValueError) as error:
        raise CompressError(f"{path}: truncated or damaged; copy or export it again.") from error


def check_unpacked_size(path: Path, reader: Any, names: Iterable[str]) -> None:
    """Refuse an archive that unpacks to far more than its size."""
    try:
        size = sum(reader.get_record_size(name) for name in names)
    except RuntimeError as error:
        raise CompressError(f"{path}: truncated or damaged; copy or export it again.") from error
    room = unpacked_size_limit(path)
    if size > room:
        raise CompressError(
            f"{path}: refused: {path.stat().st_size} bytes that unpack to {size}, a decompression bomb."
        )


def unpacked_size_limit(path: Path) -> int:
    """Bytes that the contents of a file can have in memory."""
    return BOMB_RATIO * path.stat().st_size + BOMB_SLACK


def unsafe_file_error(path: Path, what: str) -> CompressError:
    return CompressError(
        f"{path}: refused: found {what}, which could run code; export it again from the network, or load it with "
        "--trust-pickle if you trust it."
    )
