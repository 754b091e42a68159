"""DAFL against the published step in float64."""

from __future__ import annotations

import copy
from functools import partial

import generator_reference
import pytest
import tiny
import torch
import torch.nn.functional as F
from generator_reference import Twins, create_method, kl
from torch import Tensor, nn
from torch.optim import SGD, Adam

from compress.engine.trainer import train
from compress.errors import UsageError
from compress.methods.dafl import DAFL


def published(twins: Twins) -> generator_reference.Losses:
    """One batch for both: G's loss from logits and penultimate features, S's loss KL / N."""
    m, T = twins.m, twins.T
    x = twins.G(twins.noise())
    phi = T.body[:-1](T.normalize(x))
    t = T.body[-1](phi)
    mean = t.softmax(1).mean(0)
    loss_G = (
        m.one_hot * F.cross_entropy(t, t.argmax(1))
        - m.activation * phi.abs().sum() / phi.numel()
        + m.balance * (mean * mean.log10()).sum()
    )
    loss_S = kl(twins.S(x.detach()), t.detach(), m.temperature)
    twins.update("G", loss_G)
    twins.update("S", loss_S)
    return {"G": loss_G, "S": loss_S}


def optimizers(m: DAFL):
    return {
        "G": partial(Adam, lr=m.lr_G),
        "S": partial(SGD, lr=m.lr, momentum=0.9, weight_decay=m.weight_decay),
    }


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param({"one_hot": 2.0, "activation": 3.0, "balance": 0.5, "temperature": 4.0}, id="others"),
        pytest.param({"activation": 0.0, "lr": 0.02}, id="logits only"),
        pytest.param({"standardize_output": False, "lr_G": 0.001}, id="a sigmoid"),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, "dafl", **settings)
    generator_reference.assert_same_steps(method, run, Twins(method, run, optimizers(method)), published, falling="S")


@pytest.mark.parametrize("weight", ["one_hot", "activation", "balance", "temperature"])
def test_reference_detects_changed_weight(tmp_path, weight):
    method, run = create_method(tmp_path, "dafl", activation=1.0)
    twins = Twins(method, run, optimizers(method))
    twins.m = copy.copy(method)
    setattr(twins.m, weight, getattr(method, weight) * 1.02)
    with pytest.raises(AssertionError):
        generator_reference.assert_same_steps(method, run, twins, published, falling="S")


def test_student_uses_generator_images(tmp_path):
    method, _ = create_method(tmp_path, "dafl")
    at_T, at_S = generator_reference.inputs_of(method.T.net), generator_reference.inputs_of(method.S.net)
    method.step()
    assert len(at_T) == len(at_S) == 1
    assert torch.equal(at_T[0], at_S[0])


def doubt(T, x: Tensor) -> Tensor:
    return -T(x).log_softmax(1).amax(1).mean()


def excitement(T, x: Tensor) -> Tensor:
    return T.body[:-1](T.normalize(x)).abs().mean()


def spread(T, x: Tensor) -> Tensor:
    return torch.special.entr(T(x).softmax(1).mean(0)).sum()


@pytest.mark.parametrize(
    ("weight", "measure", "sign"), [("one_hot", doubt, -1), ("activation", excitement, 1), ("balance", spread, 1)]
)
def test_generator_improves_each_term(tmp_path, weight, measure, sign):
    alone = dict.fromkeys(("one_hot", "activation", "balance"), 0.0) | {weight: 1.0}
    method, run = create_method(tmp_path, "dafl", lr_G=0.01, **alone)
    before, after = generator_reference.measure_training(method, run, partial(measure, run.teacher.net))
    assert sign * (after - before) > 0.01 * before


def test_features_required_by_weight_only(tmp_path):
    assert DAFL().uses == ("gradients", "features")
    assert DAFL(activation=0.0).uses == ("gradients",)
    run = tiny.tiny_run(tmp_path, "dafl")
    run.teacher.net.body = nn.Sequential(nn.Conv2d(3, tiny.CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError, match="linear layer"):
        tiny.tiny_method("dafl").setup(run)
    train(tiny.tiny_method("dafl", activation=0.0), run)
