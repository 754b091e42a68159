"""Where a run's images come from: opened, decoded once into the cache, and scored on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from compress.data import open_images
from compress.data.batches import Batches, iter_batches
from compress.data.cache import ImageCache, build_cache, choose_view_count
from compress.data.class_mapping import map_labels
from compress.data.decoding import scaled_size
from compress.data.dataset import ImageSet, count_mask_classes
from compress.data.predictions import Predictions, predict, select_highest_entropy
from compress.engine.accelerator import Accelerator
from compress.engine.stream import Repeats
from compress.engine.trainable import FrozenModel
from compress.errors import UsageError
from compress.models.card import ModelCard
from compress.tasks import task_for_card

Size = tuple[int, int]
Positive = Annotated[int, Field(gt=0)]


@dataclass
class DataConfig:
    """Where the images come from."""

    unlabeled: str | None = None  #: out-of-domain images: a folder, a name, hf/NAME, or .tar shards
    labeled: str | None = None  #: labeled images to train on
    validation: str | None = None  #: labeled images to measure on; never trained on
    root: Path | None = None  #: where data sets known by name lie
    views: Positive | None = None  #: crops cached of each unlabeled image; None: 1, or more where there are few images
    subset: Positive | None = None  #: keep only the images of highest teacher entropy (the paper's OOD subsets)
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.01  #: share of unreadable images above which the run stops
    cache_dir: Path | None = None  #: folder of the decoded images; None: the user's cache folder


def count_classes(images: ImageSet, spec: str) -> int:
    """How many classes labeled images have. Raises UsageError where they are not labeled."""
    if images.class_names:
        return len(images.class_names)
    if images.open_mask is not None:
        return count_mask_classes(images.read_mask(i) for i in range(len(images)))
    if images.labels is None:
        raise UsageError(
            f"{spec}: these images have no labels, and training needs them; a folder must hold one folder a class, or "
            f"the folders images and masks."
        )
    return int(images.labels.max()) + 1


def color_statistics(images: ImageSet, *, grey: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of values in [0, 1], over up to 500 images spread through the set."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), 500)).astype(int)
    mode = "L" if grey else "RGB"
    pixels = [np.asarray(images.read_image(int(i)).convert(mode).resize((32, 32)), dtype=np.float64) / 255 for i in chosen]
    values = np.stack(pixels).reshape(-1, 1 if grey else 3)
    mean, std = values.mean(0), values.std(0).clip(1e-3)
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def image_cache_dir(chosen: Path | None = None) -> Path:
    """Where decoded images are kept: the folder chosen, else $COMPRESS_CACHE, else the user's cache."""
    return chosen or Path(os.environ.get("COMPRESS_CACHE", Path.home() / ".cache" / "compress")) / "images"


class CachedDataset:
    """Cached images as the engine reads them: any number of independent, endless orders."""

    def __init__(self, cached: ImageCache) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def batches(
        self, batch_size: int, *, seed: tuple[int, ...], rank: int, world: int, augment: bool, times: Repeats = None
    ) -> Batches:
        often = None if times is None else times.numpy()
        return Batches(self.cached, batch_size, seed=seed, rank=rank, world=world, augment=augment, times=often)

    def answers(self, teacher: FrozenModel) -> tuple[Tensor, Tensor]:
        found = predict_all(self.cached, teacher)
        return torch.from_numpy(found.prediction), torch.from_numpy(found.confidence)


def load_training_images(data: DataConfig, card: ModelCard, kind: str, *, seed: int, say: Callable[[str], None]) -> ImageCache:
    """The unlabeled or labeled images of the plan, decoded once into the cache at the size the networks read."""
    spec = getattr(data, kind)
    images = open_images(spec, root=data.root, split="train", labeled=kind == "labeled")
    if kind != "labeled":
        images = images.without_labels()
    cached = build_cache(
        images, image_size=card.image_size, resize=card.resize, views=views_per_image(data, images), seed=seed,
        grayscale=card.grayscale, folder=image_cache_dir(data.cache_dir), max_unreadable=data.max_unreadable, progress=say,
    )  # fmt: skip
    if cached.labels is None or cached.class_names is None:
        return cached
    return map_labels(cached, card.classes, card.class_names, spec=spec, progress=say)


def views_per_image(data: DataConfig, images: ImageSet) -> int:
    """Crops of each training image: one where it has one label, which a corner of the picture may not show."""
    return 1 if images.labels is not None else data.views or choose_view_count(len(images))


def load_validation_images(
    spec: str, card: ModelCard, *, root: Path | None, folder: Path, max_unreadable: float, say: Callable[[str], None]
) -> ImageCache:
    """Labeled images for measuring, each its centre, or whole for segmentation.

    Raises UsageError where their labels or masks are not of the model's task and classes.
    """
    images = open_images(spec, root=root, split="val", labeled=True)
    dense = card.task == "segmentation"
    if (images.open_mask if dense else images.labels) is None:
        kind, layout = ("masks", "the folders images and masks") if dense else ("labels", "one folder a class")
        raise UsageError(f"{spec}: these images have no {kind}, and measuring needs them; a folder must hold {layout}.")
    resize = card.resize or (min(card.image_size) if dense else None)
    cached = build_cache(
        images, image_size=canvas_size(images, resize) if dense and resize else card.image_size, resize=resize, views=1,
        folder=folder, max_unreadable=max_unreadable, full_image=dense, progress=say,
    )  # fmt: skip
    if not dense:
        return map_labels(cached, card.classes, card.class_names, spec=spec, progress=say)
    found = cached.count_classes()
    if found != card.classes if cached.class_names else found > card.classes:
        raise UsageError(
            f"{spec}: found {found} classes, expected the model's {card.classes}; is this the right data for it?"
        )
    return cached


def canvas_size(images: ImageSet, resize: int) -> Size:
    """(height, width) that holds every image whole, its short side made `resize`."""
    sizes = {scaled_size(size, min(size) / resize) for size in images.iter_sizes()}
    widths, heights = zip(*sizes, strict=True) if sizes else ((resize,), (resize,))
    return max(heights), max(widths)


#: pixels of the images that are scored at a time: 256 of 64x64
MAX_BATCH_PIXELS = 1 << 20


def create_scorer(cached: ImageCache, card: ModelCard, place: Accelerator) -> Callable[[Callable[[Tensor], Tensor]], dict[str, float]]:
    """A function that scores a network, or any call from images to logits, on `cached`, in float32."""
    task = task_for_card(card)
    height, width = cached.pixels.shape[1:3]
    size = max(1, min(256, MAX_BATCH_PIXELS // (height * width)))

    def score(net: Callable[[Tensor], Tensor]) -> dict[str, float]:
        batches = ((place.to_float_images(x), y) for x, y in iter_batches(cached, size))
        return task.score(net, batches)

    return score


def select_highest_entropy(cached: ImageCache, teacher: FrozenModel, n: int) -> ImageCache:
    """The `n` images of highest teacher entropy. Raises UsageError where there are fewer."""
    if n > len(cached):
        raise UsageError(f"--ood-subset {n}: there are only {len(cached)} images in {cached.name}.")
    return cached.subset(select_highest_entropy(predict_all(cached, teacher), n))


def predict_all(cached: ImageCache, teacher: FrozenModel) -> Predictions:
    """What the teacher says of every image, at the place where it is. Raises CompressError as `answers` does."""
    return predict(cached, lambda x: teacher(x.to(teacher.accelerator.device)).float().cpu())
