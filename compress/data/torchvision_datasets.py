"""Data sets known by name, through torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data import torchvision_datasets
from compress.data.dataset import IGNORE_INDEX, ImageSet
from compress.data.folders import open_folder, read_index_mask
from compress.errors import CompressError, UsageError

#: gives the mask of a path: its class numbers, or the path where the file holds them as they are
MaskReader = Callable[[Path], Path | np.ndarray]

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


@dataclass(frozen=True)
class MaskSpec:
    """How the masks of a data set are read, and the names of their classes; both from torchvision's own object."""

    reader: Callable[[Any], MaskReader]
    names: Callable[[Any], list[str]]


def pair_images_with_masks(name: str, dataset: Any, mask_spec: MaskSpec, identity: str, *, labeled: bool) -> ImageSet:
    """The pictures in the order of their names, with masks if `labeled`. Raises CompressError for missing files."""
    # Cityscapes calls them targets, a list for each picture.
    found = dataset.masks if hasattr(dataset, "masks") else dataset.targets
    masks = [Path(one[0] if isinstance(one, list) else one) for one in found]
    pairs = sorted(zip(map(Path, dataset.images), masks, strict=True))
    used = [path for pair in pairs for path in (pair if labeled else pair[:1])]
    missing = [path for path in used if not path.is_file()]
    if missing or not pairs:
        what = f"{missing[0]} is missing ({len(missing)} of {len(used)} files)" if missing else "holds no images"
        raise CompressError(f"{name}: {what}; unpack its archives again, or name another place with --data-root.")
    images = ImageSet(name, [str(image) for image, _ in pairs], lambda i: pairs[i][0], identity)
    if not labeled:
        return images
    read = mask_spec.reader(dataset)
    return ImageSet(
        name,
        images.names,
        images.open_image,
        identity,
        class_names=mask_spec.names(dataset),
        open_mask=lambda i: read(pairs[i][1]),
    )


def voc_mask_reader(dataset: Any) -> MaskReader:
    """VOC's masks are palette images whose indices are the classes, 255 along borders."""
    return lambda path: path


def sbd_mask_reader(dataset: Any) -> MaskReader:
    """SBD's masks lie in MATLAB files, the classes' field of a struct."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    def read(path: Path) -> np.ndarray:
        try:
            return np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
        except MatReadError as error:
            raise ValueError(str(error)) from error  # a mask that cannot be read, like any

    return read


def cityscapes_mask_reader(dataset: Any) -> MaskReader:
    """Cityscapes' masks hold 34 ids, of which 19 are the classes that are trained; the others are nobody's."""
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for one in dataset.classes:
        if one.id >= 0 and 0 <= one.train_id < IGNORE_INDEX:
            table[one.id] = one.train_id

    def read(path: Path) -> np.ndarray:
        return table[read_index_mask(path)]

    return read


def cityscapes_class_names(dataset: Any) -> list[str]:
    known = {one.train_id: one.name for one in dataset.classes if 0 <= one.train_id < IGNORE_INDEX}
    return [known[number] for number in sorted(known)]


VOC = MaskSpec(voc_mask_reader, lambda _: VOC_CLASSES)
SBD = MaskSpec(sbd_mask_reader, lambda _: VOC_CLASSES)
CITYSCAPES = MaskSpec(cityscapes_mask_reader, cityscapes_class_names)


Splits = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DatasetSpec:
    """How torchvision opens a data set, and where its labels are."""

    kind: str  #: class in torchvision.datasets
    description: str
    splits: Splits  #: "train" and "val", "labeled" where training with labels takes another part -> arguments
    downloads: bool = True
    folder: str = ""  #: below the data root
    labels: str = "targets"  #: attribute
    files: str = ""  #: attribute that holds the images' paths, where they are files
    mask_spec: MaskSpec | None = None  #: its masks, for segmentation


def train_flag_splits() -> Splits:
    return {"train": {"train": True}, "val": {"train": False}}


def named_splits(train: str, val: str, **extra: Any) -> Splits:
    return {"train": {"split": train, **extra}, "val": {"split": val, **extra}}


TORCHVISION_DATASETS: dict[str, DatasetSpec] = {
    "cifar10": DatasetSpec("CIFAR10", "CIFAR-10, 50,000 images of 32x32, 10 classes", train_flag_splits()),
    "cifar100": DatasetSpec("CIFAR100", "CIFAR-100, 50,000 images of 32x32, 100 classes", train_flag_splits()),
    "svhn": DatasetSpec(
        "SVHN", "street view house numbers, 73,257 images of 32x32, 10 classes", named_splits("train", "test"), labels="labels"
    ),
    "stl10": DatasetSpec(
        "STL10", "STL-10, 96x96, 10 classes; as out-of-domain data its 100,000 unlabeled images",
        {**named_splits("unlabeled", "test"), "labeled": {"split": "train"}}, labels="labels",
    ),
    "mnist": DatasetSpec("MNIST", "MNIST digits, 60,000 images of 28x28, 10 classes", train_flag_splits()),
    "fashion_mnist": DatasetSpec("FashionMNIST", "Fashion-MNIST, 60,000 images of 28x28, 10 classes", train_flag_splits()),
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
        "Caltech101", "Caltech-101, 8,677 images, 101 classes; no part for --val", {"train": {}}, labels="y"
    ),
    "voc": DatasetSpec(
        "VOCSegmentation", "Pascal VOC 2012 for segmentation, 1,464 images, 21 classes",
        {"train": {"image_set": "train"}, "val": {"image_set": "val"}}, mask_spec=torchvision_datasets.VOC,
    ),
    "sbd": DatasetSpec(
        "SBDataset", "semantic boundaries (VOC's classes) for segmentation, 8,498 images, 21 classes",
        {part: {"image_set": part, "mode": "segmentation"} for part in ("train", "val")}, folder="sbd", mask_spec=torchvision_datasets.SBD,
    ),
    "cityscapes": DatasetSpec(
        "Cityscapes", "Cityscapes, streets for segmentation, 2,975 finely marked images, 19 classes",
        named_splits("train", "val", mode="fine", target_type="semantic"), downloads=False, folder="cityscapes",
        mask_spec=torchvision_datasets.CITYSCAPES,
    ),
}  # fmt: skip


def resolve_data_root(root: Path | None) -> Path:
    """Where data sets known by name lie: the folder given, else $COMPRESS_DATA, else the user's cache."""
    return root or Path(os.environ.get("COMPRESS_DATA", Path.home() / ".cache" / "compress" / "data"))


def open_torchvision_dataset(name: str, *, root: Path | None, split: str, labeled: bool = False) -> ImageSet:
    """The data set `name`, downloaded where torchvision can. Raises CompressError saying where it was looked for."""
    one = TORCHVISION_DATASETS[name]
    part = "labeled" if labeled and split == "train" and "labeled" in one.splits else split
    if part not in one.splits:
        raise UsageError(f"{name}: has no images set apart for measuring; give --val other data.")
    folder = resolve_data_root(root) / one.folder
    try:
        dataset = create_dataset(name, one, folder, part)
    except CompressError:
        if one.folder and one.mask_spec is None and (folder / "train").is_dir() and any(folder.glob("train/*/*")):
            return open_folder(folder, split=split, labeled=True)  # unpacked by hand, one folder a class
        raise
    identity = f"{folder} {part} {len(dataset)}"
    if one.mask_spec is not None:
        return pair_images_with_masks(name, dataset, one.mask_spec, identity, labeled=labeled)
    paths = [Path(entry[0] if isinstance(entry, tuple) else entry) for entry in getattr(dataset, one.files or "-", [])]
    items = [str(path) for path in paths] or [f"{name}/{part}/{i}" for i in range(len(dataset))]

    def image(i: int) -> Any:
        return paths[i] if paths else dataset[i][0]

    labels, names = read_labels(dataset, one)
    return ImageSet(name, items, image, identity, labels, names)


def read_labels(dataset: Any, one: DatasetSpec) -> tuple[np.ndarray | None, list[str] | None]:
    """(int64 [n], the classes' names); None where the data has none: STL-10's unlabeled part says -1."""
    found = getattr(dataset, one.labels, None)
    labels = None if found is None else np.asarray(found, dtype=np.int64)
    if labels is not None and (len(labels) != len(dataset) or labels.min(initial=0) < 0):
        labels = None
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    names = [entry if isinstance(entry, str) else entry[0] for entry in classes] if classes else None
    return labels, names


def create_dataset(name: str, one: DatasetSpec, folder: Path, part: str) -> Any:
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


# # MERGED DOC """torchvision's data sets for segmentation: their pictures and masks in pairs."""
#
