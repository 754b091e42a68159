"""A cache of decoded images: a memory-mapped uint8 array at the size that the networks read.

Decoding yields about 700 images per second and core, a gather from this array 11,000, and MosaicKD reads six batches a
step. A row is a pure function of (image, view, size, seed), so the number of workers does not affect it.

The files are hashed when they are written, and compared when a process opens them first: 0.7 s per GB and core. A
flipped bit on the disk is found before training, and the images are decoded again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.dataset import ImageSet, count_mask_classes
from compress.data.decoding import View, decode_images
from compress.errors import CompressError, first_line
from compress.files import (
    WriteError,
    file_lock,
    fsync_dir,
    read_umask,
    require_regular_file,
    sha256,
    write_json,
    write_text,
)

CACHE_FORMAT = 6
#: the description of a cache, with the hashes of its other files; its largest size in bytes
INDEX_FILE, MAX_INDEX = "index.json", 1 << 28
#: names of the images that were left out, with reasons
QUARANTINE_FILE = "quarantine.jsonl"
#: files of this process's caches with a correct hash: (path, hash) -> size, inode and times
_VERIFIED: dict[tuple[Path, str], tuple[int, ...]] = {}


class DamagedCacheError(Exception):
    """A cache is complete by its index, but a file differs from its hash; the message names the file."""


@dataclass(frozen=True)
class ImageCache:
    """Decoded images. `pixels` is NHWC, so gathered batches are already channels-last."""

    name: str
    pixels: np.ndarray  #: uint8 [n, h, w, 3], memory-mapped
    labels: np.ndarray | None  #: int64 [n]
    class_names: list[str] | None
    source_index: np.ndarray  #: int64 [n], the source image of each row of `pixels`
    unreadable: list[tuple[str, str]]  #: (name, reason) of images that could not be read
    fingerprint: str  #: hash of the pixels and of the rows in use
    rows: np.ndarray | None = None  #: the rows in use; None: all
    masks: np.ndarray | None = None  #: uint8 [n, h, w], memory-mapped: class per pixel, 255 where ignored
    has_class_numbers: bool = False  #: every class name begins with the number of its class

    def __len__(self) -> int:
        return len(self.pixels) if self.rows is None else len(self.rows)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """The images at `indices`, uint8 [len(indices), h, w, 3]."""
        return self.pixels[indices if self.rows is None else self.rows[indices]]

    def gather_targets(self, indices: np.ndarray) -> np.ndarray | None:
        """Labels int64 [len(indices)], masks int64 [len(indices), h, w], or None."""
        targets = self.labels if self.masks is None else self.masks
        if targets is None:
            return None
        return targets[indices if self.rows is None else self.rows[indices]].astype(np.int64)

    def count_classes(self) -> int:
        """Number of classes: of their names, else the largest label + 1; 0 without labels."""
        if self.class_names:
            return len(self.class_names)
        if self.masks is not None:
            return count_mask_classes(self.masks)
        return 0 if self.labels is None else int(self.labels.max(initial=-1)) + 1

    def subset(self, indices: np.ndarray) -> ImageCache:
        """Only these rows, in this order."""
        rows = np.arange(len(self.pixels)) if self.rows is None else self.rows
        rows = rows[np.asarray(indices)]
        digest = hashlib.sha256(self.fingerprint.encode() + rows.astype(np.int64).tobytes())
        return replace(self, rows=rows, fingerprint=digest.hexdigest()[:24])


def choose_view_count(images: int, target: int = 10_000) -> int:
    """Crops of each image for about `target` rows; 1 if there are at least half as many images."""
    return max(1, math.ceil(target / max(images, 1))) if images < target // 2 else 1


def build_cache(
    images: ImageSet,
    *,
    image_size: tuple[int, int],
    folder: Path,
    resize: int | None = None,
    views: int = 1,
    seed: int = 0,
    grayscale: bool = False,
    max_unreadable: float = 0.01,
    workers: int | None = None,
    limit: int | None = None,
    full_image: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> ImageCache:
    """Decode images, or load them from `folder` if they are there.

    Args:
        images: The images.
        image_size: (height, width) of the rows in pixels.
        folder: Directory of the caches.
        resize: Short side before the center crop; None: the longer side of `image_size`.
        views: Rows per image. 1: the center crop. More: random crops of all scales between the network's size and the
            full image.
        seed: Seed of the random crops.
        grayscale: Remove the color, for networks that do not see it.
        max_unreadable: Share of unreadable images above which it fails; unless it is 0, one image is allowed. They are
            left out and listed in `quarantine.jsonl`.
        workers: Threads; None: one per core.
        limit: Decode only so many images, evenly spaced.
        full_image: Crop nothing: the short side becomes `resize`, and the rest of `image_size` is padded.
        progress: Called with a sentence before decoding, and on what was chosen and left out of the images.

    Raises:
        CompressError: Too many images are unreadable, or the disk is full.
    """
    for note in images.notes:
        progress(note)
    images = images if limit is None else images.subsample(limit)
    view = View(image_size, resize, views, seed if views > 1 else 0, grayscale, full_image)
    facts = [CACHE_FORMAT, images.fingerprint(), *astuple(view)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    path = folder / key
    cached = open_cache(images, path, key, progress)
    if cached is None:
        decode_to_cache(images, path, view, workers, progress)
        cached = open_cache(images, path, key)
    if cached is None:
        raise CompressError(f"{path}: the decoded images were removed or damaged after they were written; run again.")
    check_unreadable_share(cached, len(images), max_unreadable, path)
    return cached


def open_cache(
    images: ImageSet, path: Path, key: str, progress: Callable[[str], None] = lambda _: None
) -> ImageCache | None:
    """The cache in `path`; None if there is none, or if it is incomplete or damaged, which is reported."""
    if not path.is_dir():
        return None
    try:
        index = read_index(path)
        files = [path / name for name in cache_files(images)]
        for file in files:
            verify_file(file, index["sha256"][file.name])
        # The hashes are those of files that `decode_images` wrote, so shapes and types need no other check.
        pixels, sources, *masks = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
        unreadable = [(name, reason) for name, reason in index["unreadable"]]
    except (
        CompressError,
        DamagedCacheError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:
        progress(f"{path}: the decoded images are damaged ({first_line(error)}); they are decoded again")
        return None
    labels = None if images.labels is None else images.labels[sources]
    return ImageCache(
        images.name, pixels, labels, images.class_names, np.array(sources), unreadable, key,
        masks=masks[0] if masks else None, has_class_numbers=images.has_class_numbers,
    )  # fmt: skip


def cache_files(images: ImageSet) -> list[str]:
    """Names of the files of arrays."""
    return ["pixels.npy", "origin.npy", *([] if images.open_mask is None else ["masks.npy"])]


def write_index(work: Path, images: ImageSet, unreadable: list[tuple[str, str]]) -> None:
    """Write the hashes of the files and the names of unreadable images, with a hash of its own."""
    index = {
        "name": images.name,
        "unreadable": [list(entry) for entry in unreadable],
        "sha256": {name: sha256(work / name) for name in cache_files(images)},
    }
    write_json(work / INDEX_FILE, {**index, "seal": seal_index(index)})


def read_index(path: Path) -> dict[str, Any]:
    """The index of a cache. Raises DamagedCacheError, or what reading and parsing raise."""
    file = require_regular_file(path / INDEX_FILE)
    if file.stat().st_size > MAX_INDEX:
        raise DamagedCacheError(f"{INDEX_FILE} is too large")
    index = json.loads(file.read_bytes())
    if index.pop("seal") != seal_index(index):
        raise DamagedCacheError(f"{INDEX_FILE} differs from its hash")
    return index


def seal_index(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def verify_file(path: Path, expected: str) -> None:
    """Raise DamagedCacheError if a file has another hash. A file that this process has verified is not read again."""
    status = require_regular_file(path).stat()
    facts = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    if _VERIFIED.get((path, expected)) == facts:
        return
    if sha256(path) != expected:
        raise DamagedCacheError(f"{path.name} differs from its hash")
    _VERIFIED[path, expected] = facts


def check_unreadable_share(cached: ImageCache, total: int, max_unreadable: float, path: Path) -> None:
    count = len(cached.unreadable)
    allowed = max(max_unreadable * total, 1 if max_unreadable else 0)
    if count <= allowed and count < total:
        return
    name, reason = cached.unreadable[0] if cached.unreadable else ("", "there are no images")
    if count == total:
        raise CompressError(f"{cached.name}: none of the {total} images can be read; the first is {name}: {reason}.")
    raise CompressError(
        f"{cached.name}: {count} of {total} images cannot be read, more than the allowed {max_unreadable:.1%}; the "
        f"first is {name}: {reason}. {path / QUARANTINE_FILE} lists all; repair them, or allow more with "
        "--set data.max_unreadable=0.1."
    )


def decode_to_cache(
    images: ImageSet, path: Path, view: View, workers: int | None, progress: Callable[[str], None]
) -> None:
    """Write the cache of `images` to `path` atomically. One process decodes, others wait for it."""
    height, width = view.image_size
    count = len(images) * view.views
    size = count * height * width * (3 if images.open_mask is None else 4)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without locks in the file system all processes decode, and the last rename remains.
        lock = path.with_name(f".{path.name}.lock")
        with file_lock(lock, wait=lambda: progress("waiting for another process that decodes these images")) as locked:
            if open_cache(images, path, path.name) is not None:
                return
            free = shutil.disk_usage(path.parent).free
            if size > free:
                raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB are free")
            progress(f"decoding {images.name}: {count:,} images of {height}x{width}, {size / 1e6:,.0f} MB, into {path}")
            with scratch_dir(path, clean=locked) as work:
                unreadable = decode_images(images, work, view, workers)
                lines = [json.dumps({"image": name, "reason": reason}) + "\n" for name, reason in unreadable]
                write_text(work / QUARANTINE_FILE, "".join(lines))
                write_index(work, images, unreadable)
                commit_dir(work, path, lambda: open_cache(images, path, path.name) is not None)
            if unreadable:
                progress(
                    f"{images.name}: left out {len(unreadable)} of {len(images)} images that cannot be read; "
                    f"{path / QUARANTINE_FILE} lists them"
                )
    except (OSError, WriteError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        reason = "the disk is full" if number in (errno.ENOSPC, errno.EDQUOT) else first_line(error)
        raise CompressError(
            f"{path.parent}: cannot store the decoded images ({reason}); free {max(size / 1e6, 0.1):,.1f} MB, or "
            "choose another directory with $COMPRESS_CACHE."
        ) from error


@contextlib.contextmanager
def scratch_dir(path: Path, *, clean: bool) -> Iterator[Path]:
    """A temporary directory beside `path`; `clean` also removes those of killed processes."""
    for leftover in path.parent.glob(f".{path.name}.work*") if clean else ():
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.work", dir=path.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def commit_dir(work: Path, path: Path, is_complete: Callable[[], bool]) -> None:
    """Rename the finished directory to `path`. An incomplete one is replaced; a complete one has the same bytes."""
    os.chmod(work, 0o777 & ~read_umask())
    while True:
        try:
            os.rename(work, path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if is_complete():
            return
        old = work.with_name(f"{work.name}.old")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(path, old)
        shutil.rmtree(old, ignore_errors=True)
    fsync_dir(path.parent)
