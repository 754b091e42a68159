"""Recoloured images keep their shapes and their range, and change with the random state alone."""

from __future__ import annotations

import pytest
import torch

from compress.engine import recolour as module
from compress.engine.recolour import LIGHT, recolour


@pytest.fixture
def unlit(monkeypatch) -> None:
    """The mixture and the mirrors alone."""
    monkeypatch.setattr(module, "LIGHT", 0.0)


def test_every_channel_becomes_a_mean_of_the_old_ones(unlit):
    torch.manual_seed(0)
    x = torch.rand(64, 3, 8, 8)
    y = recolour(x)
    assert y.shape == x.shape
    assert (y.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()
    assert (y.amin((1, 2, 3)) >= x.amin((1, 2, 3)) - 1e-6).all()
    grey = torch.rand(16, 1, 8, 8).expand(-1, 3, -1, -1)
    found = recolour(grey)
    assert torch.allclose(found, found[:, :1].expand_as(found), atol=1e-6)  # what has no colour gets none


def test_one_mixture_an_image_and_half_of_them_mirrored(unlit):
    torch.manual_seed(1)
    x = torch.rand(400, 3, 4, 6)
    y = recolour(x)
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


def test_colours_are_exchanged_rather_than_lost(unlit):
    torch.manual_seed(2)
    red = torch.zeros(3000, 3, 1, 1)
    red[:, 0] = 1
    found = recolour(red)[:, :, 0, 0]
    assert torch.allclose(found.mean(0), torch.full((3,), 1 / 3), atol=0.03)  # no channel is preferred
    assert float((found.amax(1) - found.amin(1)).mean()) > 0.5


def test_each_channel_is_lit_by_one_line_and_stays_in_range():
    torch.manual_seed(4)
    ramp = torch.linspace(0.3, 0.7, 9).expand(2000, 3, 1, 9)  # grey: mixing leaves it alone, mirrors turn it
    found = recolour(ramp)
    assert found.amin() >= 0
    assert found.amax() <= 1
    free = (found.amin((1, 2, 3)) > 0) & (found.amax((1, 2, 3)) < 1)
    steps = found[free].diff(dim=3)
    assert torch.allclose(steps, steps[..., :1].expand_as(steps), atol=1e-5)  # a line, where nothing was cut off
    slopes = (steps[..., 0] / (0.4 / 8)).abs()
    assert slopes.amin() >= 1 - LIGHT - 1e-4
    assert slopes.amax() <= 1 + LIGHT + 1e-4
    middles = found[free][..., 4] - 0.5
    assert middles.abs().amax() <= LIGHT / 2 + 1e-5
    assert slopes.std() > 0.2
    assert middles.std() > 0.1


def test_the_random_state_decides():
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(3)
    first = recolour(x)
    torch.manual_seed(3)
    assert torch.equal(recolour(x), first)
    assert not torch.equal(recolour(x), first)
