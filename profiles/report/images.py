"""Pictures made part of a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MAX_SIDE = 1400  #: pixels of the longer side, in the page
PIXELATED_SIDE = 700  #: pixels of the longer side below which a picture is enlarged without smoothing
MAX_DESCRIPTION = 4000  #: characters of a description
MAX_PNG_BYTES = 300_000  #: bytes above which a PNG is replaced by a JPEG


#: what Pillow raises for files that are missing, no pictures (an OSError of its own), damaged or far too large
READ_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class EmbeddedImage:
    """A picture with its caption; `source` is a data URI, or a path in Markdown."""

    caption: str
    source: str
    path: Path
    pixelated: bool = False
    description: str = ""  #: what a picture that was drawn says of itself

    @property
    def alt(self) -> str:
        return self.description or self.caption


def embed_images(pictures: Mapping[str, Path]) -> tuple[list[EmbeddedImage], list[str]]:
    """Pictures as data URIs, made smaller where needed, and a sentence for each that cannot be read."""
    shown, failures = [], []
    for caption, path in pictures.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                kind, content, small, description = encode_image(Path(path))
        except READ_ERRORS as error:
            failures.append(f"The picture “{caption}” could not be read ({type(error).__name__}: {Path(path).name}).")
            continue
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        shown.append(EmbeddedImage(caption, uri, Path(path), small, description))
    return shown, failures


def encode_image(path: Path) -> tuple[str, bytes, bool, str]:
    """(kind, bytes, whether it is small, its description) of a picture, without the metadata that its file carries."""
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
