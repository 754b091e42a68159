"""What a teacher says of some images: how sure it is, and how its answers spread over the classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from compress.data.batches import iter_batches
from compress.data.cache import ImageCache
from compress.errors import CompressError

BINS = 10
#: pixels that a teacher is asked about at once, where nobody says otherwise
PIXELS_PER_BATCH = 2**21


@dataclass(frozen=True)
class PixelCounts:
    """Counts over every pixel of every image, where the teacher answers with maps."""

    entropy: np.ndarray  #: in BINS bins over [0, ln C]
    confidence: np.ndarray  #: in BINS bins over [0, 1]
    classes: np.ndarray  #: by the class of the largest logit, [C]


@dataclass(frozen=True)
class Predictions:
    """One entry an image; of a map, the mean over its pixels and its commonest class."""

    entropy: np.ndarray  #: nats, in [0, ln C]
    confidence: np.ndarray  #: largest probability, in [1/C, 1]
    prediction: np.ndarray  #: class of the largest logit
    classes: int
    pixels: PixelCounts | None = None  #: None for a teacher of one answer an image

    def summary(self) -> dict[str, Any]:
        """Histograms and class balance over all answers, one an image or one a pixel, as JSON has them."""
        top = math.log(self.classes)
        if self.pixels is None:
            found = PixelCounts(
                bin_counts(self.entropy, top),
                bin_counts(self.confidence, 1.0),
                np.bincount(self.prediction, minlength=self.classes),
            )
        else:
            found = self.pixels
        shares = found.classes / found.classes.sum()
        spread = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
        return {
            "images": len(self.prediction),
            "decisions": int(found.classes.sum()),
            "entropy_mean": float(self.entropy.mean()),
            "entropy_max": top,
            "entropy_histogram": format_histogram(found.entropy, top),
            "confidence_mean": float(self.confidence.mean()),
            "confidence_histogram": format_histogram(found.confidence, 1.0),
            "class_shares": [round(float(share), 6) for share in shares],
            "largest_share": float(shares.max()),
            "classes_never_predicted": int((shares == 0).sum()),
            "balance": spread / top if top else 1.0,  # one class is always balanced
            "kl_to_uniform": max(0.0, top - spread),
        }


def bin_counts(values: np.ndarray, high: float) -> np.ndarray:
    """How many of the values fall into each of BINS bins over [0, high]."""
    return np.histogram(np.clip(values, 0.0, high), bins=BINS, range=(0.0, high))[0]


def format_histogram(counts: np.ndarray, high: float) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(np.empty(0), bins=BINS, range=(0.0, high))
    return {"counts": counts.tolist(), "edges": [round(float(edge), 6) for edge in edges]}


def predict(
    cached: ImageCache,
    logits: Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n c *map"]],
    batch_size: int | None = None,
) -> Predictions:
    """The teacher's answers to every image. Raises CompressError where a logit is not finite.

    `logits`: one row of logits an image, or a map of them. Images at a time without `batch_size`: what fits in memory.
    """
    height, width = cached.pixels.shape[1:3]
    batch_size = batch_size or max(1, min(256, PIXELS_PER_BATCH // (height * width)))
    parts: list[Predictions] = []
    with torch.no_grad():
        for images, _ in iter_batches(cached, batch_size):
            answer = logits(images.float() / 255).float().cpu()
            if not bool(answer.isfinite().all()):
                raise CompressError(f"{cached.name}: the teacher's logits are not finite; is its checkpoint whole?")
            parts.append(summarize_batch(answer))
    return concatenate_predictions(parts)


def summarize_batch(answer: Float[Tensor, "n c *map"]) -> Predictions:
    """Through log_softmax, as p · log p is NaN where a probability underflows, and NaN sorts first."""
    classes, dense = answer.shape[1], answer.ndim > 2
    log_p = (answer if dense else answer.double()).log_softmax(1)  # twice the memory of a map buys nothing
    entropy = -(log_p.exp() * log_p).sum(1).flatten(1) if dense else -(log_p.exp() * log_p).sum(1)
    confidence = log_p.amax(1).exp()
    label = answer.argmax(1)
    if not dense:
        return Predictions(entropy.numpy(), confidence.numpy(), label.numpy(), classes)
    counts = torch.stack([row.bincount(minlength=classes) for row in label.flatten(1)])
    pixels = PixelCounts(
        bin_counts(entropy.numpy(), math.log(classes)), bin_counts(confidence.numpy(), 1.0), counts.sum(0).numpy()
    )
    means = entropy.double().mean(1).numpy(), confidence.flatten(1).double().mean(1).numpy()
    return Predictions(*means, counts.argmax(1).numpy(), classes, pixels)


def concatenate_predictions(parts: list[Predictions]) -> Predictions:
    maps = [part.pixels for part in parts if part.pixels is not None]
    return Predictions(
        np.concatenate([part.entropy for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.prediction for part in parts]),
        parts[0].classes,
        PixelCounts(
            np.sum([one.entropy for one in maps], 0),
            np.sum([one.confidence for one in maps], 0),
            np.sum([one.classes for one in maps], 0),
        )
        if maps
        else None,
    )


def select_highest_entropy(found: Predictions, n: int) -> np.ndarray:
    """Indices of the `n` images that the teacher is least sure of, in their own order: the paper's OOD subset."""
    return np.sort(np.argsort(-found.entropy, kind="stable")[:n])
