"""Data sets of the Hugging Face hub, or of a folder that `datasets` knows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from compress.data.dataset import ImageSet
from compress.errors import CompressError, UsageError

#: names that a split goes by, in order of preference
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "test")}


def open_hub_dataset(spec: str, split: str) -> ImageSet:
    """`NAME` or `NAME@SPLIT`. The first image column is read; a class column gives labels.

    Raises UsageError without the extra or without an image column, CompressError where the data cannot be had.
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
        raise UsageError(f"hf/{spec}: no images in this split.")
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    names = None if label is None else list(features[label].names)
    labels = None if label is None else complete_labels(list(data[label]))
    # Our own reader decodes, with its limits; `datasets` would open anything that Pillow does.
    raw = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    items = [f"hf/{spec}/{i}" for i in range(len(data))]
    return ImageSet(f"hf/{spec}", items, lambda i: encoded_image(raw[i][column]), str(data._fingerprint), labels, names)


def load_split(spec: str, split: str) -> Any:
    """The table of the first split of that name that there is."""
    import datasets
    import datasets.exceptions

    name, _, part = spec.partition("@")
    wrong: ValueError | None = None
    for one in (part,) if part else SPLITS[split]:
        try:
            return datasets.load_dataset(name, split=one)
        except ValueError as error:
            wrong = wrong or error
        except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            why = " ".join(str(error).split())[:200]
            raise CompressError(
                f"hf/{spec}: cannot be had ({why}); is there a network, and is the name right?"
            ) from error
    why = " ".join(str(wrong).split())[:200]
    raise UsageError(f"hf/{spec}: {why} Name a split with hf/{name}@SPLIT.") from wrong


def complete_labels(values: list[int | None]) -> np.ndarray | None:
    """int64 [n]; None where some are not known (-1 by custom)."""
    known = [value for value in values if value is not None and value >= 0]
    return np.array(known, dtype=np.int64) if len(known) == len(values) else None


def encoded_image(cell: dict[str, Any] | None) -> Path | io.BytesIO:
    """The file of an image as the table has it: its bytes, or where it lies."""
    if cell is None:
        raise UnidentifiedImageError("no image in this row")
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])
