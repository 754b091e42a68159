"""Datasets, DataLoaders and plain iterables of the user as image sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from compress.data import open_images, register_dataset
from compress.data.cache import build_cache
from compress.errors import UsageError

PIXELS = torch.randint(0, 256, (6, 3, 8, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Named(Dataset):
    """PIL images with labels and class names, as torchvision's datasets are."""

    classes = ("cat", "dog", "owl")

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, i: int):
        return Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()), int(LABELS[i])


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(zip(PIXELS, LABELS, strict=True))


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(PIXELS, LABELS),
        TensorDataset(PIXELS.float() / 255, LABELS),
        Named(),
        Streamed(),
        DataLoader(TensorDataset(PIXELS, LABELS), batch_size=4, shuffle=True),
        DataLoader(Streamed(), batch_size=4),
        [{"image": image, "label": label} for image, label in zip(PIXELS, LABELS, strict=True)],
        [(image.permute(1, 2, 0).numpy(), np.int64(label)) for image, label in zip(PIXELS, LABELS, strict=True)],
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_dataset_images_labels_and_identity(dataset) -> None:
    images = open_images(dataset)
    assert images.labels is not None
    assert images.labels.tolist() == LABELS.tolist()
    pixels = np.stack([np.asarray(images.read_image(i)) for i in range(6)])
    assert np.array_equal(pixels, PIXELS.permute(0, 2, 3, 1).numpy())
    assert images.name == register_dataset(TensorDataset(PIXELS, LABELS))
    assert open_images(images.name).fingerprint() == images.fingerprint()
    assert open_images(images) is images
    assert open_images(register_dataset(images)) is images


def test_dataset_class_names_and_unlabeled_images() -> None:
    assert open_images(Named()).class_names == ["cat", "dog", "owl"]
    unlabeled = open_images(PIXELS)
    assert unlabeled.labels is None
    assert unlabeled.name != open_images(Named()).name


def test_dataset_masks_reach_the_cache(tmp_path) -> None:
    masks = torch.arange(80).view(8, 10).expand(6, 8, 10) % 5
    images = open_images(TensorDataset(PIXELS, masks))
    cached = build_cache(images, image_size=(8, 10), folder=tmp_path, full_image=True, resize=8)
    assert cached.masks is not None
    assert np.array_equal(cached.masks, masks.numpy())
    assert cached.count_classes() == 5


@pytest.mark.parametrize(
    ("dataset", "datum"),
    [
        ([], "list"),
        ([PIXELS[0].float() / 255 * 4 - 2], "normalization"),
        ([PIXELS[0].permute(1, 2, 0)], r"\[8, 10, 3\]|\[10, 3, 8\]"),
        ([(PIXELS[0], "cat")], "str"),
        (7, "int"),
    ],
)
def test_dataset_of_other_samples_is_refused(dataset, datum) -> None:
    with pytest.raises(UsageError, match=datum):
        open_images(dataset)


def test_dataset_of_another_process_is_refused() -> None:
    with pytest.raises(UsageError, match="dataset:0123"):
        open_images("dataset:0123")
