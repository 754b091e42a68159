"""Whether two networks give the same outputs: on which images they are compared, how, and within which tolerance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.errors import first_line
from exporters.errors import ExportError, RejectedError
from exporters.runtimes.base import to_uint8_images

#: images -> outputs
PredictFunction = Callable[[NDArray[Any]], NDArray[Any]]
#: batch sizes of the comparison; none is the traced batch size, so that a hard-coded size shows
BATCH_SIZES = (1, 2, 5)


#: positive decisions from which their agreement is judged: of fewer, one that differs is a large share
MIN_POSITIVES = 100


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed differences between an exported file and the network.

    Example:
        >>> strict = Tolerance(max_rel=1e-4, max_disagreement=0.0)
        >>> strict.min_cosine
        -1.0
    """

    max_rel: float | None  #: largest difference of a logit, relative to the largest |logit|; None: unlimited
    max_disagreement: float | None  #: largest share of predictions (images or pixels) that differ; None: unlimited
    min_cosine: float = -1.0  #: smallest cosine similarity of all logits


#: Default tolerance of each precision. fp32 with another order of summation stays below 1e-5 of the largest logit, so a
#: hundred times that is an error. Near ties may flip, so fp32 predictions count only in maps, where there are many.
#: fp16 rounds to 2^-11 and bf16 to 2^-8 in every layer, which random errors of some dozen layers raise about fivefold.
#: int8 changes single logits by tenths, so it is judged by its predictions.
TOLERANCES = {
    "fp32": Tolerance(max_rel=1e-3, max_disagreement=None),
    "fp16": Tolerance(max_rel=1e-2, max_disagreement=0.02, min_cosine=0.9999),
    "bf16": Tolerance(max_rel=1e-1, max_disagreement=0.05, min_cosine=0.999),
    "int8": Tolerance(max_rel=None, max_disagreement=0.1, min_cosine=0.97),
}


@dataclass(frozen=True)
class Parity:
    """Differences between the outputs of a candidate and of a reference. Fields of logits are None for labels."""

    images: int  #: number of images compared
    max_abs: float | None  #: largest difference of a logit; infinite if the candidate returns NaN or infinity
    max_rel: float | None  #: max_abs relative to the largest |logit| of the reference
    mean_abs: float | None  #: mean difference of a logit
    cosine: float | None  #: cosine similarity of all logits as one vector, in [-1, 1]
    top1_agreement: float  #: share of equal predictions (images, or pixels of a map), in [0, 1]
    miou: float | None = None  #: mIoU of the candidate's label maps with the reference's; None without maps
    #: Dice coefficient of the positive decisions of both, in [0, 1]; None without a threshold, or with fewer than 100
    positive_agreement: float | None = None


def compare_outputs(
    reference: PredictFunction, candidate: PredictFunction, batches: Iterable[NDArray[Any]], *, cut: float | None = None
) -> Parity:
    """Run two models on the same images and compare their outputs.

    Args:
        reference: Returns logits [n, classes, ...].
        candidate: Returns logits of the same shape, or integer labels [n, ...]; with `cut`, [n, labels] or [n, h, w].
        batches: Images as both models take them.
        cut: Output above which a decision is positive; None: the class of the largest output is predicted.

    Raises:
        ValueError: Shapes differ, the reference is not finite, or there are no images.

    Example:
        >>> import numpy as np
        >>> images = np.array([[1.0, 2.0], [4.0, 3.0]])
        >>> parity = compare_outputs(lambda x: x, lambda x: x + 0.5, [images])
        >>> parity.max_abs, parity.max_rel, parity.top1_agreement
        (0.5, 0.125, 1.0)
    """
    parts = [compare_batch(np.asarray(reference(x), np.float64), np.asarray(candidate(x)), cut) for x in batches]
    if sum(part.images for part in parts) == 0:
        raise ValueError("compare_outputs: found no images, expected at least one.")
    return merge_batches(parts)


def verify_parity(
    reference: PredictFunction, candidate: PredictFunction, batches: Iterable[NDArray[Any]], tolerance: Tolerance,
    *, cut: float | None = None,
) -> Parity:  # fmt: skip
    """Compare outputs as `compare_outputs` does. Raise RejectedError if they differ more than the tolerance allows."""
    parity = compare_outputs(reference, candidate, batches, cut=cut)
    check_tolerance(parity, tolerance)
    return parity


def check_tolerance(parity: Parity, tolerance: Tolerance) -> None:
    """Raise RejectedError if the differences exceed the tolerance."""
    images, agreement = f"on {parity.images} images", f"top-1 agreement {parity.top1_agreement:.1%}"
    if parity.max_rel is not None and tolerance.max_rel is not None and not parity.max_rel <= tolerance.max_rel:
        raise RejectedError(
            f"logits differ by {parity.max_rel:.1e} of the largest {images} ({agreement}), expected at most "
            f"{tolerance.max_rel:.1e}"
        )
    if parity.cosine is not None and not parity.cosine >= tolerance.min_cosine:
        raise RejectedError(
            f"logits have cosine similarity {parity.cosine:.4f} {images} ({agreement}), expected at least "
            f"{tolerance.min_cosine:g}"
        )
    allowed = tolerance.max_disagreement
    if allowed is None and (parity.miou is not None or parity.max_rel is None):
        allowed = tolerance.max_rel
    if allowed is not None and 1 - parity.top1_agreement > allowed:
        raise RejectedError(
            f"{1 - parity.top1_agreement:.2%} of the predictions differ {images}, expected at most {allowed:.1e}"
        )
    positive = parity.positive_agreement
    if allowed is not None and positive is not None and 1 - positive > allowed:
        raise RejectedError(
            f"the positive predictions have a Dice coefficient of {positive:.2%} {images}, expected at least "
            f"{1 - allowed:.1%}"
        )


@dataclass(frozen=True)
class LogitError:
    """Sums over the logits of one batch."""

    max_abs: float
    sum_abs: float
    count: int
    dot: float
    squares: tuple[float, float]  #: sums of squares of reference and candidate


@dataclass(frozen=True)
class BatchComparison:
    """Comparison of one batch."""

    images: int
    predictions: int
    agreements: int
    error: LogitError | None  #: None for labels
    scale: float  #: largest |logit| of the reference
    #: [classes, classes] of pixels or decisions, rows are the reference; None for one class per image
    confusion: NDArray[np.int64] | None
    is_map: bool
    has_threshold: bool  #: every output is a decision of its own


def compare_batch(reference: NDArray[np.float64], candidate: NDArray[Any], cut: float | None = None) -> BatchComparison:
    has_labels, is_map = np.issubdtype(candidate.dtype, np.integer), reference.ndim > 2
    is_reduced = has_labels and (cut is None or is_map)
    expected = (reference.shape[0], *reference.shape[2:]) if is_reduced else reference.shape
    if expected != candidate.shape:
        raise ValueError(f"compare_outputs: found outputs {list(candidate.shape)}, expected {list(expected)}.")
    if not np.isfinite(reference).all():
        raise ValueError("compare_outputs: the reference returns NaN or infinity; check the network.")
    error = None if has_labels else logit_error(reference, candidate.astype(np.float64))
    right = find_labels(reference, cut)
    labels = candidate.astype(np.int64) if has_labels else find_labels(candidate, cut)
    is_equal = right == labels
    classes = reference.shape[1] if cut is None else 2
    confusion = confusion_matrix(right, labels, classes) if is_map or cut is not None else None
    scale = float(np.abs(reference).max(initial=0.0))
    counts = len(reference), is_equal.size, int(is_equal.sum())
    return BatchComparison(*counts, error, scale, confusion, is_map, has_threshold=cut is not None)


def find_labels(outputs: NDArray[Any], cut: float | None) -> NDArray[np.int64]:
    """Return the class of the largest output, or 0 and 1 for each output; maps are [n, h, w]."""
    if cut is None:
        return outputs.argmax(1)
    decisions = (outputs > cut).astype(np.int64)
    return decisions[:, 0] if decisions.ndim > 2 else decisions


def logit_error(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> LogitError:
    if not np.isfinite(candidate).all():
        return LogitError(np.inf, np.inf, reference.size, -np.inf, (1.0, 1.0))
    error = np.abs(reference - candidate)
    squares = float((reference**2).sum()), float((candidate**2).sum())
    dot = float((reference * candidate).sum())
    return LogitError(float(error.max(initial=0.0)), float(error.sum()), error.size, dot, squares)


def confusion_matrix(right: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count pixels by reference label (rows) and candidate label. Raise ValueError for a label that is no class."""
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        label = labels.max() if labels.min() >= 0 else labels.min()
        raise ValueError(f"compare_outputs: found label {label}, expected 0 to {classes - 1}.")
    return np.bincount((right * classes + labels).ravel(), minlength=classes * classes).reshape(classes, classes)


def merge_batches(parts: list[BatchComparison]) -> Parity:
    errors, scale = [part.error for part in parts if part.error is not None], max(part.scale for part in parts)
    max_abs = max(error.max_abs for error in errors) if errors else None
    agreement = sum(part.agreements for part in parts) / sum(part.predictions for part in parts)
    maps = [part.confusion for part in parts if part.confusion is not None and part.is_map]
    decisions = [part.confusion for part in parts if part.confusion is not None and part.has_threshold]
    return Parity(
        images=sum(part.images for part in parts),
        max_abs=max_abs,
        max_rel=relative_error(max_abs, scale),
        mean_abs=sum(error.sum_abs for error in errors) / sum(error.count for error in errors) if errors else None,
        cosine=cosine_similarity(errors) if errors else None,
        top1_agreement=agreement,
        miou=mean_iou(np.sum(maps, 0)) if maps else None,
        positive_agreement=positive_dice(np.sum(decisions, 0)) if decisions else None,
    )


def cosine_similarity(errors: list[LogitError]) -> float:
    """Return the similarity over all batches: 1 for zeros and zeros, -1 if a logit is not finite."""
    sums = zip(*((error.dot, *error.squares) for error in errors), strict=True)
    dot, reference, candidate = (sum(part) for part in sums)
    if not np.isfinite(dot):
        return -1.0
    norms = float(np.sqrt(reference) * np.sqrt(candidate))
    return float(np.clip(dot / norms, -1, 1)) if norms > 0 else float(reference == candidate)


def relative_error(max_abs: float | None, scale: float) -> float | None:
    if max_abs is None:
        return None
    return float(max_abs / scale if scale > 0 else (0.0 if max_abs == 0 else np.inf))


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Return the mean IoU over the classes that occur on either side."""
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    occurs = union > 0
    return float((intersection[occurs] / union[occurs]).mean()) if occurs.any() else 1.0


def positive_dice(confusion: NDArray[np.int64]) -> float | None:
    """Return the Dice coefficient of the positive decisions; None if there are few on both sides."""
    both, positives = int(confusion[1, 1]), int(confusion[1].sum() + confusion[:, 1].sum())
    return 2 * both / positives if positives - both >= MIN_POSITIVES else None


def split_batches(images: Tensor, example: Tensor, dynamic_batch: bool, *, is_noise: bool) -> list[NDArray[np.float32]]:
    """Split images into batches of BATCH_SIZES in turn, or of the example's size; repeat them if there are too few."""
    sizes: Sequence[int] = BATCH_SIZES if dynamic_batch else (len(example),)
    if images.shape[1:] != example.shape[1:]:
        expected = ", ".join(map(str, example.shape[1:]))
        raise ExportError(f"images: found {list(images.shape)}, expected [n, {expected}].")
    if is_noise:
        images = torch.rand(sum(sizes), *example.shape[1:], generator=torch.Generator().manual_seed(0))
    array = images.detach().float().cpu().numpy()
    if len(array) == 0:
        raise ExportError("images: found none, expected at least one.")
    cycle = itertools.cycle(sizes)
    batches: list[NDArray[np.float32]] = []
    start = 0
    while start < len(array) or len(batches) < len(sizes):
        size = next(cycle)
        if len(batches) >= len(sizes) and dynamic_batch:
            size = min(size, len(array) - start)
        batches.append(array[np.arange(start, start + size) % len(array)])
        start += size
    return batches


def odd_sized_batches(network: nn.Module, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Resize images to sizes without common divisors, such as 65x97 and 49x61 for 64x64.

    Raises:
        ExportError: The network itself does not take them.
    """
    height, width = batch.shape[2:]
    images = torch.from_numpy(batch)
    batches = []
    for size in ((height + 1, 3 * width // 2 + 1), (3 * height // 4 + 1, width - 3)):
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        try:
            with torch.no_grad():
                network(resized)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise ExportError(
                f"the network does not take images of {size[0]}x{size[1]} ({first_line(error)}); export it for one "
                "size, without --input-size dynamic."
            ) from error
        batches.append(resized.numpy())
    return batches


def as_uint8_images(batches: list[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    """Convert batches to uint8 images [n, h, w, 3]: original size, wider, higher and smaller in turn."""
    scales = [(1.0, 1.0), (1.37, 2.11), (2.3, 1.2), (0.7, 0.9)]
    converted = []
    for batch, (vertical, horizontal) in zip(batches, itertools.cycle(scales), strict=False):
        size = round(batch.shape[2] * vertical), round(batch.shape[3] * horizontal)
        resized = F.interpolate(torch.from_numpy(batch), size=size, mode="bilinear", align_corners=False)
        converted.append(to_uint8_images(resized))
    return converted
