"""From images to rows of uint8, written as they come: what fills the cache."""

from __future__ import annotations

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from compress.data.images import BadImage, Images

CHUNK = 64
#: bytes of decoded rows that may wait to be written
WAITING = 256 << 20


@dataclass(frozen=True)
class View:
    """How a picture becomes rows. `image_size` is (height, width) in pixels."""

    image_size: tuple[int, int]
    resize: int | None = None  #: short side before the centre is cropped; None: the longer of `image_size`
    views: int = 1
    seed: int = 0
    grey: bool = False

    def rows(self, image: Image.Image, i: int) -> np.ndarray:
        """uint8 [views, h, w, 3] of image number `i`: a pure function of the picture, `i` and these settings."""
        image = image.convert("L").convert("RGB") if self.grey else image
        if self.views == 1:
            return centred(image, self.image_size, self.resize)[None]
        return np.stack([crop(image, self.image_size, (self.seed, i, v)) for v in range(self.views)])


def decode_into(images: Images, work: Path, view: View, workers: int | None) -> list[tuple[str, str]]:
    """Fill `pixels.npy` and `origin.npy` in `work`; returns the name of and the reason for what could not be read.

    Raises OSError where they cannot be written.
    """
    bad: list[tuple[str, str]] = []
    good: list[np.ndarray] = []
    workers = workers or os.cpu_count()
    row = math.prod(view.image_size) * 3 * view.views
    chunk = max(1, min(CHUNK, WAITING // row))

    def rows(i: int) -> np.ndarray | str:
        try:
            return view.rows(images.read(i), i)
        except BadImage as error:
            return str(error)

    with warnings.catch_warnings(), open(work / "pixels.npy", "wb") as file, ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # filters belong to the process: the threads' own would come back in any order
        begun = header(file, (len(images) * view.views, *view.image_size, 3))
        for start in range(0, len(images), chunk):
            numbers = range(start, min(start + chunk, len(images)))
            for i, made in zip(numbers, pool.map(rows, numbers), strict=True):
                if isinstance(made, str):
                    bad.append((images.item(i), made))
                else:
                    good.append(np.full(view.views, i, dtype=np.int64))
                    file.write(made.tobytes())
        origin = np.concatenate(good) if good else np.zeros(0, dtype=np.int64)
        file.seek(0)
        if header(file, (len(origin), *view.image_size, 3)) != begun:
            raise ValueError("the header of pixels.npy changed its length")
        file.flush()
        os.fsync(file.fileno())
    with open(work / "origin.npy", "wb") as file:
        np.save(file, origin, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return bad


def header(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write the header of a .npy file; its length, which leaves room for any number of rows."""
    facts = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.tell()


def centred(image: Image.Image, size: tuple[int, int], resize: int | None) -> np.ndarray:
    """uint8 [h, w, 3]: the short side made `resize`, the centre taken. What is then too small is enlarged, not bent."""
    height, width = size
    share = min(min(image.size) / (resize or max(size)), image.width / width, image.height / height)
    left, top = (image.width - width * share) / 2, (image.height - height * share) / 2
    return cut(image, size, left, top, share)


def crop(image: Image.Image, size: tuple[int, int], seed: tuple[int, ...]) -> np.ndarray:
    """uint8 [h, w, 3]: a random place at a random scale between the network's size and the whole image."""
    height, width = size
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    whole = min(image.width / width, image.height / height)
    share = math.exp(rng.uniform(0.0, math.log(whole))) if whole > 1 else whole
    left = rng.random() * (image.width - width * share)
    top = rng.random() * (image.height - height * share)
    return cut(image, size, left, top, share)


def cut(image: Image.Image, size: tuple[int, int], left: float, top: float, share: float) -> np.ndarray:
    """uint8 [h, w, 3]: `share` source pixels a pixel, smoothed. Rounding never leads outside, which Pillow refuses."""
    height, width = size
    left, top = max(0.0, left), max(0.0, top)
    box = (left, top, min(left + width * share, image.width), min(top + height * share, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
