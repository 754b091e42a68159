"""Segmentation examples of a report: validation images with their masks and the predictions of several models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.data.cache import ImageCache
from compress.models.card import ModelCard
from compress.tasks.decisions import decide
from profiles.report.overlays import Overlays, save_overlays

MAX_EXAMPLES = 5
CANDIDATES = 200  #: evenly spaced images from which the examples are chosen
VISIBLE_SHARE = 0.004  #: share of an image's pixels from which a class is visible


def save_segmentation_examples(
    run_dir: Path, cache: ImageCache, models: Mapping[str, nn.Module], card: ModelCard
) -> Path | None:
    """Write compress-overlays.npz and compress-overlays.png into a run directory; None without images.

    Args:
        run_dir: run directory.
        cache: validation images with masks.
        models: networks with the task, classes and image size of `card`, by the name of their column.
        card: of the student.
    """
    return save_overlays(run_dir, predict_examples(cache, models, card)) if len(cache) else None


def predict_examples(cache: ImageCache, models: Mapping[str, nn.Module], card: ModelCard) -> Overlays:
    """Choose examples and predict them with all models."""
    candidates = np.linspace(0, len(cache) - 1, min(CANDIDATES, len(cache))).astype(np.int64)
    masks = cache.gather_targets(candidates)
    assert masks is not None  # the task is segmentation
    indices = candidates[choose_diverse_images(masks, len(card.decision_names))]
    pixels, truth = cache.gather(indices), cache.gather_targets(indices)
    assert truth is not None
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    predictions = {}
    for name, net in models.items():
        with torch.no_grad():
            logits = net.cpu().eval()(images)
        threshold = card.decision_threshold
        labels = logits.argmax(1) if threshold is None else decide(logits[:, 0], threshold)
        predictions[name] = labels.numpy().astype(np.uint8)
    return Overlays(pixels, truth.astype(np.uint8), predictions, card.decision_names)


def choose_diverse_images(masks: np.ndarray, classes: int, count: int = MAX_EXAMPLES) -> list[int]:
    """Choose up to `count` masks [n, h, w], one per segment of the set, that together show as many classes as possible.

    Greedy: each turn takes the image that adds most visible classes; ties go to the first segment, near its middle.
    """
    visible = [np.bincount(m[m < classes], minlength=classes) >= max(1.0, VISIBLE_SHARE * m.size) for m in masks]
    segments = [list(part) for part in np.array_split(np.arange(len(masks)), min(count, len(masks)))]
    shown = np.zeros(classes, bool)
    chosen: list[int] = []
    while segments:
        ranked = [
            (int((visible[i] & ~shown).sum()), -s, -abs(2 * position - len(segment) + 1), int(i))
            for s, segment in enumerate(segments)
            for position, i in enumerate(segment)
        ]
        _, segment_rank, _, best = max(ranked)
        shown |= visible[best]
        chosen.append(best)
        segments.pop(-segment_rank)
    return sorted(chosen)
