"""Tar shards in webdataset's convention: files of one sample share a name, `000123.jpg` beside `000123.cls`."""

from __future__ import annotations

import glob
import io
import os
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
    """The images of one or many .tar files, read in place. `spec`: a file, a glob, or a brace range `{000..099}`.

    Labels come from `.cls` files with a whole number. Raises UsageError for missing files, CompressError for broken
    ones.
    """
    paths = resolve_shards(spec)
    places: list[tuple[Path, int, int]] = []
    items: list[str] = []
    labels: list[int | None] = []
    for path in paths:
        for members in group_samples(path):
            image = next((m for m in members if Path(m.name).suffix.lower() in readable_extensions()), None)
            if image is None:
                continue
            places.append((path, image.offset_data, image.size))
            items.append(f"{path}:{image.name}")
            labels.append(read_label(path, members))
    if not places:
        raise UsageError(f"{spec}: no images in these shards.")
    known = [label for label in labels if label is not None]
    values = np.array(known, dtype=np.int64) if len(known) == len(labels) else None
    identity = " ".join(f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths)
    return ImageSet(spec, items, lambda i: read_range(*places[i]), identity, values)


def resolve_shards(spec: str) -> list[Path]:
    """The files that `spec` names, all of them there. Raises UsageError."""
    try:
        from braceexpand import UnbalancedBracesError, braceexpand  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise UsageError(
            f"{spec}: webdataset is not installed; run `pip install 'compress-distill[shards]'`."
        ) from error
    try:
        patterns = list(braceexpand(os.path.expanduser(spec)))
    except UnbalancedBracesError as error:
        raise UsageError(f"{spec}: a brace is not closed; expected a range such as {{000..099}}.") from error
    paths = [Path(found) for pattern in patterns for found in sorted(glob.glob(pattern)) or [pattern]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} shards are missing).")
    return paths


def group_samples(path: Path) -> list[list[tarfile.TarInfo]]:
    """The members of a shard grouped by their name up to the first dot after the folder.

    The archive must be uncompressed, for its images are read in place, and end as tar files end: tarfile takes a
    damaged or cut header for the end, which would lose the rest in silence.
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
        raise CompressError(f"{path}: not a whole, uncompressed tar file ({error}); fetch this shard again.") from error
    if last != bytes(BLOCK):
        raise CompressError(f"{path}: not a whole tar file (damaged or cut at byte {end:,}); fetch this shard again.")
    return list(grouped.values())


def read_label(path: Path, members: list[tarfile.TarInfo]) -> int | None:
    """The whole number beside an image, if there is one."""
    member = next((m for m in members if Path(m.name).suffix in LABELS), None)
    if member is None:
        return None
    try:
        label = int(read_range(path, member.offset_data, member.size).read().strip())
    except ValueError:
        return None
    return label if label >= 0 else None


def read_range(path: Path, offset: int, size: int) -> io.BytesIO:
    """A part of an uncompressed shard, without reading the rest."""
    with open(path, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))
