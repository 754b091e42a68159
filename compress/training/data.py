"""Training and validation images of a run: opened, decoded once into the cache, and scored on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from compress.data import open_images
from compress.data.batches import Batches, iter_batches
from compress.data.cache import ImageCache, build_cache, choose_view_count
from compress.data.class_mapping import map_labels
from compress.data.dataset import ImageSet, UnreadableImageError, count_mask_classes
from compress.data.decisions import to_binary_masks, to_label_targets
from compress.data.decoding import View, scaled_size
from compress.data.predictions import Predictions, call_in_halves, predict, select_highest_entropy
from compress.engine.accelerator import Accelerator
from compress.engine.stream import Repeats
from compress.engine.trainable import FrozenModel
from compress.errors import CompressError, UsageError
from compress.models.card import ModelCard
from compress.tasks import task_for_card
from compress.training.config import DataConfig, Size

T = TypeVar("T")
#: pixels of the images scored at once: 256 of 64x64
MAX_BATCH_PIXELS = 1 << 20
#: images whose colors are averaged
COLOR_SAMPLES = 500


def count_classes(images: ImageSet, spec: str) -> int:
    """Return the number of classes of labeled images. Raises UsageError if they have no labels."""
    if images.class_names:
        return len(images.class_names)
    if images.open_mask is not None:
        return count_mask_classes(read_all(images.read_mask, range(len(images))))
    if images.labels is None:
        raise UsageError(
            f"{spec}: found no labels, which training requires; expected one folder per class, or the folders images "
            "and masks."
        )
    if images.labels.ndim == 2:
        return images.labels.shape[1]
    return int(images.labels.max()) + 1


def read_all(read: Callable[[int], T], indices: Iterable[int]) -> Iterator[T]:
    """Yield what can be read; the cache lists the rest."""
    for i in indices:
        with contextlib.suppress(UnreadableImageError):
            yield read(i)


def color_statistics(images: ImageSet, *, grayscale: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of values in [0, 1], over up to 500 evenly spaced images."""
    indices = np.linspace(0, len(images) - 1, min(len(images), COLOR_SAMPLES)).astype(int)
    mode = "L" if grayscale else "RGB"
    small = [image.convert(mode).resize((32, 32)) for image in read_all(images.read_image, indices.tolist())]
    if not small:
        raise CompressError(f"{images.name}: none of {len(indices)} images can be read; check the files.")
    values = np.stack([np.asarray(image, dtype=np.float64) / 255 for image in small]).reshape(-1, len(mode))
    mean, std = values.mean(0), values.std(0).clip(1e-3)
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def image_cache_dir(chosen: Path | None = None) -> Path:
    """Return the directory of decoded images: the chosen one, else $COMPRESS_CACHE, else the user's cache."""
    return chosen or Path(os.environ.get("COMPRESS_CACHE", Path.home() / ".cache" / "compress")) / "images"


class CachedDataset:
    """Cached images as the engine's `ImageSource`: any number of independent, endless orders."""

    def __init__(self, cache: ImageCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def batches(
        self, batch_size: int, *, seed: tuple[int, ...], rank: int, world_size: int, augment: bool,
        repeats: Repeats = None,
    ) -> Batches:  # fmt: skip
        """Return the batches of one order; batch i is a pure function of (seed, i, rank)."""
        counts = None if repeats is None else repeats.numpy()
        return Batches(self.cache, batch_size, seed=seed, rank=rank, world=world_size, augment=augment, times=counts)

    def predict_all(self, teacher: FrozenModel) -> tuple[Tensor, Tensor]:
        """Return the teacher's class and confidence for every image."""
        predictions = predict_all(self.cache, teacher)
        return torch.from_numpy(predictions.prediction), torch.from_numpy(predictions.confidence)


def check_datasets(data: DataConfig) -> None:
    """Open every data set of a config. Raises UsageError for one that does not exist."""
    open_images(data.validation or "", root=data.root, split="val", labeled=True)
    for spec, labeled in ((data.unlabeled, False), (data.labeled, True)):
        if spec is not None:
            open_images(spec, root=data.root, split="train", labeled=labeled)


def load_training_images(
    data: DataConfig, card: ModelCard, kind: str, *, seed: int, progress: Callable[[str], None]
) -> ImageCache:
    """Decode the images of a kind ("unlabeled", "labeled") into the cache, at the size of the networks."""
    spec = getattr(data, kind)
    images = open_images(spec, root=data.root, split="train", labeled=kind == "labeled")
    if kind != "labeled":
        images = images.without_labels()
    images = unify_masks(images, card)
    cache = build_cache(
        images, image_size=card.image_size, resize=card.resize, views=views_per_image(data, images), seed=seed,
        grayscale=card.grayscale, folder=image_cache_dir(data.cache_dir), max_unreadable=data.max_unreadable,
        progress=progress,
    )  # fmt: skip
    if cache.labels is None or (cache.class_names is None and cache.labels.ndim == 1 and not card.decides_by_threshold):
        return cache
    return map_targets(cache, card, data, spec=spec, progress=progress)


def map_targets(
    cache: ImageCache, card: ModelCard, data: DataConfig, *, spec: str, progress: Callable[[str], None]
) -> ImageCache:
    """Return the images with the labels of the model. Raises UsageError if they have others."""
    assert cache.labels is not None
    if card.decides_by_threshold:
        return to_label_targets(cache, card.classes, card.class_names, spec=spec, progress=progress)
    if cache.labels.ndim == 2:
        raise UsageError(
            f"{spec}: found several labels per image, but the model predicts one class; give --task "
            "multilabel_classification if each of its outputs is a label."
        )
    return map_labels(cache, card.classes, card.class_names, order=data.label_order, spec=spec, progress=progress)


def unify_masks(images: ImageSet, card: ModelCard) -> ImageSet:
    """Return the images with the masks of the model: 0 and 1 for background and foreground, also if they are 0 and 255.

    Raises:
        UsageError: There are more classes than background and foreground, and the model has one logit per pixel.
    """
    if images.open_mask is None or not card.predicts_maps or card.classes > 2:
        return images
    names = images.class_names or []
    if card.classes == 1 and len(names) > 2:
        raise UsageError(
            f"{images.name}: found {len(names)} classes, expected masks of background and foreground, as the model has "
            "one logit per pixel."
        )
    images = to_binary_masks(images)
    return replace(images, class_names=names[-1:] or None) if card.classes == 1 else images


def views_per_image(data: DataConfig, images: ImageSet) -> int:
    """Return the crops per training image: 1 for a labeled image, since a crop may not show its class."""
    return 1 if images.labels is not None else data.views or choose_view_count(len(images))


def load_validation_images(
    data: DataConfig, card: ModelCard, *, input_size: Size | None = None, progress: Callable[[str], None]
) -> ImageCache:
    """Decode the validation images into the cache (see `evaluation_view`).

    Raises:
        UsageError: labels or masks do not have the model's task and classes.
    """
    spec = data.validation or ""
    images = open_images(spec, root=data.root, split="val", labeled=True)
    is_segmentation = card.predicts_maps
    if (images.open_mask if is_segmentation else images.labels) is None:
        kind, layout = ("masks", "folders images and masks") if is_segmentation else ("labels", "one folder per class")
        raise UsageError(f"{spec}: found no {kind}, which validation requires; expected {layout}.")
    images = unify_masks(images, card)
    view = evaluation_view(images, card, input_size)
    cache = build_cache(
        images, image_size=view.image_size, resize=view.resize, views=1, folder=image_cache_dir(data.cache_dir),
        max_unreadable=data.max_unreadable, full_image=view.full_image, progress=progress,
    )  # fmt: skip
    if not is_segmentation:
        return map_targets(cache, card, data, spec=spec, progress=progress)
    if card.task == "binary_segmentation":
        return cache
    count = cache.count_classes()
    if count != card.classes if cache.class_names else count > card.classes:
        raise UsageError(f"{spec}: found {count} classes, expected the model's {card.classes}.")
    return cache


def evaluation_view(images: ImageSet, card: ModelCard, input_size: Size | None = None) -> View:
    """Return how images are prepared for scores and predictions: center crops, or full images for segmentation.

    Full images are padded to one size: `input_size` if the file accepts no other (height, width).
    """
    if not card.predicts_maps:
        return View(card.image_size, card.resize)
    resize = card.resize or min(card.image_size)
    return View(input_size or canvas_size(images, resize), resize, full_image=True)


def evaluation_batch_size(image_size: Size) -> int:
    """Return how many images of this (height, width) are scored at once."""
    return max(1, min(256, MAX_BATCH_PIXELS // (image_size[0] * image_size[1])))


def canvas_size(images: ImageSet, resize: int) -> Size:
    """Return the (height, width) that contains every image with its short side scaled to `resize`."""
    sizes = {scaled_size(size, min(size) / resize) for size in images.iter_sizes()}
    widths, heights = zip(*sizes, strict=True) if sizes else ((resize,), (resize,))
    return max(heights), max(widths)


def create_scorer(
    cache: ImageCache, card: ModelCard, accelerator: Accelerator
) -> Callable[[Callable[[Tensor], Tensor]], dict[str, float]]:
    """Return a function that scores a network, or any function from images to logits, on `cache` in float32."""
    task = task_for_card(card)
    height, width = cache.pixels.shape[1:3]
    batch_size = evaluation_batch_size((height, width))

    def score(net: Callable[[Tensor], Tensor]) -> dict[str, float]:
        return task.score(
            partial(call_in_halves, net),
            ((accelerator.to_float_images(x), y) for x, y in iter_batches(cache, batch_size)),
        )

    return score


def select_uncertain_images(
    cache: ImageCache, teacher: FrozenModel, count: int, rows: Callable[[Tensor], Tensor] = lambda output: output
) -> ImageCache:
    """Return the images of highest teacher entropy. Raises UsageError if there are fewer than `count`."""
    if count > len(cache):
        raise UsageError(f"--ood-subset {count}: found only {len(cache)} images in {cache.name}.")
    return cache.subset(select_highest_entropy(predict_all(cache, teacher, rows), count))


def predict_all(
    cache: ImageCache, teacher: FrozenModel, rows: Callable[[Tensor], Tensor] = lambda output: output
) -> Predictions:
    """Predict every image on the teacher's device; `rows` makes one row of logits per decision."""
    return predict(cache, lambda x: rows(teacher(x.to(teacher.accelerator.device))).float().cpu())
