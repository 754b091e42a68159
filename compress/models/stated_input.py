"""Image size, normalization and architecture that a checkpoint states beside its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from compress.models.checkpoints import CheckpointWeights
from compress.units import MAX_IMAGE_SIDE

#: keys under which training scripts store the name of the architecture
ARCHITECTURE_KEYS = ("arch", "architecture", "model_name", "model_arch", "model", "backbone", "encoder_name")
#: keys of the image size, in order of preference; those of validation first
SIZE_KEYS = ("val_crop_size", "input_size", "img_size", "image_size", "imgsz")
RESIZE_KEYS = ("val_resize_size",)
STATISTICS_KEYS = (("mean", "std"), ("image_mean", "image_std"), ("img_mean", "img_std"), ("pixel_mean", "pixel_std"))
#: smaller numbers under a key of the image size mean something else
MIN_SIZE = 8


def read_stated_input(weights: CheckpointWeights) -> dict[str, Any]:
    """The fields `image_size`, `resize`, `mean` and `std` of a card, as far as the options in a checkpoint say them."""
    stated: dict[str, Any] = {}
    for options in weights.options:
        size = next((size for key in SIZE_KEYS if (size := parse_size(options.get(key))) is not None), None)
        if size is not None and "image_size" not in stated:
            stated["image_size"] = size
            resize = read_resize(options, size)
            if resize is not None:
                stated["resize"] = resize
        for mean_key, std_key in STATISTICS_KEYS:
            statistics = parse_statistics(options.get(mean_key), options.get(std_key))
            if statistics is not None and "mean" not in stated:
                stated["mean"], stated["std"] = statistics
    return stated


def read_resize(options: Mapping[Any, Any], size: tuple[int, int]) -> int | None:
    """The short side before the center crop: torchvision's scripts store it, timm's the share that the crop is."""
    for key in RESIZE_KEYS:
        value = parse_size(options.get(key))
        if value is not None and min(value) >= min(size):
            return min(value)
    share = options.get("crop_pct")
    return math.floor(min(size) / share) if isinstance(share, float) and 0.1 < share <= 1 else None


def parse_size(value: Any) -> tuple[int, int] | None:
    """(height, width) from one number, [height, width] or [channels, height, width]."""
    sides = [value, value] if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(sides, list) or not all(isinstance(side, int) for side in sides):
        return None
    if len(sides) == 3 and (sides[0] in (1, 3) or sides[2] in (1, 3)):
        sides = sides[1:] if sides[0] in (1, 3) else sides[:2]
    is_size = len(sides) == 2 and all(MIN_SIZE <= side <= MAX_IMAGE_SIDE for side in sides)
    return (sides[0], sides[1]) if is_size else None


def parse_statistics(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation for images in [0, 1], from such for images in [0, 1] or [0, 255]."""
    means, stds = ([v] if isinstance(v, int | float) and not isinstance(v, bool) else v for v in (mean, std))
    if not isinstance(means, list) or not isinstance(stds, list) or len(means) != len(stds) or len(means) not in (1, 3):
        return None
    numbers = [*means, *stds]
    if not all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in numbers) or min(stds) <= 0:
        return None
    scale = 255.0 if max(numbers) > 2 else 1.0
    return tuple(float(v) / scale for v in means), tuple(float(v) / scale for v in stds)


def read_stated_architectures(weights: CheckpointWeights) -> set[str]:
    """Names of architectures that a checkpoint states, as `normalize_name` writes them."""
    return {normalize_name(name) for name in iter_architecture_names(weights)}


def iter_architecture_names(weights: CheckpointWeights) -> Iterator[str]:
    for options in (weights.metadata, *weights.options):
        for key in ARCHITECTURE_KEYS:
            value = options.get(key)
            if isinstance(value, Mapping):
                value = next((value[k] for k in ("name", "arch") if isinstance(value.get(k), str)), None)
            if isinstance(value, str):
                yield value


def normalize_name(name: str) -> str:
    """A name without the library, the tag of its weights, and the separators between words."""
    return name.rpartition("/")[2].partition(".")[0].lower().replace("-", "").replace("_", "")
