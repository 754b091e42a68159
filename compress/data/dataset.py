"""A set of images with optional labels or masks, decoded one by one to RGB."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from compress.errors import CompressError, UsageError
from compress.files import RASTER_FORMATS, require_regular_file, sanitize
from compress.units import MAX_CLASSES

#: larger images are treated as decompression bombs (Pillow's own limit), in pixels
MAX_PIXELS = 89_478_485
#: formats of opened images; Pillow calls a JPEG with more than one picture MPO
READABLE_FORMATS = {*RASTER_FORMATS, "MPO"}
#: EXIF key; values of 5 and above are rotated by 90 degrees
EXIF_ORIENTATION = 0x0112
#: endings of pictures that are not read: other formats, and raw files of cameras
UNREAD_ENDINGS = frozenset((
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".wdp", ".eps", ".ps", ".svg", ".exr", ".hdr", ".fit", ".fits", ".icns",
    ".cur", ".wmf", ".emf", ".xcf", ".xpm", ".xbm", ".dcm", ".raw", ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr",
    ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".sr2",
    ".srf", ".srw", ".x3f",
))  # fmt: skip
#: TIFF tags of the range of values
TIFF_TAGS = {"bits": 258, "integer min": 280, "integer max": 281, "min": 340, "max": 341}
MAX_8_BITS, MAX_12_BITS, MAX_16_BITS = 255, 4095, 65535
#: class of ignored pixels in a mask
IGNORE_INDEX = 255
#: what Pillow's decoders raise for damaged files
DECODE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
#: what opening and decoding a damaged, unknown or far too large image raises
READ_ERRORS = (*DECODE_ERRORS, Image.DecompressionBombError)


class UnreadableImageError(Exception):
    """An image cannot be read; the message gives the reason. Caches leave it out and list it."""


@dataclass(frozen=True)
class ImageSet:
    """A set of images; `read_image(i)` decodes one.

    Example:
        >>> images = ImageSet("gray", ["a", "b"], lambda i: Image.new("RGB", (32, 32), "gray"), identity="v1")
        >>> images.read_image(0).size
        (32, 32)
    """

    name: str  #: name of the set
    names: Sequence[str]  #: a name for each image, for messages
    open_image: Callable[[int], Image.Image | Path | IO[bytes]]  #: a PIL image, a path or an open binary file
    identity: str  #: changes when the content does
    labels: np.ndarray | None = None  #: int64 [n]
    class_names: list[str] | None = None  #: a name for every class
    open_mask: Callable[[int], Image.Image | Path | np.ndarray] | None = None  #: classes: one channel or [h, w]
    has_class_numbers: bool = False  #: every name begins with the number of its class, as in the pool of a run
    notes: tuple[str, ...] = ()  #: sentences on what was chosen and left out
    location: str = ""  #: where the images of a published data set are, whose identity does not depend on it

    def __len__(self) -> int:
        return len(self.names)

    def name_of(self, i: int) -> str:
        return self.names[i]

    def without_labels(self) -> ImageSet:
        """The images without labels, class names and masks."""
        return replace(self, labels=None, class_names=None, open_mask=None)

    def subsample(self, limit: int) -> ImageSet:
        """At most `limit` images, evenly spaced."""
        if limit >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, limit).astype(np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        names = [self.names[int(i)] for i in chosen]
        open_image, open_mask, identity = self.open_image, self.open_mask, f"{self.identity} {limit}"
        return ImageSet(
            self.name, names, lambda i: open_image(int(chosen[i])), identity, labels, self.class_names,
            None if open_mask is None else lambda i: open_mask(int(chosen[i])), self.has_class_numbers, self.notes,
            self.location,
        )  # fmt: skip

    def fingerprint(self) -> str:
        """A hash of name, identity, length and targets, as the key of caches."""
        facts = (self.name, self.identity, str(len(self)), *([self.location] if self.location else []))
        digest = hashlib.sha256("\n".join(facts).encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        if self.open_mask is not None:
            digest.update(f"masks {self.class_names}".encode())
        return digest.hexdigest()

    def content_hash(self) -> str:
        """A hash of identity, length and targets, which does not depend on where the images are."""
        return replace(self, name="", location="").fingerprint()

    def read_image(self, i: int) -> Image.Image:
        """Image `i` in RGB. Raises UnreadableImageError if it is damaged, too large or no image."""
        with silence_warnings():
            try:
                source = self.open_image(i)
                if isinstance(source, Image.Image):
                    return to_rgb(check_opened_image(source))
                with open_image_file(source) as image:
                    return to_rgb(image)
            except READ_ERRORS as error:
                raise UnreadableImageError(describe_read_error(error)) from error

    def iter_sizes(self) -> Iterator[tuple[int, int]]:
        """Yield (width, height) of every readable image, upright, from its header if possible."""
        for i in range(len(self)):
            with silence_warnings(), contextlib.suppress(UnreadableImageError, *READ_ERRORS):
                source = self.open_image(i)
                if isinstance(source, Image.Image):
                    yield check_opened_image(source).size
                    continue
                with open_image_file(source) as image:
                    yield oriented_size(image)

    def read_mask(self, i: int) -> np.ndarray:
        """uint8 [h, w]: the class of every pixel of image `i`, or IGNORE_INDEX.

        Raises UnreadableImageError if it cannot be read, CompressError if it contains values that are no classes.
        """
        assert self.open_mask is not None
        with silence_warnings():
            try:
                source = self.open_mask(i)
                if isinstance(source, Path):
                    with open_image_file(source) as image:
                        values = mask_indices(image)
                else:
                    values = mask_indices(check_opened_image(source)) if isinstance(source, Image.Image) else source
            except READ_ERRORS as error:
                raise UnreadableImageError(f"its mask: {describe_read_error(error)}") from error
        self.check_mask_values(values, i)
        return values.astype(np.uint8)

    def check_mask_values(self, values: np.ndarray, i: int) -> None:
        """Raise CompressError for a value that is neither a class nor IGNORE_INDEX, UnreadableImageError for no map."""
        is_whole = values.dtype.kind in "iub" or (values.dtype.kind == "f" and bool((values == np.floor(values)).all()))
        if values.ndim != 2 or not is_whole:
            raise UnreadableImageError(f"its mask is {values.dtype} {list(values.shape)}, expected numbers [h, w]")
        top = len(self.class_names) if self.class_names else IGNORE_INDEX
        strange = values[((values < 0) | (values >= top)) & (values != IGNORE_INDEX)]
        if strange.size:
            raise CompressError(
                f"{self.name}: the mask of {self.name_of(i)} holds {int(strange.flat[0])}; expected classes 0 to "
                f"{top - 1}, and {IGNORE_INDEX} where nothing is judged."
            )


def to_labels(values: Sequence[int | None], name: str) -> np.ndarray | None:
    """int64 [n]; None if labels are missing, or negative (unknown by convention).

    Raises CompressError for a label that no network could have.
    """
    known = [value for value in values if value is not None and value >= 0]
    if len(known) < len(values) or not known:
        return None
    if max(known) >= MAX_CLASSES:
        raise CompressError(f"{name}: found a label above {MAX_CLASSES - 1:,}, expected class numbers.")
    return np.array(known, dtype=np.int64)


def count_mask_classes(masks: Iterable[np.ndarray]) -> int:
    """The largest class + 1; 0 if there are no classes."""
    return max((1 + int(mask[mask != IGNORE_INDEX].max()) for mask in masks if (mask != IGNORE_INDEX).any()), default=0)


def mask_indices(image: Image.Image) -> np.ndarray:
    """[h, w] of a label map: gray values or palette indices. Raises UnreadableImageError for colors."""
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise UnreadableImageError(
            f"its mask has mode {image.mode}; expected one channel of class indices (mode L or P)"
        )
    values = np.asarray(image)
    return values.astype(np.uint8) if image.mode == "1" else values


@cache
def readable_extensions() -> frozenset[str]:
    """Suffixes of the accepted formats, in lower case with a dot."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in READABLE_FORMATS)


def count_endings(counts: Mapping[str, int]) -> str:
    """List files by ending, the most frequent first, as `3 files (2 .heic, 1 without an ending)`."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {'.' + ending.lstrip('.') if ending else 'without an ending'}" for ending, count in ranked[:8]]
    rest = sum(count for _, count in ranked[8:])
    total = sum(counts.values())
    listed = ", ".join([*parts, f"{rest} others"] if rest else parts)
    return f"{total} file{'s' if total > 1 else ''} ({listed})"


@contextlib.contextmanager
def open_image_file(source: Path | IO[bytes], formats: tuple[str, ...] = RASTER_FORMATS) -> Iterator[ImageFile]:
    """Open an image without decoding it. Raises UnreadableImageError or one of READ_ERRORS."""
    if isinstance(source, Path):
        try:
            require_regular_file(source)
        except UsageError as error:
            raise UnreadableImageError(str(error).removeprefix(f"{source}: ").rstrip(".")) from error
    with Image.open(source, formats=formats) as image:
        check_opened_image(image)
        yield image


def describe_read_error(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    return sanitize(" ".join(str(error).split()))[:200] or type(error).__name__


def check_opened_image(image: Image.Image) -> Image.Image:
    """Raise UnreadableImageError for too many pixels and for an opened file of another format."""
    if image.format not in (None, *READABLE_FORMATS):
        raise UnreadableImageError(f"found the format {image.format}, expected one of {', '.join(RASTER_FORMATS)}")
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(
            f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}: a decompression bomb?"
        )
    return image


class WarningSilencer:
    """Silence warnings while any thread reads, because `warnings.catch_warnings` affects the whole process."""

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


#: Pillow warns about unusual metadata, thousands of times in a large set; real problems are exceptions
silence_warnings = WarningSilencer()


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert gray, palette, CMYK and 16-bit images to upright RGB; transparency becomes white.

    Raises UnreadableImageError for values whose range is unknown; see `to_uint8`.
    """
    declared = declared_range(image)
    has_high_bytes = bool(image.tile) and ";16" in str(image.tile[0][3]) if isinstance(image, ImageFile) else False
    image = apply_exif_orientation(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(to_uint8(np.asarray(image), declared)).convert("RGB")
    if has_high_bytes and image.mode in ("RGB", "RGBA"):  # Pillow keeps the upper 8 of 16 bits per color
        top = int(np.asarray(image)[..., :3].max())
        if 0 < top <= MAX_12_BITS >> 8:
            raise range_error(f"16-bit colors below {(top + 1) << 8}")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image)
        return background.convert("RGB")
    return image.convert("RGB")


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation; EXIF that cannot be parsed is ignored."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF rotation. A PNG without EXIF is not decoded to search for it."""
    has_exif = image.format != "PNG" or "exif" in image.info
    is_rotated = has_exif and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (image.height, image.width) if is_rotated else (image.width, image.height)


def declared_range(image: Image.Image) -> tuple[float, float] | None:
    """(black, white) of a grayscale file of more than 8 bits, as its format or its TIFF tags declare; else None."""
    if image.format in ("PPM", "JPEG2000") and image.mode.startswith("I"):
        return 0.0, 65535.0  # Pillow scales what these files declare to 16 bits
    if not isinstance(image, TiffImageFile):
        return None
    tags = {name: np.atleast_1d(image.tag_v2[tag]) for name, tag in TIFF_TAGS.items() if tag in image.tag_v2}
    bits = int(tags["bits"][0]) if "bits" in tags else 16
    highs = [tags[name][0] for name in ("max", "integer max") if name in tags] or (
        [2**bits - 1] if 8 < bits < 16 else []
    )
    low = next((tags[name][0] for name in ("min", "integer min") if name in tags), 0)
    return (float(low), float(highs[0])) if highs and highs[0] > low else None


def to_uint8(values: np.ndarray, declared: tuple[float, float] | None = None) -> np.ndarray:
    """Convert gray values to uint8 by their declared range, else 16 bits to their high byte and [0, 1] times 255.

    Args:
        values: Gray values [h, w].
        declared: (black, white).

    Raises:
        UnreadableImageError: The range is unknown: floats outside [0, 1]; integers that are negative or above 65535;
            16-bit integers that do not exceed 12 bits, as cameras store them.
    """
    if declared is not None:
        low, high = declared
        scaled = (values.astype(np.float64) - low) / (high - low)
        return (np.clip(np.nan_to_num(scaled), 0, 1) * 255).astype(np.uint8)
    low, top = (values.min(initial=0), values.max(initial=0))
    if values.dtype.kind == "f":
        if not (low >= 0 and top <= 1):  # also for NaN
            raise range_error(f"floats from {low:.3g} to {top:.3g}")
        return (values * 255).astype(np.uint8)
    if low < 0 or top > MAX_16_BITS:
        raise range_error(f"integers from {low} to {top}")
    if values.dtype.itemsize > 2 and top <= MAX_8_BITS:
        return values.astype(np.uint8)
    if 0 < top <= MAX_12_BITS:
        raise range_error(f"16-bit values up to {top}")
    return (values.astype(np.uint32) >> 8).astype(np.uint8)


def range_error(found: str) -> UnreadableImageError:
    return UnreadableImageError(
        f"found {found}, but the file does not declare which value is white; convert it to 8 bits, or write a TIFF "
        "with the tag MaxSampleValue"
    )
