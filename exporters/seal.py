"""A hash at the end of exported files: runtimes load weights with flipped bits without an error.

An ONNX file ends with an entry of its metadata, an OpenVINO file with a comment. Files of other software have no seal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from exporters.errors import RunnerError

#: key of the entry, which other software may remove after it has edited a file
KEY = "compress_seal"
#: what ends a sealed file, even if one bit of it has changed; the metadata in an .xml file can contain the key too
SEALED = re.compile(rb"compress_seal\x12|sha256:[0-9a-f]{64}\Z")
SEALED_XML = re.compile(rb"<!-- compress_seal|sha256:[0-9a-f]{64} -->\n\Z")
LONGEST = 128
CHUNK_BYTES = 1 << 20


def seal_file(path: Path, companions: Iterable[Path] = ()) -> None:
    """Append the hash of a new .onnx or .xml file and of the files with its weights."""
    with open(path, "ab") as file:
        file.write(create_seal(path, hash_files(path, path.stat().st_size, companions)))


def check_seal(path: Path, companions: Iterable[Path] = ()) -> None:
    """Raise RunnerError if a sealed file, or a file with its weights, has changed since it was exported."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - LONGEST))
        end = file.read()
    if not (SEALED_XML if is_xml(path) else SEALED).search(end):
        return
    length = len(create_seal(path, "0" * 64))
    if size < length or end[-length:] != create_seal(path, hash_files(path, size - length, companions)):
        raise RunnerError(
            f"{path}: its sha256 is not the one at its end, so the file or its weights were edited or damaged after "
            f"the export; export it again. If you edited it, remove {KEY}."
        )


def create_seal(path: Path, digest: str) -> bytes:
    """The end of a sealed file."""
    value = f"sha256:{digest}"
    if is_xml(path):
        return f"<!-- {KEY} {value} -->\n".encode()
    # ModelProto.metadata_props, field 14: a message of key, field 1, and value, field 2. Fields may be in any order.
    entry = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([len(value)]) + value.encode()
    return b"\x72" + bytes([len(entry)]) + entry


def is_xml(path: Path) -> bool:
    return path.suffix.lower() == ".xml"


def hash_files(path: Path, size: int, companions: Iterable[Path]) -> str:
    """The sha256 of the first `size` bytes of a file, followed by its companions."""
    digest = hashlib.sha256()
    for one, left in ((path, size), *((companion, None) for companion in sorted(companions))):
        with open(one, "rb") as file:
            while part := file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)):
                digest.update(part)
                left = None if left is None else left - len(part)
    return digest.hexdigest()
