"""What an export is compared on, and what it must keep to: batches of several sizes, images of odd sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.failure import ExportError, first_line
from exporters.parity import Parity, compare
from exporters.runtime import load

#: batch sizes of the comparison; none equals the batch of 3 that is traced with, so that a baked-in size shows
BATCHES = (1, 2, 5)
#: greatest difference of a logit, as a share of the greatest |logit|: float32 in another order stays below 1e-5;
#: and greatest share of pixels with another label
TOLERANCE = 1e-3


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


def verify(network: nn.Module, draft: Path, batches: list[NDArray[np.float32]], tolerance: float) -> Parity:
    """Raises ExportError if the draft cannot be run or answers too differently from the network's logits.

    Logits are compared with logits; of maps the labels too; of a draft that answers labels, the labels alone.
    """
    parity = compare(load(network.eval()), load(draft), batches)
    if parity.max_rel is not None and not parity.max_rel <= tolerance:
        raise ExportError(
            f"differs by {parity.max_rel:.1e} of the greatest logit on {parity.images} images, "
            f"top-1 agreement {parity.top1_agreement:.1%}, tolerance {tolerance:.1e}"
        )
    decides = parity.miou is not None or parity.max_rel is None
    if decides and 1 - parity.top1_agreement > tolerance:
        raise ExportError(
            f"gives {1 - parity.top1_agreement:.2%} of the labels otherwise on {parity.images} images, "
            f"tolerance {tolerance:.1e}"
        )
    return parity
