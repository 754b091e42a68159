"""Datasets with a name, from torchvision, with labels or masks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.dataset import DECODE_ERRORS, IGNORE_INDEX, ImageSet, to_labels
from compress.data.folders import open_folder, read_index_mask
from compress.data.nyu import check_matlab_size
from compress.errors import CompressError, UsageError

#: path -> its mask: class numbers, or the path if the file contains them unchanged
MaskReader = Callable[[Path], Path | np.ndarray]

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


@dataclass(frozen=True)
class MaskSpec:
    """How the masks of a dataset are read, and their class names, both from torchvision's object."""

    reader: Callable[[Any], MaskReader]
    names: Callable[[Any], list[str]]


def pair_images_with_masks(name: str, dataset: Any, mask_spec: MaskSpec, identity: str, *, labeled: bool) -> ImageSet:
    """The images in the order of their names, with masks if `labeled`. Raises CompressError for missing files."""
    # Cityscapes has a list of targets per image.
    targets = dataset.masks if hasattr(dataset, "masks") else dataset.targets
    masks = [Path(one[0] if isinstance(one, list) else one) for one in targets]
    pairs = sorted(zip(map(Path, dataset.images), masks, strict=True))
    used = [path for pair in pairs for path in (pair if labeled else pair[:1])]
    missing = [path for path in used if not path.is_file()]
    if missing or not pairs:
        problem = f"{missing[0]} is missing ({len(missing)} of {len(used)} files)" if missing else "found no images"
        raise CompressError(f"{name}: {problem}; extract its archives again, or change --data-root.")
    images = ImageSet(name, [str(image) for image, _ in pairs], lambda i: pairs[i][0], identity)
    if not labeled:
        return images
    read = mask_spec.reader(dataset)
    return replace(images, class_names=mask_spec.names(dataset), open_mask=lambda i: read(pairs[i][1]))


def voc_mask_reader(dataset: Any) -> MaskReader:
    """VOC has palette images with the classes as indices, 255 along borders."""
    return lambda path: path


def sbd_mask_reader(dataset: Any) -> MaskReader:
    """SBD has MATLAB files with the classes in a field of a struct."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    def read(path: Path) -> np.ndarray:
        check_matlab_size(path)
        try:
            return np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
        except MatReadError as error:
            raise ValueError(str(error)) from error  # an unreadable mask like any other

    return read


def cityscapes_mask_reader(dataset: Any) -> MaskReader:
    """Cityscapes has 34 ids; 19 are classes for training, the others are ignored."""
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for entry in dataset.classes:
        if entry.id >= 0 and 0 <= entry.train_id < IGNORE_INDEX:
            table[entry.id] = entry.train_id

    def read(path: Path) -> np.ndarray:
        return table[read_index_mask(path)]

    return read


def cityscapes_class_names(dataset: Any) -> list[str]:
    names = {entry.train_id: entry.name for entry in dataset.classes if 0 <= entry.train_id < IGNORE_INDEX}
    return [names[number] for number in sorted(names)]


VOC = MaskSpec(voc_mask_reader, lambda _: VOC_CLASSES)
SBD = MaskSpec(sbd_mask_reader, lambda _: VOC_CLASSES)
CITYSCAPES = MaskSpec(cityscapes_mask_reader, cityscapes_class_names)

Splits = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DatasetSpec:
    """How torchvision opens a dataset, and where its labels are."""

    kind: str  #: class in torchvision.datasets
    description: str
    splits: Splits  #: "train" and "val", "labeled" if labels are in another part -> arguments
    downloads: bool = True
    folder: str = ""  #: below the data root
    labels: str = "targets"  #: attribute
    files: str = ""  #: attribute with the paths of the images, if they are files
    mask_spec: MaskSpec | None = None  #: its masks, for segmentation datasets


def train_flag_splits() -> Splits:
    return {"train": {"train": True}, "val": {"train": False}}


def named_splits(train: str, val: str, **extra: Any) -> Splits:
    return {"train": {"split": train, **extra}, "val": {"split": val, **extra}}


TORCHVISION_DATASETS: dict[str, DatasetSpec] = {
    "cifar10": DatasetSpec("CIFAR10", "CIFAR-10, 50,000 images of 32x32, 10 classes", train_flag_splits()),
    "cifar100": DatasetSpec("CIFAR100", "CIFAR-100, 50,000 images of 32x32, 100 classes", train_flag_splits()),
    "svhn": DatasetSpec(
        "SVHN", "street view house numbers, 73,257 images of 32x32, 10 classes", named_splits("train", "test"),
        labels="labels",
    ),
    "stl10": DatasetSpec(
        "STL10", "STL-10, 96x96, 10 classes; as out-of-domain data its 100,000 unlabeled images",
        {**named_splits("unlabeled", "test"), "labeled": {"split": "train"}}, labels="labels",
    ),
    "mnist": DatasetSpec("MNIST", "MNIST digits, 60,000 images of 28x28, 10 classes", train_flag_splits()),
    "fashion_mnist": DatasetSpec(
        "FashionMNIST", "Fashion-MNIST, 60,000 images of 28x28, 10 classes", train_flag_splits()
    ),
    "imagenet": DatasetSpec(
        "ImageNet", "ImageNet-1k: the archives of its site, or the folders train and val", named_splits("train", "val"),
        downloads=False, folder="imagenet", files="samples",
    ),
    "places365": DatasetSpec(
        "Places365", "Places365-Standard, small images (256x256), 365 classes",
        named_splits("train-standard", "val", small=True), folder="places365", files="imgs",
    ),
    "food101": DatasetSpec(
        "Food101", "Food-101, 75,750 images, 101 classes", named_splits("train", "test"),
        labels="_labels", files="_image_files",
    ),
    "pets": DatasetSpec(
        "OxfordIIITPet", "Oxford-IIIT Pet, 3,680 images, 37 classes", named_splits("trainval", "test"),
        labels="_labels", files="_images",
    ),
    "dtd": DatasetSpec(
        "DTD", "describable textures, 1,880 images, 47 classes", named_splits("train", "val"),
        labels="_labels", files="_image_files",
    ),
    "caltech101": DatasetSpec(
        "Caltech101", "Caltech-101, 8,677 images, 101 classes; no validation part", {"train": {}}, labels="y"
    ),
    "voc": DatasetSpec(
        "VOCSegmentation", "Pascal VOC 2012 for segmentation, 1,464 images, 21 classes",
        {"train": {"image_set": "train"}, "val": {"image_set": "val"}}, mask_spec=VOC,
    ),
    "sbd": DatasetSpec(
        "SBDataset", "semantic boundaries (VOC's classes) for segmentation, 8,498 images, 21 classes",
        {part: {"image_set": part, "mode": "segmentation"} for part in ("train", "val")},
        folder="sbd", mask_spec=SBD,
    ),
    "cityscapes": DatasetSpec(
        "Cityscapes", "Cityscapes, streets for segmentation, 2,975 images with fine masks, 19 classes",
        named_splits("train", "val", mode="fine", target_type="semantic"), downloads=False, folder="cityscapes",
        mask_spec=CITYSCAPES,
    ),
}  # fmt: skip


def resolve_data_root(root: Path | None) -> Path:
    """Directory of the named datasets: `root`, else $COMPRESS_DATA, else the cache directory of the user."""
    return root or Path(os.environ.get("COMPRESS_DATA", Path.home() / ".cache" / "compress" / "data"))


def open_torchvision_dataset(name: str, *, root: Path | None, split: str, labeled: bool = False) -> ImageSet:
    """Open the dataset `name`, after a download if torchvision offers it.

    Raises:
        UsageError: It has no part for validation.
        CompressError: It is not there; the message names the searched directory.
    """
    spec = TORCHVISION_DATASETS[name]
    part = "labeled" if labeled and split == "train" and "labeled" in spec.splits else split
    if part not in spec.splits:
        raise UsageError(f"{name}: has no validation part; give --val other data.")
    folder = resolve_data_root(root) / spec.folder
    try:
        dataset = create_dataset(name, spec, folder, part)
    except CompressError:
        if spec.folder and spec.mask_spec is None and (folder / "train").is_dir() and any(folder.glob("train/*/*")):
            return open_folder(folder, split=split, labeled=True)  # extracted by hand, one folder per class
        raise
    identity = f"{name} {part} {len(dataset)}"
    if spec.mask_spec is not None:
        images = pair_images_with_masks(name, dataset, spec.mask_spec, identity, labeled=labeled)
        return replace(images, location=str(folder))
    paths = [Path(entry[0] if isinstance(entry, tuple) else entry) for entry in getattr(dataset, spec.files or "-", [])]
    image_names = [str(path) for path in paths] or [f"{name}/{part}/{i}" for i in range(len(dataset))]

    def open_image(i: int) -> Any:
        return paths[i] if paths else dataset[i][0]

    labels, class_names = read_labels(dataset, spec)
    return ImageSet(name, image_names, open_image, identity, labels, class_names, location=str(folder))


def read_labels(dataset: Any, spec: DatasetSpec) -> tuple[np.ndarray | None, list[str] | None]:
    """(labels int64 [n], class names) or None. The unlabeled part of STL-10 has labels of -1."""
    values = getattr(dataset, spec.labels, None)
    labels = None if values is None or len(values) != len(dataset) else to_labels(list(map(int, values)), spec.kind)
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    names = [entry if isinstance(entry, str) else entry[0] for entry in classes] if classes else None
    return labels, names


def create_dataset(name: str, spec: DatasetSpec, folder: Path, part: str) -> Any:
    """Create torchvision's object, from the disk or by a download."""
    import torchvision

    make = getattr(torchvision.datasets, spec.kind)
    try:
        return make(str(folder), **spec.splits[part])
    except (*DECODE_ERRORS, ImportError) as error:  # torchvision parses damaged files without checks
        first: Exception = error
    advice = "download its archives from its site (an account is needed) and put them there"
    if spec.downloads:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return make(str(folder), **spec.splits[part], download=True)
        except DECODE_ERRORS as error:
            first, advice = error, "torchvision could not download it; put its files there, or connect to a network"
    reason = " ".join(str(first).split())[:120]
    raise CompressError(
        f"{name}: not found in {folder} ({reason}); {advice}, or choose another directory with --data-root."
    ) from first
