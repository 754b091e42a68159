"""Batches as a pure function of (seed, position, rank): no state, no worker can disturb the order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from compress.data.cache import ImageCache

Batch = tuple[Tensor, Tensor | None, Tensor]
#: what is drawn, last in its seed: a SeedSequence does not tell (1, 0) from (1,), so none may end in a zero
ORDER, AUGMENT = 1, 2


class Batches:
    """`at(position)`: the batch at a position of an endless order.

    Every epoch is a permutation drawn from (seed, epoch); the processes share it, rank r taking the r-th part of each
    global batch; what does not fill a batch is dropped. `batch_size` is one process's. A set smaller than a global
    batch is repeated within it. With `times` an epoch shows image i that often on average, rounded up or down.
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
        self.batches_per_epoch = max(
            1, (len(cached) if times is None else epoch_length(times)) // self.global_batch_size
        )
        self._epoch: tuple[int, np.ndarray] | None = None

    def batch_at(self, position: int) -> Batch:
        """(uint8 [n, 3, h, w] channels last in memory, targets int64 or None, indices int64 [n]).

        Targets are labels [n] or masks [n, h, w].
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
        held = self._epoch
        if held is None or held[0] != epoch:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*self.seed, epoch, ORDER])))
            order = rng.permutation(len(self.cached)) if self.times is None else sample_with_repeats(self.times, rng)
            if len(order) < self.global_batch_size:
                order = np.resize(order, self.global_batch_size)
            self._epoch = held = (epoch, order)
        return held[1]


def epoch_length(times: np.ndarray) -> int:
    """How many images an epoch shows in which each comes `times` times on average."""
    return max(1, round(float(times.sum())))


def sample_with_repeats(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices [drawn(times)] in random order: i comes ⌊times[i]⌋ or ⌈times[i]⌉ times, times[i] on average.

    Systematic sampling: the images lie end to end on a line, each as long as it comes often, and are taken where the
    points of a grid of step 1, laid at random, fall on them. An epoch is then as even as it can be.
    """
    mixed = rng.permutation(np.flatnonzero(times))
    ends = np.floor(np.cumsum(times[mixed]) + rng.random()).clip(max=epoch_length(times)).astype(np.int64)
    ends[-1] = epoch_length(times)  # whatever the rounding of the sum has done
    return rng.permutation(np.repeat(mixed, np.diff(ends, prepend=0)))


def iter_batches(cached: ImageCache, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, for measuring: (uint8 [n, 3, h, w], targets int64).

    Targets are labels [n], -1 where there are none, or masks [n, h, w].
    """
    for start in range(0, len(cached), batch_size):
        indices = np.arange(start, min(start + batch_size, len(cached)))
        targets = cached.gather_targets(indices)
        images = torch.from_numpy(cached.gather(indices)).permute(0, 3, 1, 2)
        yield images, torch.from_numpy(targets) if targets is not None else torch.full((len(indices),), -1)


def random_crop_flip(pixels: np.ndarray, seed: tuple[int, ...], pad: int = 4) -> np.ndarray:
    """Random crops of the reflected-padded images, half of them mirrored; [n, h, w, c] in and out.

    Every image has a shift of up to `pad` pixels of its own. Draws from `seed` alone, so that a mask goes
    where its image goes.
    """
    n, height, width, _ = pixels.shape
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    shift = rng.integers(0, 2 * pad + 1, size=(2, n))
    mirrored = rng.random(n) < 0.5
    mode = "reflect" if min(height, width) > pad else "edge"
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
    cropped = np.empty_like(pixels)
    for i, (top, left) in enumerate(shift.T):  # slices copy whole rows: twenty times a gather of pixels
        crop = padded[i, top : top + height, left : left + width]
        cropped[i] = crop[:, ::-1] if mirrored[i] else crop
    return cropped


# # MERGED DOC """Augmentation of a whole batch at once, a pure function of its seed."""
#
