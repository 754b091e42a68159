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

from compress.data.batches import in_order
from compress.data.cache import Cached
from compress.errors import CompressError

BINS = 10


@dataclass(frozen=True)
class Answers:
    """One entry an image."""

    entropy: np.ndarray  #: nats, in [0, ln C]
    confidence: np.ndarray  #: largest probability, in [1/C, 1]
    prediction: np.ndarray  #: class of the largest logit
    classes: int

    def summary(self) -> dict[str, Any]:
        """Histograms and class balance, as JSON has them."""
        top = math.log(self.classes)
        shares = np.bincount(self.prediction, minlength=self.classes) / len(self.prediction)
        spread = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
        return {
            "images": len(self.prediction),
            "entropy_mean": float(self.entropy.mean()),
            "entropy_max": top,
            "entropy_histogram": histogram(self.entropy, 0.0, top),
            "confidence_mean": float(self.confidence.mean()),
            "confidence_histogram": histogram(self.confidence, 0.0, 1.0),
            "class_shares": [round(float(share), 6) for share in shares],
            "largest_share": float(shares.max()),
            "classes_never_predicted": int((shares == 0).sum()),
            "balance": spread / top if top else 1.0,  # one class is always balanced
        }


def histogram(values: np.ndarray, low: float, high: float) -> dict[str, list[float]]:
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    return {"counts": counts.tolist(), "edges": [round(float(edge), 6) for edge in edges]}


def answers(
    cached: Cached, logits: Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n c"]], batch_size: int = 256
) -> Answers:
    """The teacher's answers to every image. Raises CompressError where a logit is not finite.

    Through log_softmax, as p · log p is NaN where a probability underflows, and NaN sorts first.
    """
    entropy, confidence, prediction, classes = [], [], [], 0
    with torch.no_grad():
        for images, _ in in_order(cached, batch_size):
            answer = logits(images.float() / 255).float().cpu()
            if not bool(answer.isfinite().all()):
                raise CompressError(f"{cached.name}: the teacher's logits are not finite; is its checkpoint whole?")
            log_p = answer.double().log_softmax(1)
            entropy.append(-(log_p.exp() * log_p).sum(1))
            confidence.append(log_p.max(1).values.exp())
            prediction.append(answer.argmax(1))
            classes = answer.shape[1]
    return Answers(torch.cat(entropy).numpy(), torch.cat(confidence).numpy(), torch.cat(prediction).numpy(), classes)


def highest_entropy(found: Answers, n: int) -> np.ndarray:
    """Indices of the `n` images that the teacher is least sure of, in their own order: the paper's OOD subset."""
    return np.sort(np.argsort(-found.entropy, kind="stable")[:n])
