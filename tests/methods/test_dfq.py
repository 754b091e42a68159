"""DFQ against the step of CMI's code in float64."""

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
from compress.methods.dfq import DFQ
from compress.training.setup import incompatibility_reason


def distance(T: nn.Module, x: Tensor) -> Tensor:
    """Sum over T's BatchNorm layers of the norms between batch and running statistics."""
    total, values = torch.zeros((), dtype=x.dtype), T.normalize(x)
    for layer in T.body:
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
            total = total + (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()
        values = layer(values)
    return total


def published(twins: Twins) -> generator_reference.Losses:
    """S is in eval mode in G's step; G, optionally, in S's steps."""
    m = twins.m
    twins.S.eval()
    twins.G.train()
    x = twins.G(twins.noise())
    t, s = twins.T(x), twins.S(x)
    mean = t.softmax(1).mean(0)
    loss_G = (
        m.bn * distance(twins.T, x)
        + m.one_hot * F.cross_entropy(t, t.argmax(1))
        - m.adv * kl(s, t)
        + m.balance * (mean * mean.log()).sum()
    )
    twins.update("G", loss_G)
    twins.S.train()
    twins.G.train(not m.eval_mode_G)
    loss_S = torch.zeros(())
    for _ in range(m.student_steps):
        with torch.no_grad():
            x = twins.G(twins.noise())
            t = twins.T(x)
        loss_S = kl(twins.S(x), t, m.temperature)
        twins.update("S", loss_S)
    return {"G": loss_G, "S": loss_S}


def twins_of(method: DFQ, run) -> Twins:
    sgd = partial(SGD, lr=method.lr, momentum=0.9, weight_decay=method.weight_decay)
    return Twins(method, run, {"G": partial(Adam, lr=method.lr_G, betas=(0.5, 0.999)), "S": sgd})


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param({"adv": 3.0, "bn": 0.1, "one_hot": 0.2, "balance": 1.0, "temperature": 4.0}, id="others"),
        pytest.param({"bn": 0.0, "student_steps": 4, "lr": 0.02}, id="logits only"),
        pytest.param({"eval_mode_G": False}, id="G normalizes by the batch"),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, "dfq", **settings)
    generator_reference.assert_same_steps(method, run, twins_of(method, run), published, falling="S")


@pytest.mark.parametrize("weight", ["adv", "bn", "one_hot", "balance", "temperature"])
def test_reference_detects_changed_weight(tmp_path, weight):
    method, run = create_method(tmp_path, "dfq", adv=10.0)
    twins = twins_of(method, run)
    twins.m = copy.copy(method)
    setattr(twins.m, weight, getattr(method, weight) * 1.02)
    with pytest.raises(AssertionError):
        generator_reference.assert_same_steps(method, run, twins, published, falling="S")


@pytest.mark.parametrize(("eval_mode_G", "seen_by_G"), [(True, 2), (False, 8)])
def test_batchnorm_modes_per_phase(tmp_path, eval_mode_G, seen_by_G):
    method, run = create_method(tmp_path, "dfq", student_steps=3, eval_mode_G=eval_mode_G)
    for _ in range(2):
        method.step()
    batches = {
        name: {int(v) for k, v in run.trainables[name].net.state_dict().items() if k.endswith("num_batches_tracked")}
        for name in "GS"
    }
    assert batches == {"G": {seen_by_G}, "S": {6}}
    assert all(model.net.training for model in run.trainables.values())


def contradiction(S, T, x: Tensor) -> Tensor:
    return kl(S(x), T(x))


def doubt(S, T, x: Tensor) -> Tensor:
    return -T(x).log_softmax(1).amax(1).mean()


def spread(S, T, x: Tensor) -> Tensor:
    return torch.special.entr(T(x).softmax(1).mean(0)).sum()


def bn_gap(S, T, x: Tensor) -> Tensor:
    return distance(T, x)


@pytest.mark.parametrize(
    ("weight", "measure", "sign"),
    [("adv", contradiction, 1), ("one_hot", doubt, -1), ("balance", spread, 1), ("bn", bn_gap, -1)],
)
def test_generator_improves_each_term(tmp_path, weight, measure, sign):
    alone = dict.fromkeys(("adv", "bn", "one_hot", "balance"), 0.0) | {weight: 1.0}
    method, run = create_method(tmp_path, "dfq", lr_G=0.01, student_steps=1, **alone)
    S = copy.deepcopy(run.student).eval()
    before, after = generator_reference.measure_training(method, run, partial(measure, S, run.teacher.net))
    assert sign * (after - before) > 0.01 * before


def test_batchnorm_required_by_weight_only(tmp_path):
    assert DFQ().uses == ("gradients", "batchnorm")
    assert DFQ(bn=0.0).uses == ("gradients",)
    bare = nn.Sequential(nn.Conv2d(3, tiny.CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert "set method.bn to 0" in str(incompatibility_reason("dfq", DFQ(), "classification", bare))
    assert incompatibility_reason("dfq", DFQ(bn=0.0), "classification", bare) is None
    run = tiny.tiny_run(tmp_path, "dfq")
    run.teacher.net.body = bare
    train(tiny.tiny_method("dfq", bn=0.0), run)


def test_adversarial_term_uses_student(tmp_path):
    """The published code passes the teacher as the student, so its adversarial term is 0."""
    alone = {"adv": 1.0, "bn": 0.0, "one_hot": 0.0, "balance": 0.0}
    method, run = create_method(tmp_path / "S", "dfq", **alone)
    assert method.step()["G"].item() < -1e-3
    method, run = create_method(tmp_path / "T", "dfq", **alone)
    run.student.load_state_dict(run.teacher.net.state_dict())
    assert method.step()["G"].item() == pytest.approx(0, abs=1e-6)
