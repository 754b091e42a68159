"""Losses between layers, and those of the data-free methods on logits, against the formulas in numpy's float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compress.losses import features, logits

RNG = np.random.default_rng(0)
MAPS = [(1, 1, 2, 2), (5, 7, 4, 4), (8, 16, 8, 6)]
ROWS = [(1, 2), (16, 100), (3, 5, 36)]


def pair(shape, scale=3.0):
    """(numpy float64, torch float32) with the same values."""
    values = (RNG.standard_normal(shape) * scale).astype(np.float32)
    return values.astype(np.float64), torch.from_numpy(values)


def attended(maps):
    q = (maps**2).mean(1).reshape(len(maps), -1)
    return q / np.sqrt((q**2).sum(1, keepdims=True))


@pytest.mark.parametrize("shape", MAPS)
def test_hint_is_formula(shape):
    (s, s32), (t, t32) = pair(shape), pair(shape)
    assert features.hint(s32, t32).item() == pytest.approx(((s - t) ** 2).mean(), rel=1e-5)
    assert features.hint(t32, t32).item() == 0


@pytest.mark.parametrize("shape", MAPS)
def test_attention_is_formula(shape):
    n, c, h, w = shape
    (s, s32), (t, t32) = pair(shape), pair((n, c + 3, h, w))
    assert features.attention(s32, t32).item() == pytest.approx(((attended(s) - attended(t)) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("shape", MAPS)
def test_attention_equals_torch_mse(shape):
    s, t = torch.randn(shape), torch.randn(shape)
    one, other = (F.normalize(maps.pow(2).mean(1).flatten(1)) for maps in (s, t))
    assert features.attention(s, t).item() == pytest.approx(F.mse_loss(one, other).item(), rel=1e-5)


def test_attention_ignores_scale_and_channels():
    maps = torch.randn(4, 6, 5, 5)
    assert features.attention(3 * maps, maps).item() == pytest.approx(0, abs=1e-12)
    assert features.attention(-maps.flip(1), maps).item() == pytest.approx(0, abs=1e-12)
    assert features.attention(maps.flip(2), maps).item() > 1e-4


def test_attention_bounds():
    s, t = torch.zeros(3, 2, 4, 5), torch.zeros(3, 2, 4, 5)
    s[:, :, 0, 0], t[:, :, 3, 4] = 7, -0.1
    assert features.attention(s, t).item() == pytest.approx(2 / 20, rel=1e-6)


def test_zero_maps_are_finite():
    s = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = features.attention(s, torch.randn(2, 3, 4, 4))
    (gradient,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(1, 1), (6, 128)])
def test_activation_is_formula(shape):
    f, f32 = pair(shape)
    assert features.activation(f32).item() == pytest.approx(np.abs(f).mean(), rel=1e-5)


@pytest.mark.parametrize("shape", ROWS)
def test_l1_is_formula(shape):
    (s, s32), (t, t32) = pair(shape), pair(shape)
    assert logits.l1(s32, t32).item() == pytest.approx(np.abs(t - s).mean(), rel=1e-5)
    assert logits.l1(t32 + 2, t32).item() == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("shape", ROWS)
def test_one_hot_equals_torch_cross_entropy(shape):
    t, t32 = pair(shape)
    e = np.exp(t - t.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    assert logits.one_hot(t32).item() == pytest.approx(-np.log(p.max(1)).mean(), rel=1e-5)
    assert logits.one_hot(t32).item() == pytest.approx(F.cross_entropy(t32, t32.argmax(1)).item(), rel=1e-5)


def test_one_hot_bounds():
    assert logits.one_hot(torch.zeros(8, 10)).item() == pytest.approx(math.log(10), rel=1e-6)
    assert logits.one_hot(torch.eye(10) * 1e3).item() == 0


def test_one_hot_gradient_sign():
    t = torch.tensor([[1.0, 0.5, -1.0], [0.0, 0.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(logits.one_hot(t), t)
    expected = (t.softmax(1) - F.one_hot(t.argmax(1), 3)).detach() / 2
    assert torch.allclose(gradient, expected, atol=1e-6)
