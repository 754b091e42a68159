"""Whether two networks answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Answers = Float[np.ndarray, "n c"]
Answering = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """How far a candidate's logits are from the reference's, over all images compared."""

    images: int
    max_abs: float  #: greatest difference of one logit; infinite where the candidate answers NaN or infinity
    max_rel: float  #: max_abs over the greatest |logit| of the reference
    top1_agreement: float  #: share of images for which both choose the same class, in [0, 1]


def compare(reference: Answering, candidate: Answering, batches: Iterable[NDArray[np.float32]]) -> Parity:
    """Run both on `batches` of images, float32 [n, 3, h, w], and compare their logits [n, classes, ...].

    Raises ValueError for answers of different shapes, for a reference that is not finite, and for no images.
    """
    parts = [difference(np.asarray(reference(x), np.float64), np.asarray(candidate(x), np.float64)) for x in batches]
    if sum(part.images for part in parts) == 0:
        raise ValueError("compare: no images to compare on.")
    return join(parts)


@dataclass(frozen=True)
class Difference:
    """Of one batch."""

    images: int
    decisions: int
    same: int
    max_abs: float
    scale: float


def difference(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> Difference:
    if reference.shape != candidate.shape:
        raise ValueError(f"compare: found answers {list(candidate.shape)}, expected {list(reference.shape)}.")
    if not np.isfinite(reference).all():
        raise ValueError("compare: the reference answers NaN or infinity, so nothing can be compared with it.")
    gap = np.abs(reference - candidate).max(initial=0.0) if np.isfinite(candidate).all() else np.inf
    same = reference.argmax(1) == candidate.argmax(1)
    return Difference(len(reference), same.size, int(same.sum()), float(gap), float(np.abs(reference).max(initial=0.0)))


def join(parts: list[Difference]) -> Parity:
    max_abs, scale = max(part.max_abs for part in parts), max(part.scale for part in parts)
    relative = max_abs / scale if scale > 0 else (0.0 if max_abs == 0 else np.inf)
    agreement = sum(part.same for part in parts) / sum(part.decisions for part in parts)
    return Parity(sum(part.images for part in parts), max_abs, float(relative), agreement)
