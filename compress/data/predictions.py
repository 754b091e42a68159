"""Predictions of a teacher for a set of images, and their statistics."""

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
from compress.errors import CompressError, is_out_of_memory

#: bins of a histogram
BINS = 10
#: default pixels per forward pass
PIXELS_PER_BATCH = 2**21


@dataclass(frozen=True)
class PixelCounts:
    """Counts over all pixels, or over the decisions on all labels, of all images."""

    entropy: np.ndarray  #: in BINS bins over [0, ln C]
    confidence: np.ndarray  #: in BINS bins over [0, 1]
    classes: np.ndarray  #: by the class of the largest logit, [C]


@dataclass(frozen=True)
class Predictions:
    """One entry per image; for several decisions, the mean over them and the most frequent class."""

    entropy: np.ndarray  #: nats, in [0, ln C]
    confidence: np.ndarray  #: largest probability, in [1/C, 1]
    prediction: np.ndarray  #: class of the largest logit
    classes: int
    pixels: PixelCounts | None = None  #: None for classification

    def summary(self) -> dict[str, Any]:
        """Histograms and class balance over all images, or over all pixels, as JSON types."""
        top = math.log(self.classes)
        counts = self.pixels or PixelCounts(
            bin_counts(self.entropy, top),
            bin_counts(self.confidence, 1.0),
            np.bincount(self.prediction, minlength=self.classes),
        )
        shares = counts.classes / counts.classes.sum()
        balance = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
        return {
            "images": len(self.prediction),
            "decisions": int(counts.classes.sum()),
            "entropy_mean": float(self.entropy.mean()),
            "entropy_max": top,
            "entropy_histogram": format_histogram(counts.entropy, top),
            "confidence_mean": float(self.confidence.mean()),
            "confidence_histogram": format_histogram(counts.confidence, 1.0),
            "class_shares": [round(float(share), 6) for share in shares],
            "largest_share": float(shares.max()),
            "classes_never_predicted": int((shares == 0).sum()),
            "balance": balance / top if top else 1.0,  # one class is always balanced
            "kl_to_uniform": max(0.0, top - balance),
        }


def bin_counts(values: np.ndarray, high: float) -> np.ndarray:
    """Number of values in each of BINS bins over [0, high]."""
    return np.histogram(np.clip(values, 0.0, high), bins=BINS, range=(0.0, high))[0]


def format_histogram(counts: np.ndarray, high: float) -> dict[str, list[float]]:
    edges = np.histogram_bin_edges(np.empty(0), bins=BINS, range=(0.0, high))
    return {"counts": counts.tolist(), "edges": [round(float(edge), 6) for edge in edges]}


def call_in_halves(net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return `net(images)`; if memory is exhausted, of half the images at a time, and so on.

    The network must be in eval mode: its outputs do not depend on the other images then.
    """
    try:
        return net(images)
    except Exception as error:
        if len(images) == 1 or not is_out_of_memory(error):
            raise
    # Outside of the handler, because the error keeps tensors alive.
    return torch.cat([call_in_halves(net, half) for half in images.tensor_split(2)])


def predict(
    cached: ImageCache,
    logits: Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n c *map"]],
    batch_size: int | None = None,
) -> Predictions:
    """Predictions for every image.

    Args:
        cached: The images.
        logits: Images in [0, 1] -> logits [n, c], or [n, c, ...] with several decisions per image.
        batch_size: Images per forward pass; None: as many as PIXELS_PER_BATCH allows, at most 256.

    Raises:
        CompressError: A logit is not finite.
    """
    height, width = cached.pixels.shape[1:3]
    batch_size = batch_size or max(1, min(256, PIXELS_PER_BATCH // (height * width)))
    parts: list[Predictions] = []
    with torch.no_grad():
        for images, _ in iter_batches(cached, batch_size):
            batch_logits = call_in_halves(logits, images.float() / 255).float().cpu()
            if not bool(batch_logits.isfinite().all()):
                raise CompressError(f"{cached.name}: the teacher's logits are not finite; check its checkpoint.")
            parts.append(summarize_batch(batch_logits))
    return concatenate_predictions(parts)


def summarize_batch(logits: Float[Tensor, "n c *map"]) -> Predictions:
    """Use log_softmax, because p · log p is NaN where a probability underflows, and NaN sorts first."""
    classes, is_map = logits.shape[1], logits.ndim > 2
    log_p = (logits if is_map else logits.double()).log_softmax(1)  # maps stay float32 to save memory
    entropy = -(log_p.exp() * log_p).sum(1).flatten(1) if is_map else -(log_p.exp() * log_p).sum(1)
    confidence = log_p.amax(1).exp()
    label = logits.argmax(1)
    if not is_map:
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


def select_highest_entropy(predictions: Predictions, n: int) -> np.ndarray:
    """Indices, in order, of the `n` images with the highest entropy: the paper's OOD subset."""
    return np.sort(np.argsort(-predictions.entropy, kind="stable")[:n])
