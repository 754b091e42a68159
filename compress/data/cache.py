"""A cache of decoded images: a memory-mapped uint8 array at the size that the networks read.

Decoding yields about 700 images per second and core, a gather from this array 11,000, and MosaicKD reads six batches a
step. A row is a pure function of (image, view, size, seed), so the number of workers does not affect it.
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

import numpy as np

from compress.data.dataset import ImageSet, count_mask_classes
from compress.data.decoding import View, decode_images
from compress.errors import CompressError
from compress.files import file_lock, fsync_dir, read_umask, write_json, write_text

CACHE_FORMAT = 3


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
        max_unreadable: Share of unreadable images above which it fails. They are left out and listed in `bad.jsonl`.
        workers: Threads; None: one per core.
        limit: Decode only so many images, evenly spaced.
        full_image: Crop nothing: the short side becomes `resize`, and the rest of `image_size` is padded.
        progress: Called with a sentence before decoding.

    Raises:
        CompressError: Too many images are unreadable, or the disk is full.
    """
    images = images if limit is None else images.subsample(limit)
    view = View(image_size, resize, views, seed if views > 1 else 0, grayscale, full_image)
    facts = [CACHE_FORMAT, images.fingerprint(), *astuple(view)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    path = folder / key
    cached = open_cache(images, path, key)
    if cached is None:
        decode_to_cache(images, path, view, workers, progress)
        cached = open_cache(images, path, key)
    if cached is None:
        raise CompressError(f"{path}: the decoded images were removed or damaged after they were written; run again.")
    check_unreadable_share(cached, len(images), max_unreadable, path)
    return cached


def open_cache(images: ImageSet, path: Path, key: str) -> ImageCache | None:
    """The cache in `path`; None if there is none or it is incomplete."""
    try:
        index = json.loads((path / "index.json").read_text(encoding="utf-8"))
        pixels = np.load(path / "pixels.npy", mmap_mode="r", allow_pickle=False)
        sources = np.load(path / "origin.npy", allow_pickle=False)
        masks = None if images.open_mask is None else np.load(path / "masks.npy", mmap_mode="r", allow_pickle=False)
        unreadable = [(str(name), str(reason)) for name, reason in index["bad"]]
    except (OSError, EOFError, ValueError, LookupError, TypeError):
        return None
    if len(pixels) != len(sources) or (masks is not None and len(masks) != len(sources)):
        return None
    labels = None if images.labels is None else images.labels[sources]
    return ImageCache(images.name, pixels, labels, images.class_names, sources, unreadable, key, masks=masks)


def check_unreadable_share(cached: ImageCache, total: int, max_unreadable: float, path: Path) -> None:
    count = len(cached.unreadable)
    if count <= max_unreadable * total and count < total:
        return
    name, reason = cached.unreadable[0] if cached.unreadable else ("", "there are no images")
    if count == total:
        raise CompressError(f"{cached.name}: none of the {total} images can be read; the first is {name}: {reason}.")
    raise CompressError(
        f"{cached.name}: {count} of {total} images cannot be read, more than the allowed {max_unreadable:.1%}; the "
        f"first is {name}: {reason}. {path / 'bad.jsonl'} lists all; repair them, or allow more with "
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
                bad = decode_images(images, work, view, workers)
                write_text(work / "bad.jsonl", "".join(json.dumps({"image": n, "reason": r}) + "\n" for n, r in bad))
                write_json(work / "index.json", {"name": images.name, "bad": [list(entry) for entry in bad]})
                commit_dir(work, path, lambda: open_cache(images, path, path.name) is not None)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise CompressError(
            f"{path.parent}: cannot store the decoded images ({reason}); free {size / 1e6:,.1f} MB, or choose another "
            "directory with $COMPRESS_CACHE."
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
