"""Which validation images a report on segmentation shows, and what the models answer on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from compress.data.cache import ImageCache
    from compress.models.card import ModelCard
    from compress.training.data import DataConfig
    from profiles.report.overlays import Overlays

ROWS = 5  #: images shown
CANDIDATES = 200  #: images, evenly spread, among which they are chosen
VISIBLE = 0.004  #: share of an image's pixels from which a class can be seen in it


def save_overlays(folder: Path, models: Mapping[str, nn.Module], card: ModelCard, data: DataConfig) -> Path | None:
    """Write overlays.npz and overlays.png into `folder`; None where there are no validation masks to show.

    `models` are the columns in their order, networks of the task, classes and image size of `card`.
    """
    from profiles.report.overlays import save_overlays

    if card.task != "segmentation" or data.validation is None:
        return None
    from compress.cli.output import print_status
    from compress.training.data import image_cache_dir, load_validation_images

    cached = load_validation_images(
        data.validation, card, root=data.root, folder=image_cache_dir(data.cache_dir), max_unreadable=data.max_unreadable, say=print_status
    )
    return save_overlays(folder, predict_overlays(cached, models, card)) if len(cached) else None


def predict_overlays(cached: ImageCache, models: Mapping[str, nn.Module], card: ModelCard) -> Overlays:
    """A few images of `cached`, their masks and the label maps of the models."""
    import numpy as np
    import torch

    from profiles.report.overlays import Overlays

    candidates = np.linspace(0, len(cached) - 1, min(CANDIDATES, len(cached))).astype(np.int64)
    masks = cached.gather_targets(candidates)
    assert masks is not None  # `validation_images` saw to it
    indices = candidates[choose_diverse_images(masks, card.classes)]
    pixels, truth = cached.gather(indices), cached.gather_targets(indices)
    assert truth is not None
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    answers = {}
    for name, net in models.items():
        with torch.no_grad():
            answers[name] = net.cpu().eval()(images).argmax(1).numpy().astype(np.uint8)
    names = card.class_names or [str(c) for c in range(card.classes)]
    return Overlays(pixels, truth.astype(np.uint8), answers, names)


def choose_diverse_images(masks: np.ndarray, classes: int, rows: int = ROWS) -> list[int]:
    """Indices of up to `rows` of the masks [n, h, w], one from each stretch of the set, together with all classes.

    At every turn the image that adds most classes to those already seen, of a stretch that has none yet; where
    several do, the first stretch's, nearest to its middle.
    """
    import numpy as np

    visible = [np.bincount(m[m < classes], minlength=classes) >= max(1.0, VISIBLE * m.size) for m in masks]
    stretches = [list(part) for part in np.array_split(np.arange(len(masks)), min(rows, len(masks)))]
    seen = np.zeros(classes, bool)
    chosen: list[int] = []
    while stretches:
        ranked = [
            (int((visible[i] & ~seen).sum()), -s, -abs(2 * place - len(part) + 1), int(i))
            for s, part in enumerate(stretches)
            for place, i in enumerate(part)
        ]
        _, stretch, _, best = max(ranked)
        seen |= visible[best]
        chosen.append(best)
        stretches.pop(-stretch)
    return sorted(chosen)
