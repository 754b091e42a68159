"""From images to rows of uint8, written as they come: what fills the cache."""

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

#: bytes of rows that one worker makes at a time, and the most views: one picture with many views keeps all of them busy
PIECE_BYTES, PIECE_VIEWS = 8 << 20, 256
#: pieces a worker may be ahead of what is written
PREFETCH = 2
#: number of an image, and which of its views
Piece = tuple[int, range]
#: uint8 [views, h, w, 3], and the masks [views, h, w] where there are some
Rows = tuple[np.ndarray, np.ndarray | None]
#: left and top in pixels of the source, and how many of them become one
Box = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """How a picture becomes rows. `image_size` is (height, width) in pixels."""

    image_size: tuple[int, int]
    resize: int | None = None  #: short side before the centre is cropped; None: the longer of `image_size`
    views: int = 1
    seed: int = 0
    grayscale: bool = False
    full_image: bool = (
        False  #: nothing is cropped: the short side is made `resize`, what is missing to `image_size` padded
    )

    def make_rows(self, image: Image.Image, i: int, views: range, mask: Image.Image | None = None) -> Rows:
        """The rows of image number `i`: a pure function of the picture, `i` and these settings."""
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
        """The work in order, each piece small enough for memory; a picture with many views is read once a piece."""
        most = min(PIECE_VIEWS, max(1, PIECE_BYTES // (math.prod(self.image_size) * 3)))
        for i in range(images):
            for start in range(0, self.views, most):
                yield i, range(start, min(start + most, self.views))


def decode_images(images: ImageSet, work: Path, view: View, workers: int | None) -> list[tuple[str, str]]:
    """Fill `pixels.npy`, `origin.npy` and, where there are masks, `masks.npy` in `work`.

    Returns the name of and the reason for what could not be read. Raises OSError where they cannot be written,
    CompressError for a mask that does not fit its image.
    """
    bad: dict[int, str] = {}
    good: list[np.ndarray] = []

    def rows(piece: Piece) -> Rows | str:
        try:
            image = images.read_image(piece[0])
            return view.make_rows(image, *piece, read_matching_mask(images, piece[0], image.size))
        except UnreadableImageError as error:
            return str(error)

    most = len(images) * view.views
    with ExitStack() as files:
        pixels = files.enter_context(NpyWriter(work / "pixels.npy", (most, *view.image_size, 3)))
        masks = None
        if images.open_mask is not None:
            masks = files.enter_context(NpyWriter(work / "masks.npy", (most, *view.image_size)))
        for (i, _), made in map_in_order(rows, view.iter_pieces(len(images)), workers or os.cpu_count() or 1):
            if isinstance(made, str):
                bad.setdefault(i, made)
                continue
            good.append(np.full(len(made[0]), i, dtype=np.int64))
            pixels.append_rows(made[0])
            if masks is not None and made[1] is not None:
                masks.append_rows(made[1])
    with open(work / "origin.npy", "wb") as file:
        np.save(file, np.concatenate(good) if good else np.zeros(0, dtype=np.int64), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return [(images.name_of(i), reason) for i, reason in bad.items()]


def read_matching_mask(images: ImageSet, i: int, size: tuple[int, int]) -> Image.Image | None:
    """The mask of image `i`, None where the set has none. Raises CompressError unless it is as large as its image."""
    if images.open_mask is None:
        return None
    mask = Image.fromarray(images.read_mask(i))
    if mask.size != size:
        (w, h), (wide, high) = mask.size, size
        raise CompressError(
            f"{images.name}: the mask of {images.name_of(i)} is {w}x{h} pixels and its image {wide}x{high}; expected the "
            f"same size."
        )
    return mask


class NpyWriter:
    """A .npy file of uint8 rows whose number is known at the end; at most that of `shape`."""

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
    """Each piece with what `work` made of it, in their order, however many threads work; few wait to be taken."""
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
    """Write the header of a .npy file; its length, which leaves room for any number of rows."""
    facts = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.tell()


def center_box(size: tuple[int, int], wanted: tuple[int, int], resize: int | None) -> Box:
    """The short side made `resize`, the centre taken. What is then too small is enlarged, not bent."""
    (wide, high), (height, width) = size, wanted
    share = min(min(size) / (resize or max(wanted)), wide / width, high / height)
    return (wide - width * share) / 2, (high - height * share) / 2, share


def random_box(size: tuple[int, int], wanted: tuple[int, int], seed: tuple[int, ...]) -> Box:
    """A random place at a random scale between the network's size and the whole image."""
    (wide, high), (height, width) = size, wanted
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    whole = min(wide / width, high / height)
    share = math.exp(rng.uniform(0.0, math.log(whole))) if whole > 1 else whole
    left = rng.random() * (wide - width * share)
    top = rng.random() * (high - height * share)
    return left, top, share


def resize_box(
    image: Image.Image, size: tuple[int, int], left: float, top: float, share: float, resample: Image.Resampling
) -> np.ndarray:
    """uint8 [h, w, …]: `share` source pixels a pixel. Rounding never leads outside, which Pillow refuses."""
    height, width = size
    left, top = max(0.0, left), max(0.0, top)
    box = (left, top, min(left + width * share, image.width), min(top + height * share, image.height))
    return np.asarray(image.resize((width, height), resample, box=box))


def full_image_scale(size: tuple[int, int], canvas: tuple[int, int], resize: int | None) -> float:
    """Source pixels a pixel where the short side becomes `resize`; more where the image would not fit the canvas."""
    (wide, high), (height, width) = size, canvas
    return max(min(size) / (resize or min(canvas)), wide / (width + 0.5), high / (height + 0.5))


def resize_and_pad(image: Image.Image, canvas: tuple[int, int], share: float, resample: Image.Resampling) -> np.ndarray:
    """uint8 [h, w, …]: the whole image at the top left; the rest repeats its edge, or is IGNORE in a mask."""
    height, width = canvas
    small = image.resize(scaled_size(image.size, share), resample)
    pixels = np.asarray(small)
    rest = ((0, height - small.height), (0, width - small.width))
    if pixels.ndim == 2:
        return np.pad(pixels, rest, constant_values=IGNORE_INDEX)
    return np.pad(pixels, (*rest, (0, 0)), mode="edge")


def scaled_size(size: tuple[int, int], share: float) -> tuple[int, int]:
    """(width, height) of an image of which `share` pixels become one."""
    return max(1, round(size[0] / share)), max(1, round(size[1] / share))
