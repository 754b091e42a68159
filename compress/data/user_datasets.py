"""Datasets and DataLoaders of the user as image sets.

A registered dataset has a text name, "dataset:HASH", so that settings, recipes and caches can name it. The hash covers
the pixels and the targets: the same content resumes a run and hits the cache, other content does not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from compress.data.dataset import (
    READ_ERRORS,
    ImageSet,
    UnreadableImageError,
    check_opened_image,
    describe_read_error,
    to_labels,
)
from compress.errors import UsageError

PREFIX = "dataset:"
IMAGE_KEYS = ("image", "images", "img", "pixel_values")
TARGET_KEYS = ("label", "labels", "mask", "masks", "target", "targets")

_REGISTERED: dict[str, ImageSet] = {}


def register_dataset(dataset: Any) -> str:
    """Register a dataset under a text that every data setting of this process accepts.

    The dataset is read once, to hash its content and to collect its labels.

    Args:
        dataset: An ImageSet, a torch Dataset or DataLoader, or any iterable of samples. A sample is an image, a pair
            (image, target) or a mapping with "image" and "label" or "mask". Images are PIL images, uint8 or float
            tensors [3 or 1, h, w] (floats in [0, 1], not normalized) or uint8 arrays [h, w, 3]. Targets are class
            numbers, masks [h, w] of class numbers with 255 where pixels are ignored, or 0 and 1 for each label [c].
            Of a DataLoader the samples are read in the order of its dataset; batches are split.

    Returns:
        "dataset:" and a hash of the content.

    Raises:
        UsageError: There are no samples, or one has another form.

    Example:
        >>> images = torch.rand(4, 3, 32, 32)
        >>> register_dataset(torch.utils.data.TensorDataset(images, torch.arange(4)))[:8]
        'dataset:'
    """
    if isinstance(dataset, ImageSet):
        spec = PREFIX + dataset.fingerprint()[:16]
        _REGISTERED[spec] = dataset
        return spec
    samples = list_samples(dataset)
    digest = hashlib.sha256()
    labels: list[int] = []
    label_rows: list[np.ndarray] = []
    has_masks = False
    for i in range(len(samples)):
        image, target = split_sample(samples[i], i)
        digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        if isinstance(target, np.ndarray):
            if target.ndim == 1:
                label_rows.append(target.astype(np.int64))
            has_masks = has_masks or target.ndim == 2
            digest.update(f"{target.shape}".encode() + target.tobytes())
        elif target is not None:
            labels.append(target)
    if len(samples) == 0:
        raise UsageError(f"{type(dataset).__name__}: found no samples, expected images; check the dataset.")
    known = to_labels(labels, type(dataset).__name__) if len(labels) == len(samples) else None
    if label_rows:
        if len(label_rows) < len(samples) or len({len(row) for row in label_rows}) > 1:
            raise UsageError(f"{type(dataset).__name__}: found different targets, expected as many labels for all.")
        known = np.stack(label_rows)
    digest.update(b"" if known is None else known.tobytes())
    spec = PREFIX + digest.hexdigest()[:16]
    lock = threading.Lock()  # the cache reads from several threads, which a dataset need not support

    def read_sample(i: int) -> tuple[Image.Image, int | np.ndarray | None]:
        with lock:
            return split_sample(samples[i], i)

    def open_mask(i: int) -> np.ndarray:
        mask = read_sample(i)[1]
        if not isinstance(mask, np.ndarray):
            raise UsageError(f"{spec}: sample {i} has no mask, but others have; give masks for all.")
        return mask

    _REGISTERED[spec] = ImageSet(
        spec, [f"{spec}/{i}" for i in range(len(samples))], lambda i: read_sample(i)[0], digest.hexdigest(), known,
        class_names_of(dataset, known), open_mask if has_masks else None,
    )  # fmt: skip
    return spec


def open_registered(spec: str) -> ImageSet:
    """The image set of a text that `register_dataset` returned. Raises UsageError in another process."""
    if spec not in _REGISTERED:
        raise UsageError(
            f"{spec}: a dataset that was given from Python and is not in this process; call the API again with the "
            "same dataset, or save its images to a folder."
        )
    return _REGISTERED[spec]


def list_samples(dataset: Any) -> Any:
    """The samples as a sequence: the dataset itself if it can be indexed, else what it yields, in memory."""
    if isinstance(dataset, DataLoader):
        inner = dataset.dataset
        return list(split_batches(dataset)) if isinstance(inner, IterableDataset) else inner
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return dataset
    if isinstance(dataset, Iterable):
        return list(dataset)
    raise UsageError(f"data: found {type(dataset).__name__}, expected a name, a path, a Dataset or a DataLoader.")


def split_batches(loader: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The samples in the batches of a DataLoader over an IterableDataset."""
    for batch in loader:
        images, targets = split_fields(batch)
        for i in range(len(images)):
            yield images[i], None if targets is None else targets[i]


def split_fields(sample: Any) -> tuple[Any, Any]:
    """(image, target or None) of a sample or a batch."""
    if isinstance(sample, Mapping):
        fields = [next((sample[key] for key in keys if key in sample), None) for keys in (IMAGE_KEYS, TARGET_KEYS)]
        return fields[0], fields[1]
    if isinstance(sample, tuple | list):
        return sample[0], sample[1] if len(sample) > 1 else None
    return sample, None


def split_sample(sample: Any, i: int) -> tuple[Image.Image, int | np.ndarray | None]:
    """The image of sample `i`, and its class, its mask uint8 [h, w] or None."""
    image, target = split_fields(sample)
    if isinstance(target, Tensor):
        target = target.detach().cpu().numpy()
    elif isinstance(target, Image.Image):
        target = np.asarray(target)
    if isinstance(target, np.ndarray | np.generic) and target.ndim == 0:
        target = int(target)
    is_array = isinstance(target, np.ndarray)
    is_valid = is_array and (target.ndim == 2 or (target.ndim == 1 and bool(np.isin(target, (0, 1)).all())))
    if not (target is None or isinstance(target, int) or is_valid):
        shape = list(target.shape) if isinstance(target, np.ndarray) else type(target).__name__
        raise UsageError(
            f"data: the target of sample {i} is {shape}, expected a class number, a mask [h, w], or 0 and 1 for each "
            "label [c]."
        )
    return to_image(image, i), target


def to_image(value: Any, i: int) -> Image.Image:
    """A PIL image of sample `i`."""
    if isinstance(value, Image.Image):
        try:
            check_opened_image(value).load()
        except (UnreadableImageError, *READ_ERRORS) as error:
            raise UsageError(f"data: sample {i} cannot be decoded ({describe_read_error(error)}).") from error
        return value
    if isinstance(value, Tensor):
        array = value.detach().cpu()
        array = (array.movedim(0, -1) if array.dim() == 3 else array).numpy()
    else:
        array = np.asarray(value)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype.kind == "f" and array.size:
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise UsageError(
                f"data: sample {i} has values from {low:.3g} to {high:.3g}, expected floats in [0, 1]; leave out the "
                "normalization, which networks here do themselves."
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UsageError(
            f"data: sample {i} is {array.dtype} {list(array.shape)}, expected an image: PIL, a tensor [3, h, w] or a "
            "uint8 array [h, w, 3]."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def class_names_of(dataset: Any, labels: np.ndarray | None) -> list[str] | None:
    """The `classes` of a dataset as torchvision's have them, if there is a name for every label."""
    names = getattr(getattr(dataset, "dataset", dataset), "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    if labels is not None and labels.ndim == 2:
        return list(names) if labels.shape[1] == len(names) else None
    return list(names) if labels is None or labels.max(initial=-1) < len(names) else None
