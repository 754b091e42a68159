"""Augmentations: geometry, gradients, ranges, and use of the global random state alone."""

from __future__ import annotations

import pytest
import torch

from compress.engine import augmentation
from compress.engine.augmentation import (
    LIGHT,
    color_jitter,
    crop_region_flip,
    random_crop_flip,
    random_resized_crop,
    random_roll,
)

VIEWS = pytest.mark.parametrize(
    "view", [random_crop_flip, random_resized_crop, lambda x: random_roll(x, 2)], ids=["crop", "part", "roll"]
)


def images(n=6, size=12):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@VIEWS
def test_view_keeps_shape_range_and_seed(view):
    x = images()
    state = torch.get_rng_state()
    one, other = view(x), view(x)
    torch.set_rng_state(state)
    assert torch.equal(view(x), one)
    assert not torch.equal(one, other)
    assert one.shape == x.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert one.dtype == torch.float32


@VIEWS
def test_view_passes_gradients(view):
    x = images().requires_grad_()
    view(x).square().sum().backward()
    assert x.grad is not None
    assert all(gradient.abs().sum() > 0 for gradient in x.grad)


@VIEWS
def test_view_keeps_constant_images(view):
    x = torch.full((3, 3, 9, 9), 0.4)
    assert torch.allclose(view(x), x)


@VIEWS
def test_view_runs_on_meta_device(view):
    assert view(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 3, 8, 8)


def test_crop_flip_shifts_whole_pixels():
    """Each view is one of the 2 * 9 * 9 crops of the padded image."""
    x = images(n=20)
    seen = random_crop_flip(x)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    shifts = set()
    for image, whole, view in zip(x, padded, seen, strict=True):
        matches = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if fits(whole[:, top : top + 12, left : left + 12], view.flip(2) if mirrored else view)
        ]
        assert len(matches) == 1
        shifts |= set(matches)
        assert image.shape == view.shape
    assert len(shifts) > 15
    assert {mirrored for *_, mirrored in shifts} == {False, True}


def fits(crop, view):
    """Compare a crop of the zero-padded image with the view, outside the padding."""
    inside = crop != 0
    return torch.allclose(crop[inside], view[inside], atol=1e-4)


def test_crop_border_is_reflected():
    x = images(n=1)
    torch.manual_seed(0)
    for _ in range(8):
        shifted = crop_region_flip(x, torch.ones(1, 2), torch.tensor([[2 * 3 / 12, 0.0]]))  # three pixels to the left
        shifted = shifted if torch.allclose(shifted[..., 0], x[..., 3], atol=1e-4) else shifted.flip(3)
        assert torch.allclose(shifted[..., :9], x[..., 3:], atol=1e-4)
        assert torch.allclose(shifted[..., 9:], x[..., 9:].flip(3), atol=1e-4)


def test_resized_crop_area_and_ratio():
    """The pixels of this image are their coordinates, so corners of a view show its region."""
    side = 64
    across = ((torch.arange(side) + 0.5) / side).expand(side, side)
    x = torch.stack([across, across.T, torch.zeros(side, side)]).expand(400, 3, side, side)
    torch.manual_seed(0)
    seen = random_resized_crop(x)
    width = (seen[:, 0, 0, -1] - seen[:, 0, 0, 0]).abs() * side / (side - 1)
    height = (seen[:, 1, -1, 0] - seen[:, 1, 0, 0]).abs() * side / (side - 1)
    area, shape = width * height, width / height
    assert 0.24 < area.min() < 0.3
    assert area.max() <= 1.0001
    assert 0.74 < shape.min() < 0.8
    assert 1.25 < shape.max() < 1.34
    mirrored = (seen[:, 0, 0, -1] < seen[:, 0, 0, 0]).double().mean()
    assert 0.4 < mirrored < 0.6
    assert (seen[:, 1, -1, 0] > seen[:, 1, 0, 0]).all()


def test_resized_crop_of_full_image():
    x = images()
    seen = random_resized_crop(x, min_area=1.0, max_ratio=1.0)
    for image, view in zip(x, seen, strict=True):
        assert torch.allclose(view, image, atol=1e-4) or torch.allclose(view, image.flip(2), atol=1e-4)


def test_random_roll_moves_batch_together():
    x = images(n=3)
    seen = {shift_of(random_roll(x, 2), x) for _ in range(200)}
    assert None not in seen
    assert len(seen) == 5 * 5 * 2
    assert shift_of(random_roll(x, 0), x) in {(0, 0, False), (0, 0, True)}


def shift_of(view, x):
    """Return (rows down, columns right, is flipped) if all images moved equally, else None."""
    for down in range(-2, 3):
        for right in range(-2, 3):
            rolled = x.roll((down, right), (2, 3))
            if torch.equal(view, rolled) or torch.equal(view, rolled.flip(3)):
                return down, right, not torch.equal(view, rolled)
    return None


# Color jitter.


@pytest.fixture
def no_light(monkeypatch) -> None:
    """Channel mixing and flips only."""
    monkeypatch.setattr(augmentation, "LIGHT", 0.0)


def test_color_jitter_mixes_channels(no_light):
    torch.manual_seed(0)
    x = torch.rand(64, 3, 8, 8)
    y = color_jitter(x)
    assert y.shape == x.shape
    assert (y.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()
    assert (y.amin((1, 2, 3)) >= x.amin((1, 2, 3)) - 1e-6).all()
    gray = torch.rand(16, 1, 8, 8).expand(-1, 3, -1, -1)
    result = color_jitter(gray)
    assert torch.allclose(result, result[:, :1].expand_as(result), atol=1e-6)


def test_color_jitter_one_mix_per_image(no_light):
    torch.manual_seed(1)
    x = torch.rand(400, 3, 4, 6)
    y = color_jitter(x)
    mirrored = 0
    for old, new in zip(x.double(), y.double(), strict=True):
        errors = []
        for way in (old, old.flip(2)):
            flat = way.flatten(1).T  # pixels by channels: solve for the 3x3 mixture
            mix = torch.linalg.lstsq(flat, new.flatten(1).T).solution
            errors.append(float((flat @ mix - new.flatten(1).T).abs().max()))
        assert min(errors) < 1e-5
        mirrored += errors[1] < errors[0]
    assert 150 < mirrored < 250


def test_color_jitter_keeps_colorfulness(no_light):
    torch.manual_seed(2)
    red = torch.zeros(3000, 3, 1, 1)
    red[:, 0] = 1
    result = color_jitter(red)[:, :, 0, 0]
    assert torch.allclose(result.mean(0), torch.full((3,), 1 / 3), atol=0.03)
    assert float((result.amax(1) - result.amin(1)).mean()) > 0.5


def test_color_jitter_is_linear_per_channel():
    torch.manual_seed(4)
    ramp = torch.linspace(0.3, 0.7, 9).expand(2000, 3, 1, 9)  # gray, so mixing changes nothing
    result = color_jitter(ramp)
    assert result.amin() >= 0
    assert result.amax() <= 1
    free = (result.amin((1, 2, 3)) > 0) & (result.amax((1, 2, 3)) < 1)
    steps = result[free].diff(dim=3)
    assert torch.allclose(steps, steps[..., :1].expand_as(steps), atol=1e-5)  # linear where nothing was clamped
    slopes = (steps[..., 0] / (0.4 / 8)).abs()
    assert slopes.amin() >= 1 - LIGHT - 1e-4
    assert slopes.amax() <= 1 + LIGHT + 1e-4
    middles = result[free][..., 4] - 0.5
    assert middles.abs().amax() <= LIGHT / 2 + 1e-5
    assert slopes.std() > 0.2
    assert middles.std() > 0.1


def test_color_jitter_follows_random_state():
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(3)
    first = color_jitter(x)
    torch.manual_seed(3)
    assert torch.equal(color_jitter(x), first)
    assert not torch.equal(color_jitter(x), first)
