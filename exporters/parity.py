"""Whether two networks answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Answers = Float[np.ndarray, "n c"]
Answering = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """How far a candidate's answers are from the reference's, over all images compared."""

    images: int
    max_abs: float | None  #: greatest difference of one logit; infinite for NaN or infinity; None if it answers labels
    max_rel: float | None  #: max_abs over the greatest |logit| of the reference; None if it answers labels
    mean_abs: float | None  #: mean difference of a logit; as max_abs
    cosine: float | None  #: similarity of all logits as one vector, in [-1, 1]; None if it answers labels
    top1_agreement: float  #: share of decisions (images, or pixels of a map) of the same class, in [0, 1]
    miou: float | None = None  #: of the candidate's label maps against the reference's; None where there are no maps


def compare(reference: Answering, candidate: Answering, batches: Iterable[NDArray[Any]]) -> Parity:
    """Run both on `batches` of images, as both take them, and compare their logits [n, classes, ...].

    A candidate that answers with whole numbers answers labels [n, ...]: compared with the reference's largest logits.
    Raises ValueError for answers of different shapes, for a reference that is not finite, and for no images.
    """
    parts = [difference(np.asarray(reference(x), np.float64), np.asarray(candidate(x))) for x in batches]
    if sum(part.images for part in parts) == 0:
        raise ValueError("compare: no images to compare on.")
    return join(parts)


@dataclass(frozen=True)
class Gap:
    """Between the logits of one batch: what adds up over batches."""

    greatest: float  #: |difference|
    total: float  #: sum of |difference|
    count: int
    dot: float
    squares: tuple[float, float]  #: sums of the squares of both


@dataclass(frozen=True)
class Difference:
    """Of one batch."""

    images: int
    decisions: int
    same: int
    gap: Gap | None  #: of the logits; None for labels
    scale: float
    confusion: NDArray[np.int64] | None  #: [classes, classes] of pixels, rows the reference; None without maps


def difference(reference: NDArray[np.float64], candidate: NDArray[Any]) -> Difference:
    labels = np.issubdtype(candidate.dtype, np.integer)
    expected = (reference.shape[0], *reference.shape[2:]) if labels else reference.shape
    if expected != candidate.shape:
        raise ValueError(f"compare: found answers {list(candidate.shape)}, expected {list(expected)}.")
    if not np.isfinite(reference).all():
        raise ValueError("compare: the reference answers NaN or infinity, so nothing can be compared with it.")
    gap = None if labels else gap_of(reference, candidate.astype(np.float64))
    right, said = reference.argmax(1), candidate.astype(np.int64) if labels else candidate.argmax(1)
    same = right == said
    confusion = confusion_of(right, said, reference.shape[1]) if reference.ndim > 2 else None
    return Difference(
        len(reference), same.size, int(same.sum()), gap, float(np.abs(reference).max(initial=0.0)), confusion
    )


def gap_of(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> Gap:
    if not np.isfinite(candidate).all():
        return Gap(np.inf, np.inf, reference.size, -np.inf, (1.0, 1.0))
    apart = np.abs(reference - candidate)
    squares = float((reference**2).sum()), float((candidate**2).sum())
    return Gap(
        float(apart.max(initial=0.0)), float(apart.sum()), apart.size, float((reference * candidate).sum()), squares
    )


def confusion_of(right: NDArray[np.int64], said: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts of pixels, rows `right`, columns `said`. Raises ValueError for a label that is no class."""
    if said.size and (said.min() < 0 or said.max() >= classes):
        raise ValueError(f"compare: found label {said.max() if said.min() >= 0 else said.min()} of {classes} classes.")
    return np.bincount((right * classes + said).ravel(), minlength=classes * classes).reshape(classes, classes)


def join(parts: list[Difference]) -> Parity:
    gaps, scale = [part.gap for part in parts if part.gap is not None], max(part.scale for part in parts)
    max_abs = max(gap.greatest for gap in gaps) if gaps else None
    agreement = sum(part.same for part in parts) / sum(part.decisions for part in parts)
    maps = [part.confusion for part in parts if part.confusion is not None]
    return Parity(
        images=sum(part.images for part in parts),
        max_abs=max_abs,
        max_rel=share(max_abs, scale),
        mean_abs=sum(gap.total for gap in gaps) / sum(gap.count for gap in gaps) if gaps else None,
        cosine=cosine(gaps) if gaps else None,
        top1_agreement=agreement,
        miou=mean_iou(np.sum(maps, 0)) if maps else None,
    )


def cosine(gaps: list[Gap]) -> float:
    """Of all logits of all batches; 1 for zeros against zeros, -1 where a logit is not finite."""
    dot, ours, theirs = (sum(part) for part in zip(*((gap.dot, *gap.squares) for gap in gaps), strict=True))
    if not np.isfinite(dot):
        return -1.0
    norms = float(np.sqrt(ours) * np.sqrt(theirs))
    return float(np.clip(dot / norms, -1, 1)) if norms > 0 else float(ours == theirs)


def share(max_abs: float | None, scale: float) -> float | None:
    if max_abs is None:
        return None
    return float(max_abs / scale if scale > 0 else (0.0 if max_abs == 0 else np.inf))


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean over the classes that either side knows."""
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    known = either > 0
    return float((both[known] / either[known]).mean()) if known.any() else 1.0
