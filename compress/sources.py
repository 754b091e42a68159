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
from compress.data.batches import Batches, in_order
from compress.data.cache import Cached, auto_views, build_cache
from compress.data.classes import numbered
from compress.data.decoding import scaled
from compress.data.images import Images, classes_in
from compress.data.statistics import Answers, answers, highest_entropy
from compress.engine.place import Place
from compress.engine.player import Frozen
from compress.engine.stream import Times
from compress.errors import UsageError
from compress.models.card import Card
from compress.tasks import task_of

Size = tuple[int, int]
Positive = Annotated[int, Field(gt=0)]


@dataclass
class DataPlan:
    """Where the images come from."""

    unlabelled: str | None = None  #: out-of-domain images: a folder, a name, hf/NAME, or .tar shards
    labelled: str | None = None  #: labelled images to train on
    validation: str | None = None  #: labelled images to measure on; never trained on
    root: Path | None = None  #: where data sets known by name lie
    views: Positive | None = None  #: crops cached of each unlabelled image; None: 1, or more where there are few images
    subset: Positive | None = None  #: keep only the images of highest teacher entropy (the paper's OOD subsets)
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01  #: share of unreadable images above which the run stops
    cache: Path | None = None  #: folder of the decoded images; None: the user's cache folder


def count_classes(images: Images, spec: str) -> int:
    """How many classes labelled images have. Raises UsageError where they are not labelled."""
    if images.class_names:
        return len(images.class_names)
    if images.masks is not None:
        return classes_in(images.mask(i) for i in range(len(images)))
    if images.labels is None:
        raise UsageError(
            f"{spec}: these images have no labels, and training needs them; a folder must hold one folder a class, or "
            f"the folders images and masks."
        )
    return int(images.labels.max()) + 1


def colour_statistics(images: Images, *, grey: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of values in [0, 1], over up to 500 images spread through the set."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), 500)).astype(int)
    mode = "L" if grey else "RGB"
    pixels = [np.asarray(images.read(int(i)).convert(mode).resize((32, 32)), dtype=np.float64) / 255 for i in chosen]
    values = np.stack(pixels).reshape(-1, 1 if grey else 3)
    mean, std = values.mean(0), values.std(0).clip(1e-3)
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def cache_folder(chosen: Path | None = None) -> Path:
    """Where decoded images are kept: the folder chosen, else $COMPRESS_CACHE, else the user's cache."""
    return chosen or Path(os.environ.get("COMPRESS_CACHE", Path.home() / ".cache" / "compress")) / "images"


class CachedSource:
    """Cached images as the engine reads them: any number of independent, endless orders."""

    def __init__(self, cached: Cached) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def batches(
        self, batch_size: int, *, seed: tuple[int, ...], rank: int, world: int, augment: bool, times: Times = None
    ) -> Batches:
        often = None if times is None else times.numpy()
        return Batches(self.cached, batch_size, seed=seed, rank=rank, world=world, augment=augment, times=often)

    def answers(self, teacher: Frozen) -> tuple[Tensor, Tensor]:
        found = asked(self.cached, teacher)
        return torch.from_numpy(found.prediction), torch.from_numpy(found.confidence)


def training_images(data: DataPlan, card: Card, kind: str, *, seed: int, say: Callable[[str], None]) -> Cached:
    """The unlabelled or labelled images of the plan, decoded once into the cache at the size the networks read."""
    spec = getattr(data, kind)
    images = open_images(spec, root=data.root, split="train", labelled=kind == "labelled")
    if kind != "labelled":
        images = images.bare()
    cached = build_cache(
        images, image_size=card.image_size, resize=card.resize, views=views_of(data, images), seed=seed,
        grey=card.grey, folder=cache_folder(data.cache), max_bad=data.max_bad, say=say,
    )  # fmt: skip
    if cached.labels is None or cached.class_names is None:
        return cached
    return numbered(cached, card.classes, card.class_names, spec=spec, say=say)


def views_of(data: DataPlan, images: Images) -> int:
    """Crops of each training image: one where it has one label, which a corner of the picture may not show."""
    return 1 if images.labels is not None else data.views or auto_views(len(images))


def validation_images(
    spec: str, card: Card, *, root: Path | None, folder: Path, max_bad: float, say: Callable[[str], None]
) -> Cached:
    """Labelled images for measuring, each its centre, or whole for segmentation.

    Raises UsageError where their labels or masks are not of the model's task and classes.
    """
    images = open_images(spec, root=root, split="val", labelled=True)
    dense = card.task == "segmentation"
    if (images.masks if dense else images.labels) is None:
        kind, layout = ("masks", "the folders images and masks") if dense else ("labels", "one folder a class")
        raise UsageError(f"{spec}: these images have no {kind}, and measuring needs them; a folder must hold {layout}.")
    resize = card.resize or (min(card.image_size) if dense else None)
    cached = build_cache(
        images, image_size=canvas(images, resize) if dense and resize else card.image_size, resize=resize, views=1,
        folder=folder, max_bad=max_bad, whole=dense, say=say,
    )  # fmt: skip
    if not dense:
        return numbered(cached, card.classes, card.class_names, spec=spec, say=say)
    found = cached.count_classes()
    if found != card.classes if cached.class_names else found > card.classes:
        raise UsageError(
            f"{spec}: found {found} classes, expected the model's {card.classes}; is this the right data for it?"
        )
    return cached


def canvas(images: Images, resize: int) -> Size:
    """(height, width) that holds every image whole, its short side made `resize`."""
    sizes = {scaled(size, min(size) / resize) for size in images.sizes()}
    widths, heights = zip(*sizes, strict=True) if sizes else ((resize,), (resize,))
    return max(heights), max(widths)


#: pixels of the images that are scored at a time: 256 of 64x64
SCORED_PIXELS = 1 << 20


def scorer(cached: Cached, card: Card, place: Place) -> Callable[[Callable[[Tensor], Tensor]], dict[str, float]]:
    """A function that scores a network, or any call from images to logits, on `cached`, in float32."""
    task = task_of(card)
    height, width = cached.pixels.shape[1:3]
    size = max(1, min(256, SCORED_PIXELS // (height * width)))

    def score(net: Callable[[Tensor], Tensor]) -> dict[str, float]:
        batches = ((place.images(x), y) for x, y in in_order(cached, size))
        return task.score(net, batches)

    return score


def ood_subset(cached: Cached, teacher: Frozen, n: int) -> Cached:
    """The `n` images of highest teacher entropy. Raises UsageError where there are fewer."""
    if n > len(cached):
        raise UsageError(f"--ood-subset {n}: there are only {len(cached)} images in {cached.name}.")
    return cached.subset(highest_entropy(asked(cached, teacher), n))


def asked(cached: Cached, teacher: Frozen) -> Answers:
    """What the teacher says of every image, at the place where it is. Raises CompressError as `answers` does."""
    return answers(cached, lambda x: teacher(x.to(teacher.place.device)).float().cpu())
