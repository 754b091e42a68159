"""Images wherever they lie: counted, named, labelled perhaps, and read one by one as RGB."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: pixels above which an image is taken for a decompression bomb (Pillow's own limit)
MAX_PIXELS = 89_478_485


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
        items = [self.items[i] for i in chosen]
        return Images(
            self.name, items, lambda i: self.opened(int(chosen[i])), f"{self.identity} {limit}", labels, self.class_names
        )

    def fingerprint(self) -> str:
        """A hash of what identifies the content: names, sizes, dates."""
        digest = hashlib.sha256(f"{self.name}\n{self.identity}\n{len(self)}".encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def read(self, i: int) -> Image.Image:
        """Image `i` in RGB. Raises BadImage for anything that is not a whole, reasonable image."""
        try:
            source = self.opened(i)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = source if isinstance(source, Image.Image) else Image.open(source)
                if image.width * image.height > MAX_PIXELS:
                    raise BadImage(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?")
                return to_rgb(image)
        except UnidentifiedImageError as error:
            raise BadImage("not an image that Pillow knows") from error
        except Image.DecompressionBombError as error:
            raise BadImage(str(error)) from error
        except (OSError, ValueError, SyntaxError, KeyError, IndexError, TypeError, EOFError, MemoryError) as error:
            raise BadImage(" ".join(str(error).split())[:200] or type(error).__name__) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, palette, CMYK and 16-bit images as RGB, upright; what is transparent lies on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        return Image.fromarray(eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        return ground.convert("RGB")
    return image.convert("RGB")


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Deep grey values as uint8: 16 bits by their high byte, floats in [0, 1] by 255, others by their own range."""
    if values.dtype == np.uint16 or (values.dtype.kind in "iu" and values.max(initial=0) > 255):
        return (np.clip(values, 0, 65535).astype(np.uint32) >> 8).astype(np.uint8)
    scaled = values * 255.0 if values.dtype.kind == "f" and values.max(initial=0) <= 1 else values
    return np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8)
