"""From images to rows of uint8, written as they come: what fills the cache."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from compress.data.images import BadImage, Images

#: bytes of rows that one worker makes at a time, and the most views: one picture with many views keeps all of them busy
PIECE_BYTES, PIECE_VIEWS = 8 << 20, 256
#: pieces a worker may be ahead of what is written
AHEAD = 2
#: number of an image, and which of its views
Piece = tuple[int, range]


@dataclass(frozen=True)
class View:
    """How a picture becomes rows. `image_size` is (height, width) in pixels."""

    image_size: tuple[int, int]
    resize: int | None = None  #: short side before the centre is cropped; None: the longer of `image_size`
    views: int = 1
    seed: int = 0
    grey: bool = False

    def rows(self, image: Image.Image, i: int, views: range) -> np.ndarray:
        """uint8 [len(views), h, w, 3] of image number `i`: a pure function of the picture, `i` and these settings."""
        image = image.convert("L").convert("RGB") if self.grey else image
        if self.views == 1:
            return centred(image, self.image_size, self.resize)[None]
        return np.stack([crop(image, self.image_size, (self.seed, i, v)) for v in views])

    def pieces(self, images: int) -> Iterator[Piece]:
        """The work in order, each piece small enough for memory; a picture with many views is read once a piece."""
        most = min(PIECE_VIEWS, max(1, PIECE_BYTES // (math.prod(self.image_size) * 3)))
        for i in range(images):
            for start in range(0, self.views, most):
                yield i, range(start, min(start + most, self.views))


def decode_into(images: Images, work: Path, view: View, workers: int | None) -> list[tuple[str, str]]:
    """Fill `pixels.npy` and `origin.npy` in `work`; returns the name of and the reason for what could not be read.

    Raises OSError where they cannot be written.
    """
    bad: dict[int, str] = {}
    good: list[np.ndarray] = []

    def rows(piece: Piece) -> np.ndarray | str:
        try:
            return view.rows(images.read(piece[0]), *piece)
        except BadImage as error:
            return str(error)

    with open(work / "pixels.npy", "wb") as file:
        begun = header(file, (len(images) * view.views, *view.image_size, 3))
        for (i, _), made in in_turn(rows, view.pieces(len(images)), workers or os.cpu_count() or 1):
            if isinstance(made, str):
                bad.setdefault(i, made)
            else:
                good.append(np.full(len(made), i, dtype=np.int64))
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
    return [(images.item(i), reason) for i, reason in bad.items()]


def in_turn(
    work: Callable[[Piece], np.ndarray | str], pieces: Iterator[Piece], workers: int
) -> Iterator[tuple[Piece, np.ndarray | str]]:
    """Each piece with what `work` made of it, in their order, however many threads work; few wait to be taken."""
    waiting: deque[tuple[Piece, Future[np.ndarray | str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for piece in pieces:
                waiting.append((piece, pool.submit(work, piece)))
                if len(waiting) > AHEAD * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
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
