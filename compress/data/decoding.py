"""Decode images to uint8 rows in parallel and write them to the files of a cache."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from compress.data.dataset import IGNORE_INDEX, ImageSet, UnreadableImageError
from compress.errors import CompressError
from compress.resources import usable_cores

#: bytes and views that one worker produces at a time; small pieces let all workers scale one image with many views
PIECE_BYTES, PIECE_VIEWS = 8 << 20, 256
#: pieces per worker that may wait to be written
PREFETCH = 2
#: of a quotient that is a whole number of pixels
ROUNDING = 1e-6
#: index of an image, and which of its views
Piece = tuple[int, range]
#: uint8 [views, h, w, 3], and masks [views, h, w] or None
Rows = tuple[np.ndarray, np.ndarray | None]
#: left and top in source pixels, and source pixels per pixel
Box = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """How an image becomes rows."""

    image_size: tuple[int, int]  #: (height, width) in pixels
    resize: int | None = None  #: short side before the center crop; None: the longer side of `image_size`
    views: int = 1  #: rows per image; more than one are random crops
    seed: int = 0  #: seed of the random crops
    grayscale: bool = False  #: remove the color
    full_image: bool = (
        False  #: nothing is cropped: the short side is made `resize`, what is missing to `image_size` padded
    )

    def make_rows(self, image: Image.Image, i: int, views: range, mask: Image.Image | None = None) -> Rows:
        """The rows of image `i`: a pure function of the image, `i` and these settings."""
        image = image.convert("L").convert("RGB") if self.grayscale else image
        boxes = [self.choose_box(image.size, (self.seed, i, v)) for v in views]
        pixels = np.stack([self.cut_box(image, box, Image.Resampling.BILINEAR) for box in boxes])
        if mask is None:
            return pixels, None
        return pixels, np.stack([self.cut_box(mask, box, Image.Resampling.NEAREST) for box in boxes])

    def choose_box(self, size: tuple[int, int], seed: tuple[int, ...]) -> Box:
        if self.full_image:
            return 0.0, 0.0, full_image_scale(size, self.image_size, self.resize)
        return (
            center_box(size, self.image_size, self.resize)
            if self.views == 1
            else random_box(size, self.image_size, seed)
        )

    def cut_box(self, image: Image.Image, box: Box, resample: Image.Resampling) -> np.ndarray:
        return (
            resize_and_pad(image, self.image_size, box[2], resample)
            if self.full_image
            else resize_box(image, self.image_size, *box, resample)
        )

    def iter_pieces(self, images: int) -> Iterator[Piece]:
        """Yield the work in order, in pieces that fit into memory. An image is decoded once per piece."""
        size = min(PIECE_VIEWS, max(1, PIECE_BYTES // (math.prod(self.image_size) * 3)))
        for i in range(images):
            for start in range(0, self.views, size):
                yield i, range(start, min(start + size, self.views))


def decode_images(images: ImageSet, work: Path, view: View, workers: int | None) -> list[tuple[str, str]]:
    """Write `pixels.npy`, `origin.npy` and, for segmentation, `masks.npy` in `work`.

    Returns:
        (name, reason) of every image that could not be read.

    Raises:
        OSError: The files cannot be written.
        CompressError: A mask does not fit its image.
    """
    unreadable: dict[int, str] = {}
    sources: list[np.ndarray] = []

    def decode_piece(piece: Piece) -> Rows | str:
        try:
            image = images.read_image(piece[0])
            return view.make_rows(image, *piece, read_matching_mask(images, piece[0], image.size))
        except UnreadableImageError as error:
            return str(error)

    max_rows = len(images) * view.views
    with ExitStack() as files:
        pixels = files.enter_context(NpyWriter(work / "pixels.npy", (max_rows, *view.image_size, 3)))
        masks = None
        if images.open_mask is not None:
            masks = files.enter_context(NpyWriter(work / "masks.npy", (max_rows, *view.image_size)))
        threads = workers or usable_cores()
        for (i, _), result in map_in_order(decode_piece, view.iter_pieces(len(images)), threads):
            if isinstance(result, str):
                unreadable.setdefault(i, result)
                continue
            sources.append(np.full(len(result[0]), i, dtype=np.int64))
            pixels.append_rows(result[0])
            if masks is not None and result[1] is not None:
                masks.append_rows(result[1])
    with open(work / "origin.npy", "wb") as file:
        np.save(file, np.concatenate(sources) if sources else np.zeros(0, dtype=np.int64), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return [(images.name_of(i), reason) for i, reason in unreadable.items()]


def read_matching_mask(images: ImageSet, i: int, size: tuple[int, int]) -> Image.Image | None:
    """The mask of image `i`, or None. Raises CompressError unless it has the size of its image."""
    if images.open_mask is None:
        return None
    mask = Image.fromarray(images.read_mask(i))
    if mask.size != size:
        found, expected = (f"{width}x{height}" for width, height in (mask.size, size))
        raise CompressError(
            f"{images.name}: the mask of {images.name_of(i)}: found {found} pixels, expected {expected} as its image."
        )
    return mask


class NpyWriter:
    """Write a .npy file of uint8 rows whose count is known at the end; at most that of `shape`."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.count = path, shape, 0

    def __enter__(self) -> NpyWriter:
        self.file = open(self.path, "wb")
        self.header_size = write_header(self.file, self.shape)
        return self

    def append_rows(self, rows: np.ndarray) -> None:
        self.count += len(rows)
        self.file.write(rows.tobytes())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self.file as file:
            if kind is not None:
                return
            file.seek(0)
            if write_header(file, (self.count, *self.shape[1:])) != self.header_size:
                raise ValueError(f"the header of {self.path.name} changed its length")
            file.flush()
            os.fsync(file.fileno())


def map_in_order(
    work: Callable[[Piece], Rows | str], pieces: Iterator[Piece], workers: int
) -> Iterator[tuple[Piece, Rows | str]]:
    """Yield each piece with its result, in order; at most PREFETCH results per thread wait."""
    waiting: deque[tuple[Piece, Future[Rows | str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for piece in pieces:
                waiting.append((piece, pool.submit(work, piece)))
                if len(waiting) > PREFETCH * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_header(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write the header of a .npy file and return its length, which is the same for any number of rows."""
    facts = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.tell()


def center_box(size: tuple[int, int], wanted: tuple[int, int], resize: int | None) -> Box:
    """The center after the short side became `resize`. Images that are too small are enlarged, not distorted.

    Like torchvision's CenterCrop, it begins at a whole pixel of the resized image, so that an image that has its size
    already is not resampled.
    """
    (source_width, source_height), (height, width) = size, wanted
    scale = min(min(size) / (resize or max(wanted)), source_width / width, source_height / height)
    left, top = (
        round((int(source / scale + ROUNDING) - target) / 2) * scale
        for source, target in ((source_width, width), (source_height, height))
    )
    return left, top, scale


def random_box(size: tuple[int, int], wanted: tuple[int, int], seed: tuple[int, ...]) -> Box:
    """A random position at a random scale between the network's size and the full image."""
    (source_width, source_height), (height, width) = size, wanted
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    full = min(source_width / width, source_height / height)
    scale = math.exp(rng.uniform(0.0, math.log(full))) if full > 1 else full
    left = rng.random() * (source_width - width * scale)
    top = rng.random() * (source_height - height * scale)
    return left, top, scale


def resize_box(
    image: Image.Image, size: tuple[int, int], left: float, top: float, scale: float, resample: Image.Resampling
) -> np.ndarray:
    """uint8 [h, w, …]: resize a box; it is clipped to the image, because Pillow refuses rounding errors."""
    height, width = size
    left, top = max(0.0, left), max(0.0, top)
    box = (left, top, min(left + width * scale, image.width), min(top + height * scale, image.height))
    return np.asarray(image.resize((width, height), resample, box=box))


def full_image_scale(size: tuple[int, int], canvas: tuple[int, int], resize: int | None) -> float:
    """Source pixels per pixel if the short side becomes `resize`; more if the image would not fit the canvas."""
    (source_width, source_height), (height, width) = size, canvas
    return max(min(size) / (resize or min(canvas)), source_width / (width + 0.5), source_height / (height + 0.5))


def resize_and_pad(image: Image.Image, canvas: tuple[int, int], scale: float, resample: Image.Resampling) -> np.ndarray:
    """uint8 [h, w, …]: the full image at the top left; the rest repeats its edge, or is IGNORE_INDEX in a mask."""
    height, width = canvas
    small = image.resize(scaled_size(image.size, scale), resample)
    pixels = np.asarray(small)
    rest = ((0, height - small.height), (0, width - small.width))
    if pixels.ndim == 2:
        return np.pad(pixels, rest, constant_values=IGNORE_INDEX)
    return np.pad(pixels, (*rest, (0, 0)), mode="edge")


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(width, height) of an image scaled down by `scale`."""
    return max(1, round(size[0] / scale)), max(1, round(size[1] / scale))
