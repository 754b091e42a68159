"""Batches as a pure function of (seed, position, rank), independent of workers and of earlier batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from compress.data.cache import ImageCache

Batch = tuple[Tensor, Tensor | None, Tensor]
#: last entry of a seed, by purpose; nonzero, because a SeedSequence does not distinguish (1, 0) from (1,)
ORDER, AUGMENT = 1, 2


class Batches:
    """An endless sequence of batches: `batch_at(position)`.

    Every epoch is a permutation drawn from (seed, epoch). The processes share it, and rank r gets the r-th part of each
    global batch. The last incomplete batch is dropped. A set smaller than a global batch is repeated within it.

    Args:
        cached: The images.
        batch_size: Images per batch and process.
        seed: Seed of the order and of the augmentation.
        rank: Number of this process.
        world: Number of processes.
        augment: Random crops and flips.
        times: Mean number of times that an epoch contains each image; None: once.
    """

    def __init__(
        self,
        cached: ImageCache,
        batch_size: int,
        *,
        seed: tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        augment: bool = False,
        times: np.ndarray | None = None,
    ) -> None:
        self.cached, self.batch_size, self.seed, self.augment = cached, batch_size, seed, augment
        self.rank, self.world, self.times = rank, world, times
        self.global_batch_size = batch_size * world
        length = len(cached) if times is None else epoch_length(times)
        self.batches_per_epoch = max(1, length // self.global_batch_size)
        self._epoch: tuple[int, np.ndarray] | None = None

    def batch_at(self, position: int) -> Batch:
        """The batch at a position.

        Returns:
            (images uint8 [n, 3, h, w] in channels-last memory, targets int64 or None, indices int64 [n]). Targets are
            labels [n] or masks [n, h, w].
        """
        epoch, number = divmod(position, self.batches_per_epoch)
        start = number * self.global_batch_size + self.rank * self.batch_size
        indices = self.epoch_order(epoch)[start : start + self.batch_size]
        pixels = self.cached.gather(indices)
        targets = self.cached.gather_targets(indices)
        if self.augment:
            seed = (*self.seed, position, self.rank, AUGMENT)
            pixels = random_crop_flip(pixels, seed)
            if targets is not None and targets.ndim == 3:
                targets = random_crop_flip(targets[..., None], seed)[..., 0]
        images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        return images, None if targets is None else torch.from_numpy(targets), torch.from_numpy(indices)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch in order."""
        last = self._epoch
        if last is None or last[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*self.seed, epoch, ORDER])))
            order = rng.permutation(len(self.cached)) if self.times is None else sample_with_repeats(self.times, rng)
            if len(order) < self.global_batch_size:
                order = np.resize(order, self.global_batch_size)
            self._epoch = last = (epoch, order)
        return last[1]


def epoch_length(times: np.ndarray) -> int:
    """Number of images in an epoch that contains each image `times` times on average."""
    return max(1, round(float(times.sum())))


def sample_with_repeats(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices [epoch_length(times)] in random order; i occurs ⌊times[i]⌋ or ⌈times[i]⌉ times, times[i] on average.

    Systematic sampling: every image is a segment of a line, as long as its count. The points of a grid of step 1 with a
    random offset choose the images, which makes an epoch as even as possible.
    """
    mixed = rng.permutation(np.flatnonzero(times))
    ends = np.floor(np.cumsum(times[mixed]) + rng.random()).clip(max=epoch_length(times)).astype(np.int64)
    ends[-1] = epoch_length(times)  # independent of rounding in the sum
    return rng.permutation(np.repeat(mixed, np.diff(ends, prepend=0)))


def iter_batches(cached: ImageCache, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order, for evaluation.

    Yields:
        (images uint8 [n, 3, h, w], targets int64): labels [n], -1 without labels, or masks [n, h, w].
    """
    for start in range(0, len(cached), batch_size):
        indices = np.arange(start, min(start + batch_size, len(cached)))
        targets = cached.gather_targets(indices)
        images = torch.from_numpy(cached.gather(indices)).permute(0, 3, 1, 2)
        yield images, torch.from_numpy(targets) if targets is not None else torch.full((len(indices),), -1)


def random_crop_flip(pixels: np.ndarray, seed: tuple[int, ...], pad: int = 4) -> np.ndarray:
    """Random crops of the reflection-padded images, half of them flipped; a pure function of `seed`.

    Args:
        pixels: [n, h, w, c].
        seed: The same seed moves masks as it moves their images.
        pad: Largest shift in pixels.

    Returns:
        [n, h, w, c].
    """
    n, height, width, _ = pixels.shape
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    shift = rng.integers(0, 2 * pad + 1, size=(2, n))
    is_flipped = rng.random(n) < 0.5
    mode = "reflect" if min(height, width) > pad else "edge"
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    cropped = np.empty_like(pixels)
    for i, (top, left) in enumerate(shift.T):  # slices copy whole rows, 20 times faster than gathering pixels
        crop = padded[i, top : top + height, left : left + width]
        cropped[i] = crop[:, ::-1] if is_flipped[i] else crop
    return cropped
