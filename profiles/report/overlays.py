"""Segmentation overlays: images with the labels and the predictions of several models in color, one image per row."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from compress.errors import CompressError
from compress.files import require_regular_file
from compress.own_files import OVERLAY_ARRAYS, OVERLAY_IMAGE
from profiles.formatting import format_percent
from profiles.records import write_file
from profiles.report.charts import clean_label
from profiles.report.colors import class_colors
from profiles.report.images import find_in_folders

ARRAYS, IMAGE = OVERLAY_ARRAYS, OVERLAY_IMAGE
IGNORE = 255  #: label of ignored pixels
TRUTH = "truth"
OPACITY = 0.68  #: opacity of a class's color over the gray image
MAX_PREDICTIONS = 6  #: columns besides image and labels
TILE = 184  #: longer side of a tile in pixels
GAP, TEXT, STRIPE = 8, 22, 6  #: pixels
INK, PAPER, LIGHT, DARK = "#1b1f24", "#ffffff", 235, 150
MAX_IMAGES = 64  #: rows of a file that is read
MAX_NAME = 200  #: characters of a name
MAX_BYTES = 1 << 30  #: all arrays of a file that is read
#: arrays of a file -> kind of their values
KINDS = {"images": "u", "truth": "u", "predictions": "u", "names": "U", "class_names": "U"}
#: errors of NumPy for missing or invalid files
READ_ERRORS = (
    CompressError, OSError, EOFError, ValueError, TypeError, LookupError, SyntaxError, MemoryError, RuntimeError,
    SystemError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class Overlays:
    """A few images with labels and predictions. Label maps are class indices, 255 for ignored pixels."""

    images: np.ndarray  #: uint8 [n, h, w, 3]
    truth: np.ndarray  #: uint8 [n, h, w]
    predictions: Mapping[str, np.ndarray]  #: model name -> uint8 [n, h, w]
    class_names: Sequence[str]

    @property
    def caption(self) -> str:
        return f"{len(self.images)} validation images with labels and the predictions of each model"

    @property
    def description(self) -> str:
        """The overlays as text."""
        counted = self.truth != IGNORE
        total = max(1, int(counted.sum()))
        correct = [
            f"{name} {format_percent(int(((a == self.truth) & counted).sum()) / total, 1)}"
            for name, a in self.predictions.items()
        ]
        names = ", ".join(self.class_names[c] for c in self.visible_classes())
        columns = ", ".join(["the image", TRUTH, *self.shown_predictions])
        return f"{self.caption}. Columns: {columns}. Classes: {names}. Correct pixels: {', '.join(correct)}."

    @property
    def shown_predictions(self) -> dict[str, np.ndarray]:
        """The first predictions, as many as there are columns."""
        return dict(list(self.predictions.items())[:MAX_PREDICTIONS])

    def visible_classes(self) -> list[int]:
        """Return the classes that occur in the image."""
        classes = np.unique(np.concatenate([self.truth.ravel(), *(a.ravel() for a in self.shown_predictions.values())]))
        return [int(c) for c in classes if c < len(self.class_names)]


# Files.


def save_overlays(folder: Path, overlays: Overlays) -> Path:
    """Write the arrays and their image into `folder`; return the path of the image. Raises RecordError."""
    file = io.BytesIO()
    predictions = list(overlays.predictions.values())
    np.savez_compressed(
        file, images=overlays.images, truth=overlays.truth, names=np.array(list(overlays.predictions), dtype=np.str_),
        predictions=np.stack(predictions) if predictions else np.zeros((0, *overlays.truth.shape), np.uint8),
        class_names=np.array(overlays.class_names, dtype=np.str_),
    )  # fmt: skip
    write_file(Path(folder) / ARRAYS, file.getvalue())
    return save_overlay_image(folder, overlays)


def save_overlay_image(folder: Path, overlays: Overlays, name: str = IMAGE) -> Path:
    """Write only the image, with caption and description as metadata."""
    words = PngInfo()
    words.add_itxt("Title", overlays.caption)
    words.add_itxt("Description", overlays.description)
    file = io.BytesIO()
    draw_overlays(overlays).save(file, "PNG", optimize=True, pnginfo=words)
    write_file(Path(folder) / name, file.getvalue())
    return Path(folder) / name


def load_overlays(folder: Path) -> Overlays:
    """Read what `save_overlays` wrote. Raises one of READ_ERRORS if the file is missing or damaged."""
    arrays = read_arrays(require_regular_file(Path(folder) / ARRAYS))
    images, truth, predictions = arrays["images"], arrays["truth"], arrays["predictions"]
    names, class_names = ([clean_label(str(n), MAX_NAME) for n in arrays[key]] for key in ("names", "class_names"))
    shapes = images.shape == (*truth.shape, 3) and predictions.shape == (len(names), *truth.shape) and truth.ndim == 3
    if not shapes or truth.size == 0 or len(truth) > MAX_IMAGES or len(class_names) > IGNORE:
        raise ValueError("not arrays of overlays")
    if len(set(names)) < len(names):
        raise ValueError("two predictions with one name")
    return Overlays(images, truth, dict(zip(names, predictions, strict=True)), class_names)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of overlays after their headers; a small file can announce any size, which NumPy reserves.

    Raises one of READ_ERRORS, ValueError for other types and for more than MAX_BYTES.
    """
    total = 0
    with zipfile.ZipFile(path) as file:
        for name, kind in KINDS.items():
            with file.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            if dtype.kind != kind or (kind == "u" and dtype.itemsize != 1) or min(shape, default=0) < 0:
                raise ValueError(f"found values of type {dtype}, expected {kind}")
            total += math.prod(shape) * dtype.itemsize
        if total > MAX_BYTES:
            raise ValueError(f"found {total} bytes, expected at most {MAX_BYTES}")
        return {name: read_array(file, name) for name in KINDS}


def read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def collect_overlays(
    run_dirs: Sequence[Path], output_dir: Path, folders: Sequence[Path] | None = None
) -> tuple[dict[str, Path], list[str]]:
    """Draw the overlays of several run directories into `output_dir`: caption -> image, and failures.

    Runs with the same images share one image. Files out of `folders` are not read, if these are given.

    Raises RecordError if `output_dir` cannot be written.
    """
    loaded, failures = [], []
    for run_dir in run_dirs:
        if not os.path.lexists(run_dir / ARRAYS):
            continue
        try:
            file = run_dir / ARRAYS if folders is None else find_in_folders(run_dir / ARRAYS, folders)
            loaded.append((file.parent.resolve().name, load_overlays(file.parent)))
        except READ_ERRORS as error:
            failures.append(f"The overlays of {run_dir.name} could not be read ({type(error).__name__}: {ARRAYS}).")
    images = {}
    for i, overlays in enumerate(merge_overlays(loaded)):
        file = IMAGE if i == 0 else IMAGE.replace(".", f"-{i + 1}.")
        path = save_overlay_image(output_dir, overlays, file)
        images[overlays.caption if i == 0 else f"{overlays.caption} ({i + 1})"] = path
    return images, failures


def merge_overlays(loaded: Sequence[tuple[str, Overlays]]) -> list[Overlays]:
    """Merge overlays of the same images; models with the same name get their directory's name if they differ."""
    joined: list[Overlays] = []
    for directory, new in loaded:
        known = next((i for i, old in enumerate(joined) if have_same_images(old, new)), None)
        if known is None:
            joined.append(new)
            continue
        predictions = dict(joined[known].predictions)
        for name, prediction in new.predictions.items():
            if name not in predictions:
                predictions[name] = prediction
            elif not np.array_equal(predictions[name], prediction):
                predictions[f"{name} ({directory})"] = prediction
        joined[known] = replace(joined[known], predictions=predictions)
    return joined


def have_same_images(one: Overlays, other: Overlays) -> bool:
    is_same = one.truth.shape == other.truth.shape and list(one.class_names) == list(other.class_names)
    return is_same and np.array_equal(one.truth, other.truth) and np.array_equal(one.images, other.images)


# Drawing.


def blend_labels(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Blend the colors of `labels` [h, w] over `image` uint8 [h, w, 3] in gray; stripes for ignored pixels."""
    gray = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    known = labels < len(palette)
    tint = palette[np.where(known, labels, 0)]
    mixed = (1 - OPACITY) * gray[..., None] + OPACITY * tint
    rows, columns = np.indices(labels.shape)
    stripes = np.where((rows + columns) // STRIPE % 2, LIGHT, DARK)[..., None]
    return np.where(known[..., None], mixed, stripes).round().astype(np.uint8)


def draw_overlays(overlays: Overlays) -> Image.Image:
    """Draw one row per image: image, labels, up to six predictions with their names, and a legend of classes."""
    palette = class_colors(overlays.class_names)
    height, width = overlays.truth.shape[1:]
    scale = TILE / max(height, width)
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = [("image", None), (TRUTH, overlays.truth), *overlays.shown_predictions.items()]
    page_width = len(columns) * (tile[0] + GAP) - GAP
    head = [wrap_heading(name, tile[0]) for name, _ in columns]
    top = TEXT * 5 // 4 * max(len(lines) for lines in head) + GAP
    bottom = top + len(overlays.images) * (tile[1] + GAP) + GAP
    ignored = bool((overlays.truth >= len(palette)).any())
    entries = [(overlays.class_names[c], palette[c]) for c in overlays.visible_classes()] + [
        ("ignored", None)
    ] * ignored
    positions, page_height = layout_legend([name for name, _ in entries], page_width, bottom)
    page = Image.new("RGB", (page_width, page_height), PAPER)
    draw = ImageDraw.Draw(page)
    for i, (lines, (_, labels)) in enumerate(zip(head, columns, strict=True)):
        left = i * (tile[0] + GAP)
        draw_text(draw, (left, 0), "\n".join(lines))
        for j, image in enumerate(overlays.images):
            shown = draw_tile(image, None if labels is None else labels[j], tile, palette)
            page.paste(shown, (left, top + j * (tile[1] + GAP)))
    for (name, color), position in zip(entries, positions, strict=True):
        page.paste(legend_swatch(color), position)
        draw_text(draw, (position[0] + TEXT + GAP, position[1]), name)
    return page


def draw_tile(image: np.ndarray, labels: np.ndarray | None, size: tuple[int, int], palette: np.ndarray) -> Image.Image:
    """Draw one tile of (width, height): the image alone, or blended with the colors of its classes."""
    large = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    if labels is None:
        return large
    cut = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return Image.fromarray(blend_labels(np.asarray(large), np.asarray(cut), palette))


def legend_swatch(color: np.ndarray | None) -> Image.Image:
    """Draw a square of a class's color on medium gray; stripes for ignored pixels."""
    gray = np.full((TEXT, TEXT, 3), 128, np.uint8)
    known = np.zeros((1, 3), np.uint8) if color is None else color[None]
    return Image.fromarray(blend_labels(gray, np.full((TEXT, TEXT), IGNORE if color is None else 0), known))


def load_font() -> ImageFont.FreeTypeFont:
    """Return the font of matplotlib, which has most alphabets."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT - 4)


def draw_text(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str) -> None:
    draw.multiline_text(position, text, fill=INK, font=load_font(), spacing=TEXT // 4)


def wrap_heading(text: str, width: int) -> list[str]:
    """Wrap a heading into at most three lines of `width` pixels, between words if possible."""
    lines: list[str] = []
    for word in text.split():
        parts = [word] if load_font().getlength(word) <= width else re.findall(r"[^_/.-]+[_/.-]*|[_/.-]+", word)
        for i, part in enumerate(parts):
            glue = "" if i else " "
            if lines and load_font().getlength(lines[-1] + glue + part) <= width:
                lines[-1] += glue + part
            else:
                lines.append(part)
    kept = lines[:3]
    if len(lines) > 3:
        kept[-1] += "…"
    return [truncate_text(line, width) for line in kept]


def truncate_text(text: str, width: int) -> str:
    """Truncate text to `width` pixels."""
    if load_font().getlength(text) <= width:
        return text
    while text and load_font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def layout_legend(names: Sequence[str], width: int, top: int) -> tuple[list[tuple[int, int]], int]:
    """Return the position of each entry in columns of equal width, and the bottom of the legend."""
    widest = max((load_font().getlength(name) for name in names), default=0)
    across = max(1, width // (TEXT + 3 * GAP + int(widest)))
    step, high = width // across, TEXT + GAP
    positions = [(i % across * step, top + i // across * high) for i in range(len(names))]
    return positions, top + -(-len(names) // across) * high
