"""Tar shards in webdataset's convention: files of one sample share a name, `000123.jpg` beside `000123.cls`."""

from __future__ import annotations

import glob
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.images import Images
from compress.errors import CompressError, UsageError

LABELS = (".cls", ".txt")


def is_shards(spec: str) -> bool:
    return spec.endswith(".tar")


def shard_images(spec: str) -> Images:
    """The images of one or many .tar files, read in place. `spec`: a file, a glob, or a brace range `{000..099}`.

    Labels come from `.cls` files with a whole number. Raises UsageError for missing files, CompressError for broken ones.
    """
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise UsageError(f"{spec}: webdataset is not installed; run `pip install 'compress[shards]'`.") from error
    paths = [Path(found) for pattern in braceexpand(spec) for found in sorted(glob.glob(pattern)) or [pattern]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} shards are missing).")
    extensions = set(Image.registered_extensions())
    places: list[tuple[Path, int, int]] = []
    items: list[str] = []
    labels: list[int | None] = []
    for path in paths:
        for key, members in samples(path):
            image = next((m for m in members if Path(m.name).suffix.lower() in extensions), None)
            if image is None:
                continue
            places.append((path, image.offset_data, image.size))
            items.append(f"{path}:{image.name}")
            labels.append(label_of(path, key, members))
    if not places:
        raise UsageError(f"{spec}: no images in these shards.")
    known = [label for label in labels if label is not None]
    values = np.array(known, dtype=np.int64) if len(known) == len(labels) else None
    identity = " ".join(f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths)
    return Images(spec, items, lambda i: piece(*places[i]), identity, values)


def samples(path: Path) -> list[tuple[str, list[tarfile.TarInfo]]]:
    """The members of a shard grouped by their name up to the first dot after the folder."""
    grouped: dict[str, list[tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    grouped.setdefault(f"{folder}/{name.split('.')[0]}", []).append(member)
    except (tarfile.TarError, EOFError) as error:
        raise CompressError(f"{path}: not a whole tar file ({error}); fetch this shard again.") from error
    return list(grouped.items())


def label_of(path: Path, key: str, members: list[tarfile.TarInfo]) -> int | None:
    member = next((m for m in members if Path(m.name).suffix in LABELS), None)
    if member is None:
        return None
    text = piece(path, member.offset_data, member.size).read().strip()
    try:
        return int(text)
    except ValueError:
        return None


def piece(path: Path, offset: int, size: int) -> io.BytesIO:
    """A part of an uncompressed shard, without reading the rest."""
    with open(path, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))
