"""Data sets known by name, through torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.images import Images
from compress.errors import CompressError


@dataclass(frozen=True)
class Named:
    """How torchvision opens a data set, and where its labels are."""

    kind: str  #: class in torchvision.datasets
    description: str
    splits: dict[str, dict[str, Any]]  #: "train" and "val" -> arguments
    downloads: bool = True
    folder: str = ""  #: below the data root
    labels: str = "targets"  #: attribute


def _train(**extra: Any) -> dict[str, dict[str, Any]]:
    return {"train": {"train": True, **extra}, "val": {"train": False, **extra}}


def _split(train: str, val: str, **extra: Any) -> dict[str, dict[str, Any]]:
    return {"train": {"split": train, **extra}, "val": {"split": val, **extra}}


NAMED: dict[str, Named] = {
    "cifar10": Named("CIFAR10", "CIFAR-10, 50,000 images of 32x32, 10 classes", _train()),
    "cifar100": Named("CIFAR100", "CIFAR-100, 50,000 images of 32x32, 100 classes", _train()),
    "svhn": Named("SVHN", "street view house numbers, 73,257 images of 32x32, 10 classes", _split("train", "test"), labels="labels"),
    "stl10": Named("STL10", "STL-10, 96x96; its 100,000 unlabelled images for training", _split("unlabeled", "test"), labels="labels"),
    "mnist": Named("MNIST", "MNIST digits, 60,000 images of 28x28, 10 classes", _train()),
    "fashion_mnist": Named("FashionMNIST", "Fashion-MNIST, 60,000 images of 28x28, 10 classes", _train()),
    "imagenet": Named(
        "ImageNet", "ImageNet-1k, from the archives of its site", _split("train", "val"), downloads=False, folder="imagenet"
    ),
    "places365": Named(
        "Places365", "Places365-Standard, small images (256x256)", _split("train-standard", "val", small=True), folder="places365"
    ),
    "caltech101": Named("Caltech101", "Caltech-101, 9,000 images, 101 classes", {"train": {}, "val": {}}, labels="y"),
    "food101": Named("Food101", "Food-101, 75,750 images, 101 classes", _split("train", "test"), labels="_labels"),
    "pets": Named("OxfordIIITPet", "Oxford-IIIT Pet, 7,300 images, 37 classes", _split("trainval", "test"), labels="_labels"),
}


def data_root(root: Path | None) -> Path:
    """Where data sets known by name lie: the folder given, else $COMPRESS_DATA, else the user's cache."""
    return root or Path(os.environ.get("COMPRESS_DATA", Path.home() / ".cache" / "compress" / "data"))


def named_images(name: str, *, root: Path | None, split: str) -> Images:
    """The data set `name`, downloaded where torchvision can. Raises CompressError saying where it was looked for."""
    one = NAMED[name]
    folder = data_root(root) / one.folder
    dataset = opened(name, one, folder, split)
    labels = getattr(dataset, one.labels, None)
    values = None if labels is None else np.asarray(labels, dtype=np.int64)
    if values is not None and (len(values) != len(dataset) or values.min(initial=0) < 0):
        values = None  # STL-10's unlabelled part says -1
    classes = getattr(dataset, "classes", None)
    names = [c if isinstance(c, str) else c[0] for c in classes] if classes is not None else None
    items = [f"{name}/{split}/{i}" for i in range(len(dataset))]
    read: Callable[[int], Any] = lambda i: dataset[i][0]  # noqa: E731
    return Images(name, items, read, f"{folder} {split} {len(dataset)}", values, names)


def opened(name: str, one: Named, folder: Path, split: str) -> Any:
    import torchvision

    make = getattr(torchvision.datasets, one.kind)
    try:
        return make(str(folder), **one.splits[split])
    except (RuntimeError, FileNotFoundError, OSError) as error:
        first = error
    how = "get it from its site (it needs an account) and put its archives there"
    if one.downloads:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return make(str(folder), **one.splits[split], download=True)
        except (RuntimeError, OSError) as error:
            first, how = error, "torchvision could not download it; put its files there, or go where there is a network"
    why = " ".join(str(first).split())[:120]
    raise CompressError(f"{name}: not found in {folder} ({why}); {how}, or name another place with --data-root.") from first
