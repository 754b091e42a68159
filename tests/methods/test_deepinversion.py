"""DeepInversion against the published step in float64."""

from __future__ import annotations

import math

import pool_reference
import pytest
import tiny
import torch
import torch.nn.functional as F
from generator_reference import create_method
from tiny import tiny_method, tiny_run
from torch import Tensor, nn
from torch.optim import Adam

from compress.engine.trainer import train
from compress.losses import inversion


def divergence(s: Tensor, t: Tensor) -> Tensor:
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2


def synthesize(reference: pool_reference.PoolReference) -> tuple[float, Tensor, Tensor]:
    """Pixels are optimized in the teacher's units and clamped to valid images after every iteration."""
    m, normalize = reference.m, reference.T.normalize
    x = torch.randn(m.images_per_synthesis, 3, tiny.SIZE, tiny.SIZE).double().requires_grad_()
    y = torch.randint(tiny.CLASSES, (m.images_per_synthesis,))
    optimizer = Adam([x], lr=m.lr_x, betas=(0.5, 0.99))
    lowest, best = math.inf, x
    for _ in range(m.iterations):
        most = int(m.jitter * tiny.SIZE)
        down, right = torch.randint(-most, most + 1, (2,)).tolist()
        seen = x.roll((down, right), (2, 3))
        seen = seen.flip(3) if torch.rand(()) < 0.5 else seen
        t, inside = pool_reference.forward_with_bn_inputs(reference.T.body, seen)
        reference.S.eval()
        s = reference.S.body(seen)
        reference.S.train()
        four = [
            x[:, :, :, :-1] - x[:, :, :, 1:], x[:, :, :-1] - x[:, :, 1:],
            x[:, :, 1:, :-1] - x[:, :, :-1, 1:], x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
        ]  # fmt: skip
        loss = (
            m.cross_entropy * F.cross_entropy(t, y)
            + m.bn * pool_reference.bn_distance(reference.T, pool_reference.bn_statistics(inside))
            + m.adv * (1 - divergence(s, t))
            + m.tv * sum(d.norm() for d in four)
            + m.tv_l1 * sum(d.abs().mean() for d in four)
            + m.l2 * x.flatten(1).norm(dim=1).mean()
        )
        if loss.item() < lowest:
            lowest, best = loss.item(), x.detach().clone()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        low, high = -normalize.mean / normalize.std, (1 - normalize.mean) / normalize.std
        x.data = torch.min(torch.max(x.data, low), high)
    return lowest, best * normalize.std + normalize.mean, y


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param({"adv": 0.0, "jitter": 0.0}, id="not adaptive"),
        pytest.param({"bn": 1.0, "tv_l1": 0.5, "l2": 0.01, "adv": 3.0, "iterations": 6, "lr_x": 0.03}, id="others"),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, "deepinversion", **settings)
    pool_reference.assert_same_steps(method, run, pool_reference.PoolReference(method, run), synthesize)


def test_reference_detects_changed_weight(tmp_path):
    method, run = create_method(tmp_path, "deepinversion")
    state = torch.get_rng_state()
    mine = method.step()["G"].item()
    method.bn *= 1.01
    torch.set_rng_state(state)
    assert synthesize(pool_reference.PoolReference(method, run))[0] != pytest.approx(mine, rel=2e-3)


ALONE = {"cross_entropy": 0.0, "bn": 0.0, "adv": 0.0, "tv": 0.0, "iterations": 25, "jitter": 0.0}


@pytest.mark.parametrize("term", ["cross_entropy", "bn", "adv", "tv", "tv_l1", "l2"])
def test_each_term_descends(tmp_path, term, monkeypatch):
    """Alone, each term goes down; the divergence between T and S goes up."""
    method, _ = create_method(tmp_path, "deepinversion", **{**ALONE, term: 1.0})
    costs, apart = [], []
    cost, js = method.synthesis_loss, inversion.jensen_shannon
    monkeypatch.setattr(method, "synthesis_loss", lambda v, y: costs.append(cost(v, y)) or costs[-1])
    monkeypatch.setattr(inversion, "jensen_shannon", lambda *a: apart.append(js(*a)) or apart[-1])
    method.synthesize()
    assert costs[-1] < costs[0]
    if term == "adv":
        assert apart[-1] > apart[0]
    else:
        assert not apart, "the student is not used"


@pytest.mark.parametrize("moves", [1, 2, 4])
def test_pool_grows_with_student_steps(tmp_path, moves):
    run = tiny_run(tmp_path, "deepinversion", steps=5)
    method = tiny_method("deepinversion", student_steps=moves)
    train(method, run)
    assert len(method.pool) == 8 * math.ceil(5 / moves)


def test_best_batch_is_kept(tmp_path, monkeypatch):
    method, _ = create_method(tmp_path, "deepinversion", iterations=4, bn=0.0, adv=0.0, lr_x=1.0)
    looked, cost = [], method.synthesis_loss
    worse = iter((3.0, 1.0, 2.0, 5.0))

    def priced(v, y):
        looked.append(method.to_images(v.detach()).clone())
        return 0 * cost(v, y) + next(worse)

    monkeypatch.setattr(method, "synthesis_loss", priced)
    assert method.synthesize().item() == 1.0
    assert torch.equal(method.pool.pixels, (looked[1].clamp(0, 1) * 255).round().byte())


def test_pixels_stay_in_range(tmp_path, monkeypatch):
    method, _ = create_method(tmp_path, "deepinversion", lr_x=2.0, iterations=6)
    seen, cost = [], method.synthesis_loss
    monkeypatch.setattr(
        method, "synthesis_loss", lambda v, y: seen.append(method.to_images(v.detach()).clone()) or cost(v, y)
    )
    method.synthesize()
    assert seen[0].min() < 0, "noise"
    for x in seen[1:]:
        assert x.min() >= -1e-6
        assert x.max() <= 1 + 1e-6


def test_grayscale_teacher_gets_gray_images(tmp_path):
    run = tiny_run(tmp_path, "deepinversion")
    normalize = run.teacher.net.normalize
    normalize.grayscale, normalize.mean, normalize.std = (
        True,
        torch.full((1, 1, 1, 1), 0.3),
        torch.full((1, 1, 1, 1), 0.2),
    )
    run.teacher.net.body[0] = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
    run.student.normalize = normalize
    run.student.body[0] = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
    method = tiny_method("deepinversion")
    train(method, run)
    assert torch.equal(method.pool.pixels[:, :1].expand(-1, 3, -1, -1), method.pool.pixels)
