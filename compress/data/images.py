"""Images wherever they lie: counted, named, labelled perhaps, and read one by one as RGB."""

from __future__ import annotations

import contextlib
import hashlib
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: pixels above which an image is taken for a decompression bomb (Pillow's own limit)
MAX_PIXELS = 89_478_485
#: what Pillow knows by name only, or hands to another program: EPS would run Ghostscript on the user's files
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
#: what Pillow's decoders raise on broken files, besides `OSError`
BROKEN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


class BadImage(Exception):
    """One image that cannot be read; the message says why. The run skips it, counts it and names it."""


@dataclass(frozen=True)
class Images:
    """A set of images. `opened(i)` gives a Pillow image, a path or a binary file; `read(i)` the picture in RGB."""

    name: str
    items: Sequence[str]  #: a name for each image, for people
    opened: Callable[[int], Image.Image | Path | IO[bytes]]
    identity: str  #: what changes when the content does
    labels: np.ndarray | None = None  #: int64 [n]
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def item(self, i: int) -> str:
        return self.items[i]

    def spread(self, limit: int) -> Images:
        """At most `limit` of the images, evenly spread through the set."""
        if limit >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, limit).astype(np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        items = [self.items[int(i)] for i in chosen]
        opened, identity = self.opened, f"{self.identity} {limit}"
        return Images(self.name, items, lambda i: opened(int(chosen[i])), identity, labels, self.class_names)

    def fingerprint(self) -> str:
        """A hash of what identifies the content: names, sizes, dates."""
        digest = hashlib.sha256(f"{self.name}\n{self.identity}\n{len(self)}".encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def read(self, i: int) -> Image.Image:
        """Image `i` in RGB. Raises BadImage for anything that is not a whole, reasonable image."""
        with quiet():
            try:
                source = self.opened(i)
                if isinstance(source, Image.Image):
                    return to_rgb(within_limit(source))
                if isinstance(source, Path):
                    refuse_devices(source)
                with Image.open(source, formats=formats()) as image:
                    return to_rgb(within_limit(image))
            except UnidentifiedImageError as error:
                raise BadImage("not an image that Pillow reads") from error
            except Image.DecompressionBombError as error:
                raise BadImage(" ".join(str(error).split())) from error
            except BROKEN as error:
                raise BadImage(" ".join(str(error).split())[:200] or type(error).__name__) from error


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NOT_READ)


@cache
def extensions() -> frozenset[str]:
    """File name endings of the formats that are read, in lower case with their dot."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name not in NOT_READ)


def refuse_devices(path: Path) -> None:
    """A pipe or a device would be waited on for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadImage("not a regular file")


def within_limit(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?")
    return image


class _Quiet:
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
quiet = _Quiet()


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, palette, CMYK and 16-bit images as RGB, upright; what is transparent lies on white."""
    image = upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        return ground.convert("RGB")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The picture as its camera was held. EXIF that cannot be parsed says nothing; the pixels are read all the same."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except BROKEN:
        return image


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Deep grey values as uint8: 16 bits by their high byte, floats in [0, 1] by 255, wider ranges by their maximum."""
    top = np.nan_to_num(values, posinf=0, neginf=0).max(initial=0)
    if values.dtype.kind in "iu" and (values.dtype.itemsize == 2 or 255 < top <= 65535):
        return (np.clip(values, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)
    scale = 255.0 if values.dtype.kind == "f" and top <= 1 else min(1.0, 255.0 / top if top else 1.0)
    return np.clip(np.nan_to_num(values * scale, posinf=255, neginf=0), 0, 255).astype(np.uint8)
