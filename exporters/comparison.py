"""What an export is compared on, and what it must keep to: batches of several sizes, images of odd sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.failure import ExportError, RejectedError, first_line
from exporters.parity import Answering, Parity, compare
from exporters.runner import to_bytes

#: batch sizes of the comparison; none equals the batch of 3 that is traced with, so that a baked-in size shows
BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Tolerance:
    """What an artefact must keep to, against the network it was made from."""

    max_rel: float | None  #: greatest difference of a logit, as a share of the greatest |logit|; None: not looked at
    disagreement: float | None  #: greatest share of decisions (images, or pixels) that may differ; None: likewise
    cosine: float = -1.0  #: lowest similarity of all logits


#: precision -> what it must keep to without more being said. fp32 in another order of summation stays below 1e-5 of the
#: greatest logit, so a hundred times that is a fault; near ties may turn, so its decisions count in maps alone, where
#: there are many. fp16 rounds to 2^-11 and bf16 to 2^-8 at every layer, which random errors of some dozen layers raise
#: about fivefold. int8 moves single logits by tenths, and is judged by what it decides.
TOLERANCES = {
    "fp32": Tolerance(max_rel=1e-3, disagreement=None),
    "fp16": Tolerance(max_rel=1e-2, disagreement=0.02, cosine=0.9999),
    "bf16": Tolerance(max_rel=1e-1, disagreement=0.05, cosine=0.999),
    "int8": Tolerance(max_rel=None, disagreement=0.1, cosine=0.97),
}


def batches_of(images: Tensor, example: Tensor, dynamic_batch: bool, *, noise: bool) -> list[NDArray[np.float32]]:
    """The images in batches of the sizes in BATCHES in turn (or of the example's); again from the first if too few."""
    sizes: Sequence[int] = BATCHES if dynamic_batch else (len(example),)
    if images.shape[1:] != example.shape[1:]:
        expected = ", ".join(map(str, example.shape[1:]))
        raise ExportError(f"found images {list(images.shape)} to compare on, expected [n, {expected}].")
    if noise:
        images = torch.rand(sum(sizes), *example.shape[1:], generator=torch.Generator().manual_seed(0))
    array = images.detach().float().cpu().numpy()
    if len(array) == 0:
        raise ExportError("no images to compare on; give at least one.")
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


def odd_batches(network: nn.Module, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Some of the images at sizes that nothing divides: 65x97 and 49x61 for a network of 64x64.

    Raises ExportError if the network itself does not take them.
    """
    height, width = batch.shape[2:]
    images = torch.from_numpy(batch)
    found = []
    for size in ((height + 1, 3 * width // 2 + 1), (3 * height // 4 + 1, width - 3)):
        odd = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        try:
            with torch.no_grad():
                network(odd)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise ExportError(
                f"the network does not take images of {size[0]}x{size[1]} ({first_line(error)}); "
                "export it for one size, without --input-size dynamic."
            ) from error
        found.append(odd.numpy())
    return found


def framed(batches: list[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    """The images as pictures of bytes [n, h, w, 3], at their own size, wider, higher and smaller in turn."""
    sizes = [(1.0, 1.0), (1.37, 2.11), (2.3, 1.2), (0.7, 0.9)]
    found = []
    for batch, (high, wide) in zip(batches, itertools.cycle(sizes), strict=False):
        size = round(batch.shape[2] * high), round(batch.shape[3] * wide)
        scaled = F.interpolate(torch.from_numpy(batch), size=size, mode="bilinear", align_corners=False)
        found.append(to_bytes(scaled))
    return found


def verify(reference: Answering, candidate: Answering, batches: Iterable[NDArray[Any]], tolerance: Tolerance) -> Parity:
    """How far the candidate's answers are from the reference's logits. Raises RejectedError if that is too far.

    Of a candidate that answers labels the labels alone are compared.
    """
    parity = compare(reference, candidate, batches)
    refuse(parity, tolerance)
    return parity


def refuse(parity: Parity, tolerance: Tolerance) -> None:
    """Raises RejectedError, with the figures, for what the tolerance does not allow."""
    on = f"on {parity.images} images"
    if parity.max_rel is not None and tolerance.max_rel is not None and not parity.max_rel <= tolerance.max_rel:
        raise RejectedError(
            f"differs by {parity.max_rel:.1e} of the greatest logit {on}, top-1 agreement {parity.top1_agreement:.1%}, "
            f"tolerance {tolerance.max_rel:.1e}"
        )
    if parity.cosine is not None and not parity.cosine >= tolerance.cosine:
        raise RejectedError(
            f"answers with logits of cosine similarity {parity.cosine:.4f} {on}, top-1 agreement "
            f"{parity.top1_agreement:.1%}, expected at least {tolerance.cosine:g}"
        )
    allowed = tolerance.disagreement
    if allowed is None and (parity.miou is not None or parity.max_rel is None):
        allowed = tolerance.max_rel
    if allowed is not None and 1 - parity.top1_agreement > allowed:
        raise RejectedError(
            f"gives {1 - parity.top1_agreement:.2%} of the labels otherwise {on}, tolerance {allowed:.1e}"
        )
