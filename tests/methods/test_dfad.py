"""DFAD against the published step in float64."""

from __future__ import annotations

import copy
import math
from functools import partial

import generator_reference
import pytest
import tiny
import torch
import torch.nn.functional as F
from generator_reference import Twins, create_method
from torch import Tensor
from torch.optim import SGD, Adam

from compress.methods.dfad import DFAD
from compress.models.generators import DcganGenerator, SmallGenerator

TASKS = ("classification", "segmentation")


def published(twins: Twins, *, log_gap: bool) -> generator_reference.Losses:
    """Steps of S on new noise, then one of G; |t − s| is a mean over everything, including pixels."""
    loss_S = torch.zeros(())
    for _ in range(twins.m.student_steps):
        x = twins.G(twins.noise()).detach()
        loss_S = F.l1_loss(twins.S(x), twins.T(x).detach())
        twins.update("S", loss_S)
    x = twins.G(twins.noise())
    gap = F.l1_loss(twins.S(x), twins.T(x))
    loss_G = -torch.log(gap + 1) if log_gap else -gap
    twins.update("G", loss_G)
    return {"G": loss_G, "S": loss_S}


def twins_of(method: DFAD, run) -> Twins:
    sgd = partial(SGD, lr=method.lr, momentum=0.9, weight_decay=method.weight_decay)
    return Twins(method, run, {"G": partial(Adam, lr=method.lr_G), "S": sgd})


@pytest.mark.parametrize(
    ("task", "settings", "log_gap"),
    [
        pytest.param("classification", {}, False, id="published, images"),
        pytest.param("segmentation", {"generator": "dcgan"}, True, id="published, label maps"),
        pytest.param("classification", {"standardize_output": False}, False, id="a sigmoid"),
        pytest.param(
            "classification", {"log_gap": True, "student_steps": 4, "weight_decay": 0.01}, True, id="log_gap, images"
        ),
        pytest.param(
            "segmentation", {"generator": "dcgan", "log_gap": False, "lr": 0.02}, False, id="not log_gap, label maps"
        ),
    ],
)
def test_step_matches_reference(tmp_path, task, settings, log_gap):
    method, run = create_method(tmp_path, "dfad", task=task, **settings)
    step = partial(published, log_gap=log_gap)
    generator_reference.assert_same_steps(method, run, twins_of(method, run), step, falling="GS")


def test_reference_detects_log_gap(tmp_path):
    method, run = create_method(tmp_path, "dfad", task="segmentation", generator="dcgan", log_gap=False)
    step = partial(published, log_gap=True)
    with pytest.raises(AssertionError):
        generator_reference.assert_same_steps(method, run, twins_of(method, run), step, falling="GS")


@pytest.mark.parametrize("log_gap", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_generator_widens_gap(tmp_path, task, log_gap):
    method, run = create_method(tmp_path, "dfad", task=task, log_gap=log_gap, lr_G=0.01, student_steps=1)
    T, S = run.teacher.net, copy.deepcopy(run.student).train()
    before, after = generator_reference.measure_training(method, run, lambda x: (S(x) - T(x)).abs().mean())
    assert after > 1.02 * before


@pytest.mark.parametrize("task", TASKS)
def test_student_closes_gap(tmp_path, task):
    method, run = create_method(tmp_path, "dfad", task=task, student_steps=30, lr_G=1e-6)
    T, x = run.teacher.net, method.generate().detach()

    def gap(S) -> float:
        with torch.no_grad():
            return float((S(x) - T(x)).abs().mean())

    before = gap(copy.deepcopy(run.student).train())
    method.step()
    assert gap(copy.deepcopy(run.student).train()) < 0.5 * before


class OffsetStudent:
    """A student whose first logit is the teacher's plus 1."""

    def __init__(self, T) -> None:
        self.T = T

    def __call__(self, x: Tensor) -> Tensor:
        t = self.T(x)
        return torch.cat([t[:, :1] + 1, t[:, 1:]], 1)

    forward_frozen = __call__

    def optimization_step(self, loss: Tensor) -> None:
        pass


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("images", [4, 8])
def test_gap_is_mean_over_everything(tmp_path, task, images):
    method, _ = create_method(tmp_path, "dfad", task=task, log_gap=False)
    method.n, method.S = images, OffsetStudent(method.T)
    losses = method.step()
    assert losses["S"].item() == pytest.approx(1 / tiny.CLASSES, rel=1e-4)
    assert losses["G"].item() == pytest.approx(-1 / tiny.CLASSES, rel=1e-4)


def test_generator_setting_selects_architecture(tmp_path):
    method, _ = create_method(tmp_path / "a", "dfad", task="segmentation", generator="dcgan")
    assert isinstance(method.G.net, DcganGenerator)
    method.step()
    method, _ = create_method(tmp_path / "b", "dfad", task="segmentation")
    assert isinstance(method.G.net.inner, SmallGenerator)


def test_huge_logits_give_no_nan(tmp_path):
    method, run = create_method(tmp_path, "dfad", lr=1e-3)
    with torch.no_grad():
        run.teacher.net.body[-1].bias.copy_(torch.tensor([1000.0, -1000.0, 0.0, 0.0]))
    for _ in range(3):
        losses = method.step()
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    assert all(player.is_finite() for player in run.trainables.values())
