"""Data sets of the Hugging Face hub, or of a folder that `datasets` knows."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress.data.images import Images
from compress.errors import CompressError, UsageError


def hub_images(spec: str, split: str) -> Images:
    """`NAME` or `NAME@SPLIT`. The first image column is read; a class column gives labels.

    Raises UsageError without the extra or without an image column, CompressError where the data cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"hf/{spec}: the package datasets is not installed; run `pip install 'compress[hub]'`.") from error
    name, _, part = spec.partition("@")
    try:
        data: Any = datasets.load_dataset(name, split=part or {"train": "train", "val": "validation"}[split])
    except ValueError as error:
        known = " ".join(str(error).split())[:200]
        raise UsageError(f"hf/{spec}: {known} Name a split with hf/{name}@SPLIT.") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise CompressError(f"hf/{spec}: cannot be had ({' '.join(str(error).split())[:200]}); is there a network?") from error
    features = data.features
    column = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise UsageError(f"hf/{spec}: no column of images; found {', '.join(features)}.")
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    labels = None if label is None else np.asarray(data[label], dtype=np.int64)
    names = None if label is None else list(features[label].names)
    items = [f"hf/{spec}/{i}" for i in range(len(data))]
    return Images(f"hf/{spec}", items, lambda i: data[i][column], str(data._fingerprint), labels, names)
