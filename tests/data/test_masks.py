"""Masks are transformed like their images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from compress.data import open_images
from compress.data.batches import Batches, iter_batches
from compress.data.cache import ImageCache, build_cache
from compress.data.dataset import ImageSet, UnreadableImageError
from compress.errors import CompressError


def painted(sizes: list[tuple[int, int]], classes: int = 6, names: bool = True) -> ImageSet:
    """Images with 40 times their mask in the red channel."""
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.integers(0, classes, (-(-h // 8), -(-w // 8))), np.ones((8, 8)))[:h, :w] for w, h in sizes]
    image_dir = [np.stack([40 * m, 0 * m, 0 * m], 2).astype(np.uint8) for m in masks]
    return ImageSet(
        "painted", [f"picture {i}" for i in range(len(sizes))], lambda i: Image.fromarray(image_dir[i]), "1",
        class_names=[str(c) for c in range(classes)] if names else None, open_mask=lambda i: masks[i].astype(np.uint8),
    )  # fmt: skip


def cache_of(images: ImageSet, folder, **settings) -> ImageCache:
    return build_cache(images, image_size=settings.pop("image_size", (32, 32)), folder=folder, **settings)


@pytest.mark.parametrize("settings", [{}, {"views": 9, "seed": 3}, {"resize": 40}])
def test_mask_is_cropped_like_its_image(tmp_path, settings):
    cached = cache_of(painted([(80, 64), (64, 96), (32, 32)]), tmp_path, **settings)
    assert cached.masks is not None
    assert cached.masks.shape == cached.pixels.shape[:3]
    classes_seen = cached.pixels[..., 0].astype(int) / 40  # smoothed at the edges between classes, exact within them
    inner = np.abs(classes_seen - classes_seen.round()) < 0.01
    assert inner.mean() > 0.4
    assert (classes_seen.round()[inner] == cached.masks[inner]).mean() > 0.97
    assert set(np.unique(cached.masks)) <= set(range(6))


def test_augmentation_moves_masks_too(tmp_path):
    batches = Batches(cache_of(painted([(32, 32)] * 4), tmp_path), 4, seed=(1,), augment=True)
    plain = Batches(cache_of(painted([(32, 32)] * 4), tmp_path), 4, seed=(1,))
    for position in range(5):
        pixels, targets, _ = batches.batch_at(position)
        assert targets is not None
        assert (pixels[:, 0].long() == 40 * targets).all()
    assert (plain.batch_at(0)[1] != batches.batch_at(0)[1]).any()


def test_full_images_pad_masks_with_ignore(tmp_path):
    cached = cache_of(painted([(64, 32), (32, 48)]), tmp_path, image_size=(48, 64), resize=32, full_image=True)
    assert cached.masks is not None
    wide, high = cached.masks
    assert (wide[32:] == 255).all()
    assert (wide[:32] != 255).all()
    assert (high[:, 32:] == 255).all()
    assert (high[:, :32] != 255).all()
    assert (cached.pixels[0, 32:] == cached.pixels[0, 31]).all()  # the edge goes on


def test_iter_batches_yields_masks(tmp_path):
    cached = cache_of(painted([(32, 32)] * 5), tmp_path)
    batches = list(iter_batches(cached, 2))
    assert [tuple(targets.shape) for _, targets in batches] == [(2, 32, 32), (2, 32, 32), (1, 32, 32)]
    assert cached.count_classes() == 6
    assert cache_of(painted([(32, 32)] * 5, classes=4, names=False), tmp_path).count_classes() == 4


def test_masks_are_palette_indices(tmp_path):
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) % 3
    image = Image.fromarray(values)
    palette = Image.new("P", (4, 4))
    palette.putdata(values.flatten().tolist())
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "palette.png")
    image.save(tmp_path / "gray.png")
    for name in ("palette.png", "gray.png"):
        assert (one(tmp_path / name).read_mask(0) == values).all()
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(UnreadableImageError, match="RGB"):
        one(tmp_path / "colour.png").read_mask(0)


def one(mask, size: tuple[int, int] = (4, 4)) -> ImageSet:
    names = ["a", "b", "c"]
    return ImageSet(
        "one", ["first"], lambda i: Image.new("RGB", size), "1", class_names=names, open_mask=lambda i: mask
    )


def test_mask_with_unknown_value_fails(tmp_path):
    with pytest.raises(CompressError, match=r"first .*7"):
        cache_of(one(np.full((4, 4), 7, np.uint8)), tmp_path)
    assert cache_of(one(np.full((4, 4), 255, np.uint8)), tmp_path).count_classes() == 3


def test_mask_of_other_size_fails(tmp_path):
    with pytest.raises(CompressError, match=r"first.*5x4.*4x4"):
        cache_of(one(np.zeros((4, 5), np.uint8)), tmp_path)


def test_without_labels_drops_masks():
    assert painted([(8, 8)]).without_labels().open_mask is None


def test_sizes_respect_orientation(tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "lying.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert sorted(open_images(str(tmp_path)).iter_sizes()) == [(20, 30), (30, 20)]


# Embedded scenes.


def test_fashion_scenes_are_reproducible():
    train, val = (open_images("embedded/fashion-scenes", split=split, labeled=True) for split in ("train", "val"))
    assert (len(train), len(val)) == (10_000, 1_000)
    assert train.class_names is not None
    assert train.class_names[0] == "background"
    assert len(train.class_names) == 11
    again = open_images("embedded/fashion-scenes", split="train", labeled=True)
    assert np.array_equal(np.asarray(train.read_image(17)), np.asarray(again.read_image(17)))
    assert np.array_equal(train.read_mask(17), again.read_mask(17))
    assert not np.array_equal(np.asarray(train.read_image(17)), np.asarray(val.read_image(17)))
    masks = np.stack([train.read_mask(i) for i in range(200)])
    shares = np.bincount(masks.ravel(), minlength=11) / masks.size
    assert 0.5 < shares[0] < 0.9
    assert shares[1:].min() > 0.005
