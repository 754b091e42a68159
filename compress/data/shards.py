"""Tar shards in webdataset's format: the files of a sample share a name, `000123.jpg` beside `000123.cls`."""

from __future__ import annotations

import glob
import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np

from compress.data.dataset import ImageSet, readable_extensions
from compress.errors import CompressError, UsageError

LABELS = (".cls", ".txt")
BLOCK = tarfile.BLOCKSIZE


def is_shard_spec(spec: str) -> bool:
    return spec.endswith(".tar")


def open_shards(spec: str) -> ImageSet:
    """Open the images of .tar files, which are read in place.

    Args:
        spec: A file, a glob, or a brace range `{000..099}`. Labels come from `.cls` files with an integer.

    Raises:
        UsageError: Files are missing or contain no images.
        CompressError: A file is damaged or compressed.
    """
    paths = resolve_shards(spec)
    ranges: list[tuple[Path, int, int]] = []
    names: list[str] = []
    labels: list[int | None] = []
    for path in paths:
        for members in group_samples(path):
            image = next((m for m in members if Path(m.name).suffix.lower() in readable_extensions()), None)
            if image is None:
                continue
            ranges.append((path, image.offset_data, image.size))
            names.append(f"{path}:{image.name}")
            labels.append(read_label(path, members))
    if not ranges:
        raise UsageError(f"{spec}: found no images in these shards; check the files.")
    known = [label for label in labels if label is not None]
    values = np.array(known, dtype=np.int64) if len(known) == len(labels) else None
    identity = " ".join(f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths)
    return ImageSet(spec, names, lambda i: read_range(*ranges[i]), identity, values)


def resolve_shards(spec: str) -> list[Path]:
    """The existing files that `spec` names. Raises UsageError if one is missing."""
    patterns = expand_braces(os.path.expanduser(spec))
    paths = [Path(match) for pattern in patterns for match in sorted(glob.glob(pattern)) or [pattern]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} shards are missing).")
    return paths


def expand_braces(spec: str) -> list[str]:
    """Expand `{000..099}` and `{a,b}` as a shell does. Raises UsageError for an unclosed brace."""
    match = re.search(r"\{([^{}]*)\}", spec)
    if match is None:
        if "{" in spec or "}" in spec:
            raise UsageError(f"{spec}: found a brace without its pair, expected a range such as {{000..099}}.")
        return [spec]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        parts = [f"{i:0{width}}" for i in range(int(bounds[1]), int(bounds[2]) + 1)]
    else:
        parts = match[1].split(",")
    return [full for part in parts for full in expand_braces(spec[: match.start()] + part + spec[match.end() :])]


def group_samples(path: Path) -> list[list[tarfile.TarInfo]]:
    """The members of a shard grouped by their name up to the first dot after the folder.

    The archive must be uncompressed, because images are read in place. Its end is checked, because tarfile takes a
    damaged or truncated header for the end and drops the rest silently.
    """
    grouped: dict[str, list[tarfile.TarInfo]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK if member.isfile() else member.offset_data
                folder, _, name = member.name.rpartition("/")
                if member.isfile() and not name.startswith("."):
                    grouped.setdefault(f"{folder}/{name.split('.')[0]}", []).append(member)
        last = read_range(path, end, BLOCK).read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise CompressError(f"{path}: not a complete, uncompressed tar file ({error}); copy it again.") from error
    if last != bytes(BLOCK):
        raise CompressError(f"{path}: not a complete tar file (damaged or cut at byte {end:,}); copy it again.")
    return list(grouped.values())


def read_label(path: Path, members: list[tarfile.TarInfo]) -> int | None:
    """The integer beside an image, if there is one."""
    member = next((m for m in members if Path(m.name).suffix in LABELS), None)
    if member is None:
        return None
    try:
        label = int(read_range(path, member.offset_data, member.size).read().strip())
    except ValueError:
        return None
    return label if label >= 0 else None


def read_range(path: Path, offset: int, size: int) -> io.BytesIO:
    """Part of an uncompressed shard."""
    with open(path, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))
