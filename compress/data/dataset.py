"""Images wherever they lie: counted, named, labeled perhaps, and read one by one as RGB."""

from __future__ import annotations

import contextlib
import hashlib
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from compress.errors import CompressError

#: pixels above which an image is taken for a decompression bomb (Pillow's own limit)
MAX_PIXELS = 89_478_485
#: what Pillow knows by name only, or hands to another program: EPS would run Ghostscript on the user's files
EXCLUDED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
#: EXIF's key; 5 and above lie on their side
EXIF_ORIENTATION = 0x0112
#: in a mask: nobody judges this pixel
IGNORE_INDEX = 255
#: what Pillow's decoders raise on broken files, besides `OSError`
DECODE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


class UnreadableImageError(Exception):
    """One image that cannot be read; the message says why. The run skips it, counts it and names it."""


@dataclass(frozen=True)
class ImageSet:
    """A set of images. `opened(i)` gives a Pillow image, a path or a binary file; `read(i)` the picture in RGB.

    For segmentation, `masks(i)` gives the classes of its pixels: a Pillow image of one channel, a path to one, or an
    array [h, w].
    """

    name: str
    names: Sequence[str]  #: a name for each image, for people
    open_image: Callable[[int], Image.Image | Path | IO[bytes]]
    identity: str  #: what changes when the content does
    labels: np.ndarray | None = None  #: int64 [n]
    class_names: list[str] | None = None
    open_mask: Callable[[int], Image.Image | Path | np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name_of(self, i: int) -> str:
        return self.names[i]

    def without_labels(self) -> ImageSet:
        """The images alone, without what is known of them."""
        return replace(self, labels=None, class_names=None, masks=None)

    def subsample(self, limit: int) -> ImageSet:
        """At most `limit` of the images, evenly spread through the set."""
        if limit >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, limit).astype(np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        items = [self.names[int(i)] for i in chosen]
        opened, masks, identity = self.open_image, self.open_mask, f"{self.identity} {limit}"
        return ImageSet(
            self.name, items, lambda i: opened(int(chosen[i])), identity, labels, self.class_names,
            None if masks is None else lambda i: masks(int(chosen[i])),
        )  # fmt: skip

    def fingerprint(self) -> str:
        """A hash of what identifies the content: names, sizes, dates."""
        digest = hashlib.sha256(f"{self.name}\n{self.identity}\n{len(self)}".encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        if self.open_mask is not None:
            digest.update(f"masks {self.class_names}".encode())
        return digest.hexdigest()

    def read_image(self, i: int) -> Image.Image:
        """Image `i` in RGB. Raises BadImage for anything that is not a whole, reasonable image."""
        with silence_warnings():
            try:
                source = self.open_image(i)
                if isinstance(source, Image.Image):
                    return to_rgb(check_pixel_limit(source))
                if isinstance(source, Path):
                    reject_special_files(source)
                with Image.open(source, formats=readable_formats()) as image:
                    return to_rgb(check_pixel_limit(image))
            except UnidentifiedImageError as error:
                raise UnreadableImageError("not an image that Pillow reads") from error
            except Image.DecompressionBombError as error:
                raise UnreadableImageError(" ".join(str(error).split())) from error
            except DECODE_ERRORS as error:
                raise UnreadableImageError(" ".join(str(error).split())[:200] or type(error).__name__) from error

    def iter_sizes(self) -> Iterator[tuple[int, int]]:
        """(width, height) of every image that can be opened, upright, from its header where it has one."""
        for i in range(len(self)):
            with (
                silence_warnings(),
                contextlib.suppress(UnidentifiedImageError, Image.DecompressionBombError, *DECODE_ERRORS),
            ):
                source = self.open_image(i)
                if isinstance(source, Image.Image):
                    yield source.size
                    continue
                with Image.open(source, formats=readable_formats()) as image:
                    yield oriented_size(image)

    def read_mask(self, i: int) -> np.ndarray:
        """uint8 [h, w]: the class of every pixel of image `i`, IGNORE where nobody judges.

        Raises BadImage where it cannot be read, CompressError where it holds what is no class.
        """
        assert self.open_mask is not None
        with silence_warnings():
            try:
                source = self.open_mask(i)
                if isinstance(source, Path):
                    reject_special_files(source)
                    with Image.open(source, formats=readable_formats()) as image:
                        values = mask_indices(check_pixel_limit(image))
                else:
                    values = mask_indices(source) if isinstance(source, Image.Image) else source
            except UnidentifiedImageError as error:
                raise UnreadableImageError("its mask is not an image that Pillow reads") from error
            except Image.DecompressionBombError as error:
                raise UnreadableImageError(" ".join(str(error).split())) from error
            except DECODE_ERRORS as error:
                raise UnreadableImageError(
                    "its mask: " + (" ".join(str(error).split())[:200] or type(error).__name__)
                ) from error
        self.check_mask_values(values, i)
        return values.astype(np.uint8)

    def check_mask_values(self, values: np.ndarray, i: int) -> None:
        """Raises CompressError for a mask with a value that is neither a class nor IGNORE."""
        top = len(self.class_names) if self.class_names else IGNORE_INDEX
        strange = values[((values < 0) | (values >= top)) & (values != IGNORE_INDEX)]
        if strange.size:
            raise CompressError(
                f"{self.name}: the mask of {self.name_of(i)} holds {int(strange.flat[0])}; expected classes 0 to "
                f"{top - 1}, and {IGNORE_INDEX} where nothing is judged."
            )


def count_mask_classes(masks: Iterable[np.ndarray]) -> int:
    """One more than the largest class that occurs; 0 where none does."""
    return max((1 + int(mask[mask != IGNORE_INDEX].max()) for mask in masks if (mask != IGNORE_INDEX).any()), default=0)


def mask_indices(image: Image.Image) -> np.ndarray:
    """[h, w] of a label map: grey values or palette indices as they are. Raises BadImage for colour."""
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise UnreadableImageError(
            f"its mask has mode {image.mode}; expected one channel of class indices (mode L or P)"
        )
    values = np.asarray(image)
    return values.astype(np.uint8) if image.mode == "1" else values


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in EXCLUDED_FORMATS)


@cache
def readable_extensions() -> frozenset[str]:
    """File name endings of the formats that are read, in lower case with their dot."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name not in EXCLUDED_FORMATS)


def reject_special_files(path: Path) -> None:
    """A pipe or a device would be waited on for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableImageError("not a regular file")


def check_pixel_limit(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(
            f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?"
        )
    return image


class WarningSilencer:
    """Silences warnings while any thread reads; `warnings.catch_warnings` alone is the process's, not a thread's."""

    def __init__(self) -> None:
        self.lock, self.readers, self.held = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            self.readers += 1
            if self.readers == 1:
                self.held.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1
                if self.readers == 0:
                    self.held.close()


#: Pillow warns of odd metadata, a thousand times in a large set; what it cannot read it raises
silence_warnings = WarningSilencer()


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, palette, CMYK and 16-bit images as RGB, upright; what is transparent lies on white."""
    image = apply_exif_orientation(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(to_uint8(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        return ground.convert("RGB")
    return image.convert("RGB")


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """The picture as its camera was held. EXIF that cannot be parsed says nothing; the pixels are read all the same."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the picture as its camera was held. A PNG without EXIF would be decoded to look for it."""
    known = image.format != "PNG" or "exif" in image.info
    turned = known and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (image.height, image.width) if turned else (image.width, image.height)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Deep grey values as uint8: 16 bits by their high byte, floats in [0, 1] by 255, wider ranges by their maximum."""
    top = np.nan_to_num(values, posinf=0, neginf=0).max(initial=0)
    if values.dtype.kind in "iu" and (values.dtype.itemsize == 2 or 255 < top <= 65535):
        return (np.clip(values, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)
    scale = 255.0 if values.dtype.kind == "f" and top <= 1 else min(1.0, 255.0 / top if top else 1.0)
    return np.clip(np.nan_to_num(values * scale, posinf=255, neginf=0), 0, 255).astype(np.uint8)
