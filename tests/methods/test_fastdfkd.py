"""FastDFKD against the published step in float64."""

from __future__ import annotations

import copy
import json
import math

import pool_reference
import pytest
import tiny
import torch
import torch.nn.functional as F
from generator_reference import create_method
from tiny import tiny_method, tiny_run
from torch import Tensor
from torch.optim import Adam

from compress.engine.augmentation import random_crop_flip
from compress.engine.trainer import train


class Reference(pool_reference.PoolReference):
    """With the meta generator, its optimizer, and running averages of statistics."""

    def __init__(self, method, run) -> None:
        super().__init__(method, run)
        self.G = copy.deepcopy(run.trainables["G"].net).double()
        self.meta = Adam(self.G.parameters(), lr=method.lr_G * method.iterations, betas=(0.5, 0.999))
        self.averages: list[tuple[Tensor, Tensor]] = []

    def smooth(self, stats: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        if not self.averages:
            return stats
        k = self.m.bn_momentum
        pairs = zip(stats, self.averages, strict=True)
        return [((1 - k) * m + k * old_m, (1 - k) * v + k * old_v) for (m, v), (old_m, old_v) in pairs]

    def synthesize(self) -> tuple[float, Tensor, Tensor]:
        m = self.m
        if self.run.step == m.warmup and m.reset == 1:
            numbers = torch.Generator().manual_seed(self.run.schedule.seed)
            for layer in (self.G.linear, self.G.bn):
                layer.weight.data = 0.02 * torch.randn(layer.weight.shape, generator=numbers).double()
                layer.bias.data.zero_()
        fast = copy.deepcopy(self.G)
        z = torch.randn(m.images_per_synthesis, m.z_dim).double().requires_grad_()
        y = torch.randint(tiny.CLASSES, (m.images_per_synthesis,))
        optimizer = Adam(
            [{"params": fast.parameters()}, {"params": [z], "lr": m.lr_z}], lr=m.lr_G, betas=(0.5, 0.999)
        )  # fmt: skip
        lowest, best, stats = math.inf, z, []
        self.meta.zero_grad()
        for _ in range(m.iterations):
            x = fast(z)
            seen = random_crop_flip(x).double()
            t, inside = pool_reference.forward_with_bn_inputs(self.T, seen)
            stats = pool_reference.bn_statistics(inside)
            loss = m.bn * pool_reference.bn_distance(self.T, self.smooth(stats)) + m.cross_entropy * F.cross_entropy(
                t, y
            )
            if self.run.step >= m.warmup:
                loss = loss - m.adv * pool_reference.agreement_kl(self.forward_eval(seen), t)
            if loss.item() < lowest:
                lowest, best = loss.item(), x.detach()
            optimizer.zero_grad()
            loss.backward()
            for mine, its in zip(self.G.parameters(), fast.parameters(), strict=True):
                mine.grad = its.grad.clone() if mine.grad is None else mine.grad + its.grad
            optimizer.step()
        if m.reptile:
            for mine, its in zip(self.G.parameters(), fast.parameters(), strict=True):
                mine.grad = 67 * (mine.data - its.data)
        self.meta.step()
        self.averages = [(a.detach(), b.detach()) for a, b in self.smooth(stats)]
        return lowest, best, y


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param({"reptile": True, "reset": 0}, id="Reptile"),
        pytest.param({"bn_momentum": 0.0, "warmup": 0, "reset": 0, "student_steps": 1}, id="no momentum, no warm-up"),
        pytest.param({"warmup": 3, "adv": 4.0, "bn": 0.5, "cross_entropy": 2.0, "iterations": 5}, id="others"),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, "fastdfkd", **settings)
    reference = Reference(method, run)
    pool_reference.assert_same_steps(method, run, reference, Reference.synthesize)
    mine, his = (
        torch.cat([p.detach().double().flatten() for p in net.parameters()]) for net in (method.G.net, reference.G)
    )
    assert torch.isclose(mine, his, rtol=1e-3, atol=1e-4).double().mean() > 0.98
    assert float((mine - his).norm() / his.norm()) < 5e-3


def test_reference_detects_changed_weight(tmp_path):
    method, run = create_method(tmp_path, "fastdfkd")
    reference = Reference(method, run)
    state = torch.get_rng_state()
    mine = method.step()["G"].item()
    method.cross_entropy *= 1.02
    torch.set_rng_state(state)
    assert reference.synthesize()[0] != pytest.approx(mine, rel=2e-4)


ALONE = {"cross_entropy": 0.0, "bn": 0.0, "adv": 0.0, "warmup": 0, "reset": 0, "lr_G": 0.01, "iterations": 30}


@pytest.mark.parametrize("reptile", [False, True])
def test_meta_learning_improves_start(tmp_path, reptile):
    """The initial loss of each synthesis decreases."""
    method, _ = create_method(
        tmp_path, "fastdfkd", warmup=100, reset=0, bn_momentum=0.0, iterations=4, lr_G=1e-3, reptile=reptile
    )
    first, cost = [], method.synthesis_loss

    def noted(x, y):
        result = cost(x, y)
        first.append(result[0].item())
        return result

    method.synthesis_loss = noted
    for _ in range(30):
        method.synthesize()
    beginnings = first[::4]
    assert sum(beginnings[-5:]) < 0.9 * sum(beginnings[:5])


def test_meta_step_scales_learning_rate(tmp_path, monkeypatch):
    method, run = create_method(tmp_path, "fastdfkd", iterations=3, reset=0)
    moved = []
    monkeypatch.setattr(method.G, "apply_gradients", lambda gradients: moved.append(gradients))
    method.synthesize()
    assert len(moved) == 1
    assert method.G.optimizer.param_groups[0]["lr"] == pytest.approx(3 * method.lr_G)
    run.set_progress(0.9)
    assert method.G.optimizer.param_groups[0]["lr"] == pytest.approx(3 * method.lr_G), "constant"


def test_warmup_trains_no_student(tmp_path):
    run = tiny_run(tmp_path, "fastdfkd", steps=8, log_every=1)
    method = tiny_method("fastdfkd", warmup=3, student_steps=2, reset=0)
    used_at = []
    setup = method.setup

    def watched(run):
        setup(run)
        rest = method.S.forward_eval
        method.S.forward_eval = lambda x: used_at.append(run.step) or rest(x)

    method.setup = watched
    train(method, run)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"G", "S"} & line.keys() for line in lines] == [{"G"}] * 3 + [{"G", "S"}, {"S"}] * 2 + [{"G", "S"}]
    assert sorted(set(used_at)) == [3, 5, 7], "in the warm-up there is no adversarial term"
    assert len(method.pool) == 8 * 6
    assert run.trainables["S"].optimizer.state_dict()["state"][0]["momentum_buffer"] is not None


@pytest.mark.parametrize(("warmup", "reset", "at"), [(0, 1, 0), (2, 1, 2), (2, 3, 6), (1, 0, None)])
def test_first_layers_reset_once(tmp_path, warmup, reset, at):
    run = tiny_run(tmp_path, "fastdfkd", steps=9)
    method = tiny_method("fastdfkd", warmup=warmup, reset=reset, student_steps=2)
    anew, renew = [], method.reset_first_layers
    method.reset_first_layers = lambda: anew.append(run.step) or renew()
    train(method, run)
    assert anew == ([] if at is None else [at])


def test_reset_touches_first_linear_and_batchnorm(tmp_path):
    method, _ = create_method(tmp_path, "fastdfkd", width_G=64)
    before = copy.deepcopy(method.G.net.state_dict())
    method.reset_first_layers()
    changed = {path.removeprefix("/") for path in tiny.state_differences(before, method.G.net.state_dict())}
    assert changed == {"linear.weight", "linear.bias", "bn.weight"}
    for layer in (method.G.net.linear, method.G.net.bn):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert layer.weight.mean().abs().item() < 0.01
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
