"""Batches are a pure function of (seed, position, rank)."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from compress.data.batches import Batches, iter_batches, random_crop_flip
from compress.data.cache import ImageCache


def numbered(n: int, *, labels: bool = True) -> ImageCache:
    """Images with their index in every pixel."""
    pixels = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1).repeat(6, 1).repeat(8, 2).repeat(3, 3)
    return ImageCache("numbered", pixels, np.arange(n) % 5 if labels else None, None, np.arange(n), [], "numbered")


def indices(batches: Batches, positions) -> list[list[int]]:
    return [batches.batch_at(position)[2].tolist() for position in positions]


def test_batch_fields_belong_together():
    images, labels, chosen = Batches(numbered(50), 16, seed=(3, 1)).batch_at(7)
    assert (images.shape, images.dtype) == ((16, 3, 6, 8), torch.uint8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels is not None
    assert images[:, 0, 0, 0].tolist() == chosen.tolist()
    assert labels.tolist() == [i % 5 for i in chosen.tolist()]
    assert Batches(numbered(50, labels=False), 16, seed=(0,)).batch_at(0)[1] is None


def test_batch_depends_on_position_only():
    positions = list(range(40))
    first = indices(Batches(numbered(50), 16, seed=(3,)), positions)
    shuffled = positions.copy()
    random.Random(0).shuffle(shuffled)
    batches = Batches(numbered(50), 16, seed=(3,))
    result = {}
    for position in shuffled:
        np.random.seed(position)
        torch.manual_seed(position)
        result[position] = batches.batch_at(position)[2].tolist()
    assert [result[position] for position in positions] == first


def test_batches_are_equal_across_threads():
    batches = Batches(numbered(50), 16, seed=(3,), augment=True)
    alone = [batches.batch_at(position)[0] for position in range(60)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda position: batches.batch_at(position)[0], range(60)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_epochs_are_permutations():
    batches = Batches(numbered(50), 16, seed=(0,))
    epochs = [[i for batch in indices(batches, range(3 * e, 3 * e + 3)) for i in batch] for e in range(5)]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert set().union(*epochs) == set(range(50))  # what one epoch drops, another shows


def test_seeds_change_the_order():
    orders = [indices(Batches(numbered(50), 50, seed=seed), [0])[0] for seed in ((0,), (1,), (0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_do_not_overlap(world):
    ranks = [Batches(numbered(64), 4, seed=(1,), rank=rank, world=world) for rank in range(world)]
    for epoch in range(2):
        positions = range(epoch * ranks[0].batches_per_epoch, (epoch + 1) * ranks[0].batches_per_epoch)
        shown = [i for rank in ranks for batch in indices(rank, positions) for i in batch]
        assert len(shown) == len(set(shown)) == 64 // (4 * world) * 4 * world


def test_ranks_form_the_global_batch():
    whole = indices(Batches(numbered(64), 8, seed=(1,)), range(20))
    halves = [indices(Batches(numbered(64), 4, seed=(1,), rank=rank, world=2), range(20)) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_small_set_fills_a_batch():
    batches = Batches(numbered(5), 12, seed=(1,))
    for batch in indices(batches, range(3)):
        assert sorted(np.bincount(batch).tolist()) == [2, 2, 2, 3, 3]
    assert indices(batches, [0]) != indices(batches, [1])


def test_subset_limits_the_batches():
    chosen = np.array([40, 3, 17, 8])
    batches = Batches(numbered(50).subset(chosen), 2, seed=(0,))
    images = torch.cat([batches.batch_at(position)[0] for position in range(2)])
    assert sorted(images[:, 0, 0, 0].tolist()) == sorted(chosen.tolist())


def test_order_is_stable_across_versions():
    """Recorded: another order would break the resume of old checkpoints."""
    assert indices(Batches(numbered(10), 5, seed=(0, 1)), [0, 1, 2]) == [
        [5, 8, 9, 2, 7],
        [4, 6, 3, 1, 0],
        [5, 2, 6, 9, 8],
    ]


# Repeats.


def shown(batches: Batches, epoch: int) -> np.ndarray:
    """Count of each image in an epoch."""
    positions = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    return np.bincount(np.concatenate(indices(batches, positions)), minlength=len(batches.cached))


def test_repeats_are_rounded_counts():
    times = np.random.default_rng(0).random(50) * 4
    times *= 96 / times.sum()
    batches = Batches(numbered(50), 4, seed=(2,), times=times)
    assert batches.batches_per_epoch == 24
    counts = np.stack([shown(batches, epoch) for epoch in range(200)])
    assert (counts.sum(1) == 96).all()
    assert (counts >= np.floor(times)).all()
    assert (counts <= np.ceil(times)).all()
    assert np.abs(counts.mean(0) - times).max() < 0.12  # a standard error is at most 0.036


def test_repeats_of_zero_drop_images():
    times = np.array([0.0, 1, 3, 0, 2, 2, 0])
    batches = Batches(numbered(7), 2, seed=(0,), times=times)
    for epoch in range(20):
        assert shown(batches, epoch).tolist() == times.tolist()
    assert indices(batches, range(4)) != indices(batches, range(4, 8))


def test_repeats_with_fractional_sum():
    times = np.array([0.0, 0.3, 0, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0])  # 2.4
    batches = Batches(numbered(11), 1, seed=(0,), times=times)
    assert batches.batches_per_epoch == 2
    result = sum(shown(batches, epoch) for epoch in range(300))
    assert result[times == 0].tolist() == [0, 0, 0]
    assert (result[times > 0] > 40).all()


def test_ranks_share_repeated_images():
    times = np.random.default_rng(1).random(40) * 2
    times *= 48 / times.sum()
    whole = indices(Batches(numbered(40), 8, seed=(1,), times=times), range(20))
    halves = [indices(Batches(numbered(40), 4, seed=(1,), rank=r, world=2, times=times), range(20)) for r in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_repeats_fill_a_large_batch():
    batches = Batches(numbered(50), 12, seed=(1,), times=np.eye(50)[[3, 9, 40]].sum(0))
    assert {i for batch in indices(batches, range(5)) for i in batch} == {3, 9, 40}


# Evaluation.


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_iter_batches_yields_all_in_order(n, size):
    batches = list(iter_batches(numbered(n), size))
    assert [i for images, _ in batches for i in images[:, 0, 0, 0].tolist()] == list(range(n))
    assert [y for _, labels in batches for y in labels.tolist()] == [i % 5 for i in range(n)]
    assert all(len(images) == size for images, _ in batches[:-1])


def test_iter_batches_without_labels():
    ((_, labels),) = iter_batches(numbered(3, labels=False), 4)
    assert labels.tolist() == [-1, -1, -1]


# Augmentation.


def ramp(n: int = 400, height: int = 10, width: int = 12) -> np.ndarray:
    """Images with row, column and index in their channels."""
    pixels = np.zeros((n, height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(height)[None, :, None]
    pixels[..., 1] = np.arange(width)[None, None, :]
    pixels[..., 2] = np.arange(n)[:, None, None] % 256
    return pixels


def reflected(at: np.ndarray, size: int) -> np.ndarray:
    """Reflect a position at the first and last pixel."""
    at = np.abs(at)
    return np.where(at >= size, 2 * (size - 1) - at, at)


def test_random_crop_flip_shifts_reflected_images():
    pixels = ramp()
    shifts, mirrors = set(), []
    for number, image in enumerate(random_crop_flip(pixels, (1, 2), pad=4)):
        assert (image[..., 2] == number % 256).all()
        candidates = [
            (top, left, mirror)
            for top in range(-4, 5)
            for left in range(-4, 5)
            for mirror in (False, True)
            if np.array_equal(image[:, 0, 0], reflected(np.arange(10) + top, 10))
            and np.array_equal(image[0, :: -1 if mirror else 1, 1], reflected(np.arange(12) + left, 12))
        ]
        assert len(candidates) == 1
        shifts.add(candidates[0][:2])
        mirrors.append(candidates[0][2])
    assert len(shifts) > 70  # of 81
    assert 0.4 < np.mean(mirrors) < 0.6


def test_random_crop_flip_depends_on_seed():
    pixels = ramp(20)
    before = pixels.copy()
    first = random_crop_flip(pixels, (5, 6))
    np.random.seed(1)
    assert np.array_equal(random_crop_flip(pixels, (5, 6)), first)
    assert not np.array_equal(random_crop_flip(pixels, (5, 7)), first)
    assert np.array_equal(pixels, before)


def test_random_crop_flip_of_tiny_images():
    assert random_crop_flip(ramp(3, 2, 3), (0,), pad=4).shape == (3, 2, 3, 3)


def test_augmented_batches_differ():
    cached = ImageCache("same", ramp(1).repeat(64, 0), None, None, np.arange(64), [], "same")
    ranks = [Batches(cached, 8, seed=(0,), rank=rank, world=2, augment=True) for rank in range(2)]
    made = [batches.batch_at(position)[0].numpy().tobytes() for batches in ranks for position in range(8)]
    assert len(set(made)) == 16
