"""Datasets of the Hugging Face hub, or of a directory that the package `datasets` can load."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from compress.data.dataset import ImageSet, to_labels
from compress.errors import CompressError, UsageError, first_line
from compress.files import sanitize

#: common names of a split, in order of preference
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "test")}


def open_hub_dataset(spec: str, split: str) -> ImageSet:
    """Open `NAME` or `NAME@SPLIT`: the first image column, with labels from the first class column.

    Raises:
        UsageError: The extra `hub` is not installed, or there is no image column.
        CompressError: The data cannot be downloaded.
    """
    try:
        import datasets
    except ImportError as error:
        missing = f"hf/{spec}: the package datasets is not installed; run `pip install 'compress-distill[hub]'`."
        raise UsageError(missing) from error
    data = load_split(spec, split)
    features = data.features
    column = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise UsageError(f"hf/{spec}: no column of images; found {', '.join(features)}.")
    if len(data) == 0:
        raise UsageError(f"hf/{spec}: found no images in this split; choose another one.")
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    names = None if label is None else list(features[label].names)
    labels = None if label is None else to_labels(list(data[label]), f"hf/{spec}")
    # Images are decoded here, with limits; `datasets` would open every format of Pillow.
    raw = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    items = [f"hf/{spec}/{i}" for i in range(len(data))]
    return ImageSet(f"hf/{spec}", items, lambda i: encoded_image(raw[i][column]), str(data._fingerprint), labels, names)


def load_split(spec: str, split: str) -> Any:
    """Load the first split of that name that exists."""
    import datasets

    name, _, part = spec.partition("@")
    wrong: ValueError | None = None
    for one in (part,) if part else SPLITS[split]:
        try:
            return datasets.load_dataset(name, split=one)
        except ValueError as error:
            wrong = wrong or error
        except Exception as error:  # the package parses damaged files with several others
            raise CompressError(
                f"hf/{spec}: cannot be loaded ({sanitize(first_line(error))}); check its name and files."
            ) from error
    reason = sanitize(" ".join(str(wrong).split()))[:200]
    raise UsageError(f"hf/{spec}: {reason} Choose a split with hf/{name}@SPLIT.") from wrong


def encoded_image(cell: dict[str, Any] | None) -> Path | io.BytesIO:
    """The encoded image in a cell of the table: its bytes or its path."""
    if cell is None:
        raise UnidentifiedImageError("no image in this row")
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])
