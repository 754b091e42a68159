"""Images embedded in a page."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from compress.errors import UsageError
from compress.files import RASTER_FORMATS, require_inside, require_regular_file

MAX_IMAGES = 200  #: images in a page
MAX_SIDE = 1400  #: longer side in the page, in pixels
PIXELATED_SIDE = 700  #: longer side below which an image is enlarged without smoothing
MAX_DESCRIPTION = 4000  #: characters of a description
MAX_PNG_BYTES = 300_000  #: size above which a PNG is replaced by a JPEG


#: errors of Pillow for files that are missing, no images, damaged or far too large
READ_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass(frozen=True)
class EmbeddedImage:
    """An image with its caption; `source` is a data URI, or a path in Markdown."""

    caption: str
    source: str
    path: Path
    pixelated: bool = False
    description: str = ""  #: description in the file's metadata

    @property
    def alt(self) -> str:
        return self.description or self.caption


def embed_images(
    images: Mapping[str, Path], folders: Sequence[Path] | None = None
) -> tuple[list[EmbeddedImage], list[str]]:
    """Encode images as data URIs, reduced if large; also return a sentence for each one that is not shown.

    Args:
        images: Caption -> file.
        folders: Folders that contain the files after links are followed; None: any file.
    """
    shown, failures = [], []
    for caption, path in list(images.items())[:MAX_IMAGES]:
        try:
            file = path if folders is None else find_in_folders(path, folders)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                kind, content, small, description = encode_image(require_regular_file(file))
        except UsageError as error:
            failures.append(f"The image “{caption}” could not be read: {error}")
            continue
        except READ_ERRORS as error:
            failures.append(f"The image “{caption}” could not be read ({type(error).__name__}: {path.name}).")
            continue
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        shown.append(EmbeddedImage(caption, uri, file, small, description))
    if len(images) > MAX_IMAGES:
        failures.append(f"The first {MAX_IMAGES} of {len(images):,} images are shown.")
    return shown, failures


def find_in_folders(path: Path, folders: Sequence[Path]) -> Path:
    """Return the resolved `path` if it lies in one of the folders; raise UsageError if not."""
    for folder in folders:
        try:
            return require_inside(folder, path.absolute())
        except UsageError:
            continue
    raise UsageError(f"{path.name}: found a path out of the folders of the runs, expected one inside them.")


def encode_image(path: Path) -> tuple[str, bytes, bool, str]:
    """Return (format, bytes, whether it is small, description) of an image, without other metadata."""
    with Image.open(path, formats=RASTER_FORMATS) as opened:
        image = opened.convert("RGBA" if "A" in opened.getbands() or "transparency" in opened.info else "RGB")
        description = " ".join(str(opened.info.get("Description", "")).split())[:MAX_DESCRIPTION]
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    if file.tell() <= MAX_PNG_BYTES:
        return "png", file.getvalue(), max(image.size) < PIXELATED_SIDE and not description, description
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return "jpeg", file.getvalue(), False, description
