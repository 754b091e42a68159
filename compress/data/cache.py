"""Images decoded once: a memory-mapped uint8 array at the size the networks read.

Decoding gives some 700 images a second and core, a gather from this array 11,000; MosaicKD eats six batches a step. A
row is a pure function of (image, view, size, seed), so the number of workers changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
from compress.files import fsync_dir, read_umask, write_json, write_text

CACHE_FORMAT = 3


@dataclass(frozen=True)
class ImageCache:
    """Decoded images. `pixels` is NHWC, so that a gathered batch is already channels last."""

    name: str
    pixels: np.ndarray  #: uint8 [n, h, w, 3], memory-mapped
    labels: np.ndarray | None  #: int64 [n]
    class_names: list[str] | None
    source_index: np.ndarray  #: int64 [n], the source image of each row of `pixels`
    unreadable: list[tuple[str, str]]  #: (name, reason) of what could not be read
    fingerprint: str  #: changes with the pixels and with the rows in use
    rows: np.ndarray | None = None  #: the rows in use; None: all
    masks: np.ndarray | None = None  #: uint8 [n, h, w], memory-mapped; the class of every pixel, 255 where none

    def __len__(self) -> int:
        return len(self.pixels) if self.rows is None else len(self.rows)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [len(indices), h, w, 3]."""
        return self.pixels[indices if self.rows is None else self.rows[indices]]

    def gather_targets(self, indices: np.ndarray) -> np.ndarray | None:
        """What is right: labels int64 [len(indices)], masks int64 [len(indices), h, w], or None."""
        known = self.labels if self.masks is None else self.masks
        return None if known is None else known[indices if self.rows is None else self.rows[indices]].astype(np.int64)

    def count_classes(self) -> int:
        """How many classes there are: by their names, else by the largest number that occurs; 0 where none does."""
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
    """How many crops to take of each image so that there are about `target`: 1 where there are as many images."""
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
    """The decoded images, from `folder` if they are there. `limit` takes that many images, evenly spread.

    One view: the short side is resized to `resize` (default: the longer of `image_size`), then the centre cropped.
    More: random crops of every scale between the network's size and the whole image. `grey` drops their colour, for
    networks that do not see it. `whole` crops nothing: the short side becomes `resize`, and the rest of `image_size` is
    padded. Unreadable images are left out and named in `bad.jsonl`. Raises CompressError where
    they are more than the share `max_unreadable` of all, or where the disk is full.
    """
    images = images if limit is None else images.subsample(limit)
    view = View(image_size, resize, views, seed if views > 1 else 0, grayscale, full_image)
    facts = [CACHE_FORMAT, images.fingerprint(), *astuple(view)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    place = folder / key
    cached = open_cache(images, place, key)
    if cached is None:
        decode_to_cache(images, place, view, workers, progress)
        cached = open_cache(images, place, key)
    if cached is None:
        raise CompressError(f"{place}: the decoded images vanished or were damaged just after they were written.")
    check_unreadable_share(cached, len(images), max_unreadable, place)
    return cached


def open_cache(images: ImageSet, place: Path, key: str) -> ImageCache | None:
    """What is in `place`; None where nothing is, or nothing whole."""
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        pixels = np.load(place / "pixels.npy", mmap_mode="r", allow_pickle=False)
        origin = np.load(place / "origin.npy", allow_pickle=False)
        masks = None if images.open_mask is None else np.load(place / "masks.npy", mmap_mode="r", allow_pickle=False)
        bad = [(str(name), str(reason)) for name, reason in index["bad"]]
    except (OSError, EOFError, ValueError, LookupError, TypeError):
        return None
    if len(pixels) != len(origin) or (masks is not None and len(masks) != len(origin)):
        return None
    labels = None if images.labels is None else images.labels[origin]
    return ImageCache(images.name, pixels, labels, images.class_names, origin, bad, key, masks=masks)


def check_unreadable_share(cached: ImageCache, total: int, max_unreadable: float, place: Path) -> None:
    count = len(cached.unreadable)
    if count <= max_unreadable * total and count < total:
        return
    name, reason = cached.unreadable[0] if cached.unreadable else ("", "there are no images")
    if count == total:
        raise CompressError(f"{cached.name}: none of the {total} images can be read; the first is {name}: {reason}.")
    raise CompressError(
        f"{cached.name}: {count} of {total} images cannot be read, more than the {max_unreadable:.1%} allowed; the first is "
        f"{name}: {reason}. All are named in {place / 'bad.jsonl'}; mend them, or allow more with "
        f"--set data.max_unreadable=0.1."
    )


def decode_to_cache(
    images: ImageSet, place: Path, view: View, workers: int | None, progress: Callable[[str], None]
) -> None:
    """Write the cache of `images` to `place`, whole or not at all; one process does it, others wait for it."""
    height, width = view.image_size
    count = len(images) * view.views
    size = count * height * width * (3 if images.open_mask is None else 4)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with alone(place, progress) as locked:
            if open_cache(images, place, place.name) is not None:
                return
            free = shutil.disk_usage(place.parent).free
            if size > free:
                raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB are free")
            progress(
                f"decoding {images.name} once: {count:,} images of {height}x{width}, {size / 1e6:,.0f} MB, into {place}"
            )
            with scratch_dir(place, sweep=locked) as work:
                bad = decode_images(images, work, view, workers)
                write_text(work / "bad.jsonl", "".join(json.dumps({"image": n, "reason": r}) + "\n" for n, r in bad))
                write_json(work / "index.json", {"name": images.name, "bad": [list(entry) for entry in bad]})
                commit_dir(work, place, lambda: open_cache(images, place, place.name) is not None)
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise CompressError(
            f"{place.parent}: cannot hold the decoded images ({why}); needs {size / 1e6:,.1f} MB; make room, or name "
            f"another folder in $COMPRESS_CACHE."
        ) from error


@contextlib.contextmanager
def alone(place: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of `place`; False where the file system knows no locks: all decode then, the last rename stays."""
    with open(place.with_name(f".{place.name}.lock"), "wb") as lock:
        locked = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is decoding these images; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            locked = False
        yield locked


@contextlib.contextmanager
def scratch_dir(place: Path, *, sweep: bool) -> Iterator[Path]:
    """A folder beside `place` to work in, gone afterwards; with `sweep`, so is what a killed process left there."""
    for left in place.parent.glob(f".{place.name}.work*") if sweep else ():
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.work", dir=place.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def commit_dir(work: Path, place: Path, whole: Callable[[], bool]) -> None:
    """Give the finished folder its name. What is there and not whole makes way; what is whole has the same bytes."""
    os.chmod(work, 0o777 & ~read_umask())
    while True:
        try:
            os.rename(work, place)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if whole():
            return
        aside = work.with_name(f"{work.name}.old")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(place, aside)
        shutil.rmtree(aside, ignore_errors=True)
    fsync_dir(place.parent)
