"""CMI against the published step in float64."""

from __future__ import annotations

import copy
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

from compress.engine.augmentation import random_crop_flip, random_resized_crop
from compress.engine.trainer import train
from compress.errors import UsageError
from compress.methods import cmi
from compress.models.generators import DeepGenerator, SmallGenerator


class Reference(pool_reference.PoolReference):
    """With the projection, its optimizer, and the bank as a circular list."""

    def __init__(self, method, run) -> None:
        super().__init__(method, run)
        self.H = copy.deepcopy(run.trainables["H"].net).double()
        self.optimizer_H = Adam(self.H.parameters(), lr=method.lr_G)
        self.bank: list[Tensor] = []
        self.next = 0

    def project(self, features: Tensor) -> Tensor:
        return F.normalize(self.H(features), dim=1)

    def remember(self, rows: Tensor) -> None:
        for row in rows:
            if len(self.bank) < self.m.bank_size:
                self.bank.append(row)
            else:
                self.bank[self.next] = row
            self.next = (self.next + 1) % self.m.bank_size

    def synthesize(self) -> tuple[float, Tensor, Tensor]:
        m, n = self.m, self.m.images_per_synthesis
        G = copy.deepcopy(m.create_fresh_generator()).double()
        z = torch.randn(n, m.z_dim).double().requires_grad_()
        y = torch.randint(tiny.CLASSES, (n,))
        optimizer = Adam([{"params": G.parameters()}, {"params": [z]}], m.lr_G, betas=(0.5, 0.999))
        lowest, best = math.inf, (z, z)
        for _ in range(m.iterations):
            x = G(z)
            whole, part = random_crop_flip(x).double(), random_resized_crop(x).double()
            t, inside = pool_reference.forward_with_bn_inputs(self.T, whole)
            loss = m.cross_entropy * F.cross_entropy(t, y) - m.adv * pool_reference.agreement_kl(
                self.forward_eval(whole), t
            )
            loss = loss + m.bn * pool_reference.bn_distance(self.T, pool_reference.bn_statistics(inside))
            of_whole = torch.cat([one.mean((2, 3)) for one in inside], 1)
            of_part = torch.cat([one.mean((2, 3)) for one in pool_reference.forward_with_bn_inputs(self.T, part)[1]], 1)
            drawn = [self.bank[i] for i in torch.randperm(len(self.bank))[: m.negatives].tolist()]
            old = torch.stack(drawn) if drawn else torch.zeros(0, 2 * of_part.shape[1], dtype=torch.float64)
            old_part, old_whole = old.chunk(2, dim=1)
            A, B = self.project(torch.cat([of_part, old_part, of_whole, old_whole])).chunk(2)
            costs = F.cross_entropy(A @ B.detach().T / m.contrast_temperature, torch.arange(len(A)), reduction="none")
            loss = loss + m.contrast * (costs[:n].mean() + (costs[n:].mean() if drawn else 0.0))
            if loss.item() < lowest:
                lowest, best = loss.item(), (x.detach(), torch.cat([of_part, of_whole], 1).detach())
            optimizer.zero_grad()
            self.optimizer_H.zero_grad()
            loss.backward()
            optimizer.step()
            self.optimizer_H.step()
        self.remember(best[1])
        return lowest, best[0], y


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param(
            {"bank_size": 13, "negatives": 100, "student_steps": 1, "images_per_synthesis": 5},
            id="odd bank size",
        ),
        pytest.param(
            {"adv": 3.0, "bn": 0.1, "contrast": 2.0, "contrast_temperature": 0.5, "iterations": 4}, id="others"
        ),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, "cmi", **settings)
    reference = Reference(method, run)
    pool_reference.assert_same_steps(method, run, reference, Reference.synthesize)
    pool_reference.assert_near(method.H.net, reference.H)
    table = method.bank.table[: len(method.bank)]
    assert torch.allclose(table.double(), torch.stack(reference.bank), rtol=1e-3, atol=1e-4)


def test_reference_detects_changed_weight(tmp_path):
    method, run = create_method(tmp_path, "cmi")
    reference = Reference(method, run)
    state = torch.get_rng_state()
    mine = method.step()["G"].item()
    method.contrast *= 1.01
    torch.set_rng_state(state)
    assert reference.synthesize()[0] != pytest.approx(mine, rel=2e-4)


ALONE = {"cross_entropy": 0.0, "bn": 0.0, "adv": 0.0, "contrast": 0.0, "lr_G": 0.01, "iterations": 40}


def test_contrast_gradient_reaches_crop_only(tmp_path, monkeypatch):
    """The published code discards the anchors' gradient, so the whole image gets none."""
    method, _ = create_method(tmp_path, "cmi", cross_entropy=0.0, bn=0.0, adv=0.0)
    y = torch.zeros(8, dtype=torch.int64)
    reached = []
    for view in ("random_resized_crop", "random_crop_flip"):
        x = torch.rand(8, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with monkeypatch.context() as patch:
            keep = getattr(cmi, view)
            patch.setattr(cmi, view, lambda x, keep=keep: keep(x.detach()))
            loss, _ = method.synthesis_loss(x, y)
            gradient = torch.autograd.grad(loss, x)[0]
        reached.append(bool(gradient.abs().sum() > 0))
    assert reached == [False, True]


def test_generator_is_new_per_synthesis(tmp_path, monkeypatch):
    method, run = create_method(tmp_path, "cmi")
    born, made = method.create_fresh_generator, []
    monkeypatch.setattr(method, "create_fresh_generator", lambda: made.append(born()) or made[-1])
    beginnings = []
    for _ in range(2):
        before = copy.deepcopy(method.H.net.state_dict())
        state = torch.get_rng_state()
        beginnings.append(copy.deepcopy(born().state_dict()))
        torch.set_rng_state(state)
        method.synthesize()
        assert tiny.state_differences(before, method.H.net.state_dict())
    assert set(run.trainables) == {"S", "H"}
    assert made[0] is not made[1]
    assert isinstance(made[0], SmallGenerator)
    assert tiny.state_differences(*beginnings)
    weights = torch.cat(
        [p.flatten() for name, p in born().named_parameters() if name.endswith("weight") and p.ndim > 1]
    )
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)


def test_bank_is_checkpointed_and_bounded(tmp_path):
    run = tiny_run(tmp_path, "cmi", steps=8)
    method = tiny_method("cmi", student_steps=1, bank_size=20)
    train(method, run)
    kept = tiny.final_state(run)["per_rank"]["registered"]["bank"]
    assert kept["rows"].shape == (20, 2 * (8 + 8))
    assert kept["next"] == 8 * 8 % 20


def test_features_are_crop_then_whole(tmp_path, monkeypatch):
    """The bank contains features of the crop first, then of the whole image."""
    method, _ = create_method(tmp_path, "cmi")
    bright, dark = torch.full((8, 3, 16, 16), 0.9), torch.full((8, 3, 16, 16), 0.1)
    monkeypatch.setattr(cmi, "random_crop_flip", lambda x: bright)
    monkeypatch.setattr(cmi, "random_resized_crop", lambda x: dark)
    _, known = method.synthesis_loss(torch.rand(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64))
    for x, found in ((dark, known[:, :16]), (bright, known[:, 16:])):
        inside = pool_reference.forward_with_bn_inputs(method.T.net, x)[1]
        assert torch.allclose(found, torch.cat([one.mean((2, 3)) for one in inside], 1), atol=1e-5)


def test_wide_teachers_use_stage_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(cmi, "MAX_FEATURES", 10)
    method, run = create_method(tmp_path, "cmi")
    assert list(method.capture_features.args[1:]) == ["body.2", "body.5"]
    train(tiny_method("cmi"), tiny_run(tmp_path / "run", "cmi"))
    assert run.trainables["H"].net[0].in_features == 16


def test_zero_contrast_creates_no_bank(tmp_path):
    run = tiny_run(tmp_path, "cmi")
    train(tiny_method("cmi", contrast=0.0), run)
    assert set(run.trainables) == {"S"}
    assert "bank" not in run.registered


def test_large_images_use_deep_generator(tmp_path):
    run = tiny_run(tmp_path, "cmi")
    run.task.image_size = (96, 96)
    method = tiny_method("cmi")
    method.setup(run)
    assert isinstance(method.create_fresh_generator(), DeepGenerator)
    run = tiny_run(tmp_path, "cmi")
    run.task.image_size = (16, 32)
    with pytest.raises(UsageError, match="found 16x32"):
        tiny_method("cmi").setup(run)
