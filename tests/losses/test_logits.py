"""Losses on logits against the formulas in numpy's float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compress.losses import logits

RNG = np.random.default_rng(0)
SHAPES = [(1, 2), (7, 5), (16, 100)]


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def pair(shape, scale=3.0):
    """(numpy float64, torch float32) logits with the same values."""
    values = (RNG.standard_normal(shape) * scale).astype(np.float32)
    return values.astype(np.float64), torch.from_numpy(values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_kl_is_formula(shape, T):
    (s, s32), (t, t32) = pair(shape), pair(shape)
    p, q = softmax(t / T), softmax(s / T)
    assert logits.kl(s32, t32, T).item() == pytest.approx(T * T * (p * np.log(p / q)).sum(1).mean(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_is_formula(shape):
    t, t32 = pair(shape)
    p = softmax(t)
    assert logits.entropy(t32).item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_marginal_entropy_is_formula(shape):
    t, t32 = pair(shape)
    p = softmax(t).mean(0)
    assert logits.marginal_entropy(t32).item() == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)


def test_kl_direction_is_teacher_first():
    """KL(teacher ‖ student): a sure teacher and an undecided student cost ln C; the other way round costs more."""
    sure, undecided = torch.tensor([[20.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert logits.kl(undecided, sure).item() == pytest.approx(math.log(4), rel=1e-4)
    assert logits.kl(sure, undecided).item() > 10


def test_kl_of_equal_logits_is_zero():
    t = torch.randn(6, 9)
    assert logits.kl(t, t).item() == pytest.approx(0, abs=1e-6)
    assert logits.kl(t + 5, t).item() == pytest.approx(0, abs=1e-5)


def test_kl_gradient_independent_of_temperature():
    """T² undoes the 1/T² of the gradient: at high T it tends to (s − t) / C of centred logits, whatever T is."""
    t, sizes = torch.randn(4, 5), []
    for T in (50.0, 100.0):
        s = torch.zeros(4, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(logits.kl(s, t, T), s)
        sizes.append(gradient)
    assert torch.allclose(sizes[0], sizes[1], atol=2e-3)
    centred = t - t.mean(1, keepdim=True)
    assert torch.allclose(sizes[1], -centred / 5 / 4, atol=2e-3)


def test_kl_gradient_is_probability_difference():
    s, t = torch.randn(6, 9, requires_grad=True), torch.randn(6, 9)
    (gradient,) = torch.autograd.grad(logits.kl(s, t), s)
    assert torch.allclose(gradient, (s.softmax(1) - t.softmax(1)).detach() / 6, atol=1e-6)


def test_entropy_bounds():
    undecided = torch.zeros(8, 10)
    assert logits.entropy(undecided).item() == pytest.approx(math.log(10), rel=1e-6)
    assert logits.marginal_entropy(undecided).item() == pytest.approx(math.log(10), rel=1e-6)
    sure = torch.eye(10) * 1e3
    assert logits.entropy(sure).item() == 0
    assert logits.marginal_entropy(sure).item() == pytest.approx(math.log(10), rel=1e-6)  # each class once: balanced
    assert logits.marginal_entropy(sure[:1].repeat(4, 1)).item() == pytest.approx(0, abs=1e-6)


def test_marginal_entropy_gradient_of_unused_class():
    """At a mean probability of 0 the slope of −p log p is infinite; what is left of it must point upwards, or be 0."""
    rows = torch.tensor([[2.0, 0.0, -60.0]] * 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(logits.marginal_entropy(rows), rows)
    assert (gradient[:, 2] >= 0).all()
    assert (gradient[:, 1] > 0).all()


@pytest.mark.parametrize("loss", [logits.entropy, lambda t: logits.kl(t.flip(0), t)])
def test_losses_average_over_rows(loss):
    """An answer [n, c, h, w] as rows [n·h·w, c] gives the mean over images and pixels, not a sum over pixels."""
    dense = torch.randn(3, 5, 4, 4)
    rows = dense.movedim(1, -1).reshape(-1, 5)
    one = torch.stack([loss(rows[None, i].repeat(2, 1)) for i in range(len(rows))]).mean()
    if loss is logits.entropy:
        assert loss(rows).item() == pytest.approx(one.item(), rel=1e-5)
    assert loss(torch.cat([rows, rows])).item() == pytest.approx(loss(rows).item(), rel=1e-5)
