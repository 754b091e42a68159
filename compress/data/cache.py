"""Images decoded once: a memory-mapped uint8 array at the size the networks read.

Decoding gives some 700 images a second and core, a gather from this array 11,000; MosaicKD eats six batches a step. A row
is a pure function of (image, view, size, seed), so the number of workers changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.images import BadImage, Images
from compress.errors import CompressError
from compress.files import replacing, sync_folder, write_failed, write_json, write_text

FORMAT = 1
CHUNK = 64


@dataclass(frozen=True)
class Cached:
    """Decoded images. `pixels` is NHWC, so that a gathered batch is already channels last."""

    name: str
    pixels: np.ndarray  #: uint8 [n, h, w, 3], memory-mapped
    labels: np.ndarray | None  #: int64 [n]
    class_names: list[str] | None
    origin: np.ndarray  #: int64 [n], the source image of each row
    bad: list[tuple[str, str]]  #: (name, reason) of what could not be read
    fingerprint: str
    rows: np.ndarray | None = None  #: the rows in use; None: all

    def __len__(self) -> int:
        return len(self.pixels) if self.rows is None else len(self.rows)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [len(indices), h, w, 3]."""
        return self.pixels[indices if self.rows is None else self.rows[indices]]

    def labels_of(self, indices: np.ndarray) -> np.ndarray | None:
        if self.labels is None:
            return None
        return self.labels[indices if self.rows is None else self.rows[indices]]

    def subset(self, indices: np.ndarray) -> Cached:
        """Only these rows, in this order."""
        rows = np.arange(len(self.pixels)) if self.rows is None else self.rows
        return replace(self, rows=rows[np.asarray(indices)])


def auto_views(images: int, target: int = 10_000) -> int:
    """How many crops to take of each image so that there are about `target`: 1 where there are as many images."""
    return max(1, math.ceil(target / max(images, 1))) if images < target // 2 else 1


def build_cache(
    images: Images, *, image_size: tuple[int, int], folder: Path, resize: int | None = None, views: int = 1, seed: int = 0,
    grey: bool = False, max_bad: float = 0.01, workers: int | None = None, limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Cached:  # fmt: skip
    """The decoded images, from `folder` if they are there.

    One view: the short side is resized to `resize` (default: the longer of `image_size`), then the centre cropped. More:
    random crops of every scale between the network's size and the whole image. Unreadable images are left out and named in
    `bad.jsonl`. `grey` drops their colour, for networks that do not see it. Raises CompressError where they are more than `max_bad` of all. `limit` takes that many images, evenly spread.
    """
    images = images if limit is None else images.spread(limit)
    facts = [FORMAT, images.fingerprint(), image_size, resize, views, seed if views > 1 else 0, grey]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    place = folder / key
    if not (place / "index.json").is_file():
        decode(images, place, image_size=image_size, resize=resize, views=views, seed=seed, grey=grey, workers=workers, say=say)
    cached = open_cache(images, place, key)
    refuse_many_bad(cached, len(images), max_bad, place)
    return cached


def open_cache(images: Images, place: Path, key: str) -> Cached:
    index = json.loads((place / "index.json").read_text(encoding="utf-8"))
    pixels = np.load(place / "pixels.npy", mmap_mode="r", allow_pickle=False)
    origin = np.load(place / "origin.npy", allow_pickle=False)
    labels = None if images.labels is None else images.labels[origin]
    bad = [(name, reason) for name, reason in index["bad"]]
    return Cached(images.name, pixels, labels, images.class_names, origin, bad, key)


def refuse_many_bad(cached: Cached, total: int, max_bad: float, place: Path) -> None:
    count = len(cached.bad)
    if count == total:
        name, reason = cached.bad[0]
        raise CompressError(f"{cached.name}: none of the {total} images can be read; the first is {name}: {reason}.")
    if count > max_bad * total:
        name, reason = cached.bad[0]
        raise CompressError(
            f"{cached.name}: {count} of {total} images cannot be read, more than the {max_bad:.1%} allowed; the first is "
            f"{name}: {reason}. All are named in {place / 'bad.jsonl'}; mend them, or allow more with --set data.max_bad=0.1."
        )


def decode(
    images: Images, place: Path, *, image_size: tuple[int, int], resize: int | None, views: int, seed: int,
    grey: bool, workers: int | None, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Write the cache of `images` to `place`, whole or not at all."""
    rows = len(images) * views
    shape = (rows, *image_size, 3)
    say(f"decoding {images.name} once: {rows:,} images of {image_size[0]}x{image_size[1]}, {math.prod(shape) / 1e6:.0f} MB, into {place}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise write_failed(place, error) from error
    try:
        bad = decode_into(images, work, shape, resize=resize, views=views, seed=seed, grey=grey, workers=workers)
        write_json(work / "index.json", {"name": images.name, "bad": [list(entry) for entry in bad]})
        write_text(work / "bad.jsonl", "".join(json.dumps({"image": n, "reason": r}) + "\n" for n, r in bad))
        try:
            os.rename(work, place)
        except OSError:
            if not (place / "index.json").is_file():  # else another process was first, with the same bytes
                raise
        sync_folder(place.parent)
    except OSError as error:
        raise write_failed(place, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def decode_into(
    images: Images, work: Path, shape: tuple[int, ...], *, resize: int | None, views: int, seed: int, grey: bool,
    workers: int | None,
) -> list[tuple[str, str]]:
    """Fill `pixels.npy` and `origin.npy` in `work`; returns what could not be read."""
    bad: list[tuple[str, str]] = []
    good: list[np.ndarray] = []

    def views_of(i: int) -> np.ndarray | str:
        try:
            image = images.read(i).convert("L").convert("RGB") if grey else images.read(i)
            return np.stack([one_view(image, shape[1:3], resize, views, (seed, i, v)) for v in range(views)])
        except BadImage as error:
            return str(error)

    with replacing(work / "raw.bin") as file, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for start in range(0, len(images), CHUNK):
            numbers = range(start, min(start + CHUNK, len(images)))
            for i, made in zip(numbers, pool.map(views_of, numbers), strict=True):
                if isinstance(made, str):
                    bad.append((images.item(i), made))
                else:
                    good.append(np.full(views, i, dtype=np.int64))
                    file.write(made.tobytes())
    origin = np.concatenate(good) if good else np.zeros(0, dtype=np.int64)
    pack(work, (len(origin), *shape[1:]))
    with replacing(work / "origin.npy") as file:
        np.save(file, origin, allow_pickle=False)
    return bad


def pack(work: Path, shape: tuple[int, ...]) -> None:
    """Put the header of a .npy file before the raw rows, whose number is known only now."""
    with replacing(work / "pixels.npy") as file, open(work / "raw.bin", "rb") as raw:
        header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(raw, file, 1 << 20)
    (work / "raw.bin").unlink()


def one_view(image: Image.Image, size: tuple[int, ...], resize: int | None, views: int, seed: tuple[int, ...]) -> np.ndarray:
    """One picture as uint8 [h, w, 3]: centred where there is one view, else a random crop drawn from `seed` alone."""
    height, width = size
    scale = (resize or max(size)) / min(image.size)
    if views == 1:
        crop_w, crop_h = min(width / scale, image.width), min(height / scale, image.height)
        left, top = (image.width - crop_w) / 2, (image.height - crop_h) / 2
    else:
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        whole = min(image.width / width, image.height / height)
        share = math.exp(rng.uniform(math.log(min(1.0, whole)), math.log(max(1.0, whole)))) if whole > 1 else whole
        crop_w, crop_h = width * share, height * share
        left, top = rng.uniform(0, image.width - crop_w), rng.uniform(0, image.height - crop_h)
    box = (left, top, left + crop_w, top + crop_h)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
