"""Images embedded in a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MAX_SIDE = 1400  #: longer side in the page, in pixels
PIXELATED_SIDE = 700  #: longer side below which an image is enlarged without smoothing
MAX_DESCRIPTION = 4000  #: characters of a description
MAX_PNG_BYTES = 300_000  #: size above which a PNG is replaced by a JPEG


#: errors of Pillow for files that are missing, no images, damaged or far too large
READ_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


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


def embed_images(images: Mapping[str, Path]) -> tuple[list[EmbeddedImage], list[str]]:
    """Encode images as data URIs, reduced if large; also return a sentence for each unreadable one."""
    shown, failures = [], []
    for caption, path in images.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                kind, content, small, description = encode_image(Path(path))
        except READ_ERRORS as error:
            failures.append(f"The image “{caption}” could not be read ({type(error).__name__}: {Path(path).name}).")
            continue
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        shown.append(EmbeddedImage(caption, uri, Path(path), small, description))
    return shown, failures


def encode_image(path: Path) -> tuple[str, bytes, bool, str]:
    """Return (format, bytes, whether it is small, description) of an image, without other metadata."""
    with Image.open(path) as opened:
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
