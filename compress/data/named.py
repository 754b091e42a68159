"""Data sets known by name, through torchvision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data import dense
from compress.data.dense import Dense, dense_images
from compress.data.folders import folder_images
from compress.data.images import Images
from compress.errors import CompressError, UsageError

Splits = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Named:
    """How torchvision opens a data set, and where its labels are."""

    kind: str  #: class in torchvision.datasets
    description: str
    splits: Splits  #: "train" and "val", "labelled" where training with labels takes another part -> arguments
    downloads: bool = True
    folder: str = ""  #: below the data root
    labels: str = "targets"  #: attribute
    files: str = ""  #: attribute that holds the images' paths, where they are files
    dense: Dense | None = None  #: its masks, for segmentation


def flag() -> Splits:
    return {"train": {"train": True}, "val": {"train": False}}


def parts(train: str, val: str, **extra: Any) -> Splits:
    return {"train": {"split": train, **extra}, "val": {"split": val, **extra}}


NAMED: dict[str, Named] = {
    "cifar10": Named("CIFAR10", "CIFAR-10, 50,000 images of 32x32, 10 classes", flag()),
    "cifar100": Named("CIFAR100", "CIFAR-100, 50,000 images of 32x32, 100 classes", flag()),
    "svhn": Named(
        "SVHN", "street view house numbers, 73,257 images of 32x32, 10 classes", parts("train", "test"), labels="labels"
    ),
    "stl10": Named(
        "STL10", "STL-10, 96x96, 10 classes; as out-of-domain data its 100,000 unlabelled images",
        {**parts("unlabeled", "test"), "labelled": {"split": "train"}}, labels="labels",
    ),
    "mnist": Named("MNIST", "MNIST digits, 60,000 images of 28x28, 10 classes", flag()),
    "fashion_mnist": Named("FashionMNIST", "Fashion-MNIST, 60,000 images of 28x28, 10 classes", flag()),
    "imagenet": Named(
        "ImageNet", "ImageNet-1k: the archives of its site, or the folders train and val", parts("train", "val"),
        downloads=False, folder="imagenet", files="samples",
    ),
    "places365": Named(
        "Places365", "Places365-Standard, small images (256x256), 365 classes",
        parts("train-standard", "val", small=True), folder="places365", files="imgs",
    ),
    "food101": Named(
        "Food101", "Food-101, 75,750 images, 101 classes", parts("train", "test"),
        labels="_labels", files="_image_files",
    ),
    "pets": Named(
        "OxfordIIITPet", "Oxford-IIIT Pet, 3,680 images, 37 classes", parts("trainval", "test"),
        labels="_labels", files="_images",
    ),
    "dtd": Named(
        "DTD", "describable textures, 1,880 images, 47 classes", parts("train", "val"),
        labels="_labels", files="_image_files",
    ),
    "caltech101": Named(
        "Caltech101", "Caltech-101, 8,677 images, 101 classes; no part for --val", {"train": {}}, labels="y"
    ),
    "voc": Named(
        "VOCSegmentation", "Pascal VOC 2012 for segmentation, 1,464 images, 21 classes",
        {"train": {"image_set": "train"}, "val": {"image_set": "val"}}, dense=dense.VOC,
    ),
    "sbd": Named(
        "SBDataset", "semantic boundaries (VOC's classes) for segmentation, 8,498 images, 21 classes",
        {part: {"image_set": part, "mode": "segmentation"} for part in ("train", "val")}, folder="sbd", dense=dense.SBD,
    ),
    "cityscapes": Named(
        "Cityscapes", "Cityscapes, streets for segmentation, 2,975 finely marked images, 19 classes",
        parts("train", "val", mode="fine", target_type="semantic"), downloads=False, folder="cityscapes",
        dense=dense.CITYSCAPES,
    ),
}  # fmt: skip


def data_root(root: Path | None) -> Path:
    """Where data sets known by name lie: the folder given, else $COMPRESS_DATA, else the user's cache."""
    return root or Path(os.environ.get("COMPRESS_DATA", Path.home() / ".cache" / "compress" / "data"))


def named_images(name: str, *, root: Path | None, split: str, labelled: bool = False) -> Images:
    """The data set `name`, downloaded where torchvision can. Raises CompressError saying where it was looked for."""
    one = NAMED[name]
    part = "labelled" if labelled and split == "train" and "labelled" in one.splits else split
    if part not in one.splits:
        raise UsageError(f"{name}: has no images set apart for measuring; give --val other data.")
    folder = data_root(root) / one.folder
    try:
        dataset = opened(name, one, folder, part)
    except CompressError:
        if one.folder and one.dense is None and (folder / "train").is_dir() and any(folder.glob("train/*/*")):
            return folder_images(folder, split=split, labelled=True)  # unpacked by hand, one folder a class
        raise
    identity = f"{folder} {part} {len(dataset)}"
    if one.dense is not None:
        return dense_images(name, dataset, one.dense, identity, labelled=labelled)
    paths = [Path(entry[0] if isinstance(entry, tuple) else entry) for entry in getattr(dataset, one.files or "-", [])]
    items = [str(path) for path in paths] or [f"{name}/{part}/{i}" for i in range(len(dataset))]

    def image(i: int) -> Any:
        return paths[i] if paths else dataset[i][0]

    labels, names = labels_of(dataset, one)
    return Images(name, items, image, identity, labels, names)


def labels_of(dataset: Any, one: Named) -> tuple[np.ndarray | None, list[str] | None]:
    """(int64 [n], the classes' names); None where the data has none: STL-10's unlabelled part says -1."""
    found = getattr(dataset, one.labels, None)
    labels = None if found is None else np.asarray(found, dtype=np.int64)
    if labels is not None and (len(labels) != len(dataset) or labels.min(initial=0) < 0):
        labels = None
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    names = [entry if isinstance(entry, str) else entry[0] for entry in classes] if classes else None
    return labels, names


def opened(name: str, one: Named, folder: Path, part: str) -> Any:
    """torchvision's data set, from the disk or else from its site."""
    import torchvision

    make = getattr(torchvision.datasets, one.kind)
    try:
        return make(str(folder), **one.splits[part])
    except (RuntimeError, OSError, ImportError) as error:
        first: Exception = error
    how = "get it from its site (it needs an account) and put its archives there"
    if one.downloads:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return make(str(folder), **one.splits[part], download=True)
        except (RuntimeError, OSError) as error:
            first, how = error, "torchvision could not download it; put its files there, or go where there is a network"
    why = " ".join(str(first).split())[:120]
    raise CompressError(
        f"{name}: not found in {folder} ({why}); {how}, or name another place with --data-root."
    ) from first
