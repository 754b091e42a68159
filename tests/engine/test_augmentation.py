"""Views of images: what comes where, that gradients pass, and that they draw from the global random state alone."""

from __future__ import annotations

import pytest
import torch

from compress.engine.views import crop_flip, jittered, resized_crop, warped

VIEWS = pytest.mark.parametrize(
    "view", [crop_flip, resized_crop, lambda x: jittered(x, 2)], ids=["crop", "part", "roll"]
)


def pictures(n=6, size=12):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@VIEWS
def test_a_view_has_the_size_and_the_range_of_the_image_and_repeats_with_the_random_state(view):
    x = pictures()
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
def test_gradients_pass_to_the_image(view):
    x = pictures().requires_grad_()
    view(x).square().sum().backward()
    assert x.grad is not None
    assert all(gradient.abs().sum() > 0 for gradient in x.grad)


@VIEWS
def test_plain_images_stay_plain(view):
    x = torch.full((3, 3, 9, 9), 0.4)
    assert torch.allclose(view(x), x)


@VIEWS
def test_networks_without_numbers_can_be_played_with_it(view):
    assert view(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 3, 8, 8)


def test_every_image_is_cut_by_itself_to_a_whole_number_of_pixels():
    """Each view is one of the 2 · 9 · 9 that a reflected border of four pixels allows, found by looking for it."""
    x = pictures(n=20)
    seen = crop_flip(x)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))  # the middle of it tells where a view lies; the border is cut off
    found = set()
    for image, whole, view in zip(x, padded, seen, strict=True):
        matches = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if fits(whole[:, top : top + 12, left : left + 12], view.flip(2) if mirrored else view)
        ]
        assert len(matches) == 1, "one place, and one only"
        found |= set(matches)
        assert image.shape == view.shape
    assert len(found) > 15
    assert {mirrored for *_, mirrored in found} == {False, True}


def fits(crop, view):
    """Whether a crop of the image padded with zeros is the view, where it is not padding."""
    inside = crop != 0
    return torch.allclose(crop[inside], view[inside], atol=1e-4)


def test_what_comes_in_over_the_border_is_the_reflection():
    x = pictures(n=1)
    torch.manual_seed(0)
    for _ in range(8):
        shifted = warped(x, torch.ones(1, 2), torch.tensor([[2 * 3 / 12, 0.0]]))  # three pixels to the left
        shifted = shifted if torch.allclose(shifted[..., 0], x[..., 3], atol=1e-4) else shifted.flip(3)
        assert torch.allclose(shifted[..., :9], x[..., 3:], atol=1e-4)
        assert torch.allclose(shifted[..., 9:], x[..., 9:].flip(3), atol=1e-4)


def test_a_part_has_the_area_and_the_shape_asked_for_and_lies_within_the_image():
    """On an image that says of every pixel where it is, the first and last pixels of a view say what part it is."""
    side = 64
    across = ((torch.arange(side) + 0.5) / side).expand(side, side)
    x = torch.stack([across, across.T, torch.zeros(side, side)]).expand(400, 3, side, side)
    torch.manual_seed(0)
    seen = resized_crop(x)
    width = (seen[:, 0, 0, -1] - seen[:, 0, 0, 0]).abs() * side / (side - 1)
    height = (seen[:, 1, -1, 0] - seen[:, 1, 0, 0]).abs() * side / (side - 1)
    area, shape = width * height, width / height
    assert 0.24 < area.min() < 0.3
    assert area.max() <= 1.0001
    assert 0.74 < shape.min() < 0.8
    assert 1.25 < shape.max() < 1.34
    mirrored = (seen[:, 0, 0, -1] < seen[:, 0, 0, 0]).double().mean()
    assert 0.4 < mirrored < 0.6
    assert (seen[:, 1, -1, 0] > seen[:, 1, 0, 0]).all(), "never upside down"


def test_a_whole_image_seen_whole_is_itself_or_its_mirror():
    x = pictures()
    seen = resized_crop(x, smallest=1.0, longest=1.0)
    for image, view in zip(x, seen, strict=True):
        assert torch.allclose(view, image, atol=1e-4) or torch.allclose(view, image.flip(2), atol=1e-4)


def test_jitter_rolls_all_images_alike():
    x = pictures(n=3)
    seen = {fingerprint(jittered(x, 2), x) for _ in range(200)}
    assert None not in seen
    assert len(seen) == 5 * 5 * 2
    assert fingerprint(jittered(x, 0), x) in {(0, 0, False), (0, 0, True)}


def fingerprint(view, x):
    """(rows down, columns to the right, whether mirrored) by which all images were moved; None where not alike."""
    for down in range(-2, 3):
        for right in range(-2, 3):
            rolled = x.roll((down, right), (2, 3))
            if torch.equal(view, rolled) or torch.equal(view, rolled.flip(3)):
                return down, right, not torch.equal(view, rolled)
    return None
