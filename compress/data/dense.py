"""torchvision's data sets for segmentation: their pictures and masks in pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.images import IGNORE, Images
from compress.data.pairs import index_mask
from compress.errors import CompressError

#: gives the mask of a path: its class numbers, or the path where the file holds them as they are
Reader = Callable[[Path], Path | np.ndarray]

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


@dataclass(frozen=True)
class Dense:
    """How the masks of a data set are read, and the names of their classes; both from torchvision's own object."""

    reader: Callable[[Any], Reader]
    names: Callable[[Any], list[str]]


def dense_images(name: str, dataset: Any, dense: Dense, identity: str, *, labelled: bool) -> Images:
    """The pictures in the order of their names, with masks if `labelled`. Raises CompressError for missing files."""
    # Cityscapes calls them targets, a list for each picture.
    found = dataset.masks if hasattr(dataset, "masks") else dataset.targets
    masks = [Path(one[0] if isinstance(one, list) else one) for one in found]
    pairs = sorted(zip(map(Path, dataset.images), masks, strict=True))
    used = [path for pair in pairs for path in (pair if labelled else pair[:1])]
    missing = [path for path in used if not path.is_file()]
    if missing or not pairs:
        what = f"{missing[0]} is missing ({len(missing)} of {len(used)} files)" if missing else "holds no images"
        raise CompressError(f"{name}: {what}; unpack its archives again, or name another place with --data-root.")
    images = Images(name, [str(image) for image, _ in pairs], lambda i: pairs[i][0], identity)
    if not labelled:
        return images
    read = dense.reader(dataset)
    return Images(
        name, images.items, images.opened, identity, class_names=dense.names(dataset), masks=lambda i: read(pairs[i][1])
    )


def as_it_is(dataset: Any) -> Reader:
    """VOC's masks are palette images whose indices are the classes, 255 along borders."""
    return lambda path: path


def matlab(dataset: Any) -> Reader:
    """SBD's masks lie in MATLAB files, the classes' field of a struct."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    def read(path: Path) -> np.ndarray:
        try:
            return np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
        except MatReadError as error:
            raise ValueError(str(error)) from error  # a mask that cannot be read, like any

    return read


def trained(dataset: Any) -> Reader:
    """Cityscapes' masks hold 34 ids, of which 19 are the classes that are trained; the others are nobody's."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    for one in dataset.classes:
        if one.id >= 0 and 0 <= one.train_id < IGNORE:
            table[one.id] = one.train_id

    def read(path: Path) -> np.ndarray:
        return table[index_mask(path)]

    return read


def trained_names(dataset: Any) -> list[str]:
    known = {one.train_id: one.name for one in dataset.classes if 0 <= one.train_id < IGNORE}
    return [known[number] for number in sorted(known)]


VOC = Dense(as_it_is, lambda _: VOC_CLASSES)
SBD = Dense(matlab, lambda _: VOC_CLASSES)
CITYSCAPES = Dense(trained, trained_names)
