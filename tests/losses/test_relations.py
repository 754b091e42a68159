"""Losses between pairs and triples of images, against the formulas in numpy's float64, one entry after another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compress.losses import logits, relations

RNG = np.random.default_rng(0)
SHAPES = [(2, 3, 4), (5, 7, 3), (9, 16, 32)]  # rows, width of the student's, of the teacher's
losses = pytest.mark.parametrize("loss", [relations.distance, relations.angle])


def rows(n, width):
    """(numpy float64, torch float32) rows with the same values."""
    values = RNG.standard_normal((n, width)).astype(np.float32)
    return values.astype(np.float64), torch.from_numpy(values)


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def gap(a, b):
    return math.sqrt(((a - b) ** 2).sum())


def distances(e):
    n = len(e)
    d = [[gap(e[i], e[j]) for j in range(n)] for i in range(n)]
    mean = np.mean([x for row in d for x in row if x > 0])
    return [[x / mean for x in row] for row in d]


def cosine(e, i, j, k):
    if i in (j, k):
        return 0.0
    return float((e[j] - e[i]) @ (e[k] - e[i]) / gap(e[i], e[j]) / gap(e[i], e[k]))


@pytest.mark.parametrize(("n", "d", "e"), SHAPES)
def test_distance_is_formula(n, d, e):
    (s, s32), (t, t32) = rows(n, d), rows(n, e)
    of_s, of_t = distances(s), distances(t)
    expected = np.mean([huber(of_s[i][j] - of_t[i][j]) for i in range(n) for j in range(n)])
    assert relations.distance(s32, t32).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("n", "d", "e"), SHAPES)
def test_angle_is_formula(n, d, e):
    (s, s32), (t, t32) = rows(n, d), rows(n, e)
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    expected = np.mean([huber(cosine(s, *triple) - cosine(t, *triple)) for triple in triples])
    assert relations.angle(s32, t32).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@losses
def test_relations_invariant_to_similarity_transform(loss):
    t = torch.randn(8, 5)
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    assert loss(3 * t @ turn + 7, t).item() == pytest.approx(0, abs=1e-6)
    assert loss(-t, t).item() == pytest.approx(0, abs=1e-6)
    assert loss(torch.randn(8, 5), t).item() > 1e-3


@losses
def test_coinciding_rows_are_finite(loss):
    """A small set repeats within a batch, and a young student may call all images the same."""
    t = torch.randn(6, 4)
    for s in (t[[0, 0, 2, 2, 2, 5]].clone(), torch.zeros(6, 4)):
        s.requires_grad_(True)
        value = loss(s, t)
        (gradient,) = torch.autograd.grad(value, s)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 1e3
    assert torch.isfinite(loss(t, torch.zeros(6, 4)))


@losses
def test_relations_descend(loss):
    s, t = torch.randn(8, 3, requires_grad=True), torch.randn(8, 5)
    before = loss(s, t)
    (gradient,) = torch.autograd.grad(before, s)
    assert loss(s.detach() - 0.1 * gradient / gradient.norm(), t) < before


def test_distance_of_one_row_raises():
    with pytest.raises(ValueError, match="found 1 rows, expected two or more"):
        relations.distance(torch.randn(1, 3), torch.randn(1, 3))


def test_cosine_similarity_equals_torch():
    changed, plain = torch.randn(6, 5), torch.randn(2, 5)
    expected = F.cosine_similarity(changed.double()[:, None], plain.double()[None], dim=2)
    assert torch.allclose(relations.cosine_similarity(changed, plain).double(), expected, atol=1e-6)


def pick(scores, truth, share):
    """The rows chosen, as SSKD words it: sort by the rank of the true entry, keep all correct ones and a share."""
    rank = [sorted(row, reverse=True).index(row[y]) for row, y in zip(scores.tolist(), truth.tolist(), strict=True)]
    order = sorted(range(len(rank)), key=lambda i: rank[i])
    wrong = sum(r > 0 for r in rank)
    return set(order[: len(rank) - wrong + int(share * wrong)])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_select_rows_ranks_by_error(share, seed):
    torch.manual_seed(seed)
    scores, truth = torch.randn(21, 6), torch.randint(6, (21,))
    kept = relations.select_rows(scores, truth, share)
    assert set(kept.nonzero()[:, 0].tolist()) == pick(scores, truth, share)


def test_select_rows_fraction_bounds():
    scores, truth = torch.randn(30, 4), torch.randint(4, (30,))
    assert relations.select_rows(scores, truth, 1.0).all()
    assert torch.equal(relations.select_rows(scores, truth, 0.0), scores.argmax(1) == truth)


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_selected_kl_equals_kl_of_rows(T):
    s, t, kept = torch.randn(9, 5, requires_grad=True), torch.randn(9, 5), torch.arange(9) % 3 == 0
    value, alone = relations.selected_kl(s, t, kept, T), logits.kl(s[kept], t[kept], T)
    assert value.item() == pytest.approx(alone.item(), rel=1e-5)
    mine, theirs = (torch.autograd.grad(loss, s)[0] for loss in (value, alone))
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert (mine[~kept] == 0).all()


def test_selected_kl_of_no_rows_is_zero():
    s = torch.randn(4, 5, requires_grad=True)
    value = relations.selected_kl(s, torch.randn(4, 5), torch.zeros(4, dtype=torch.bool), 4.0)
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert torch.autograd.grad(value, s)[0].abs().max() == 0
