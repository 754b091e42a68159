"""DFQ against the step of the code that compares with it, written again in float64."""

from __future__ import annotations

import copy
from functools import partial

import data_free
import pytest
import tiny
import torch
import torch.nn.functional as F
from data_free import Twins, begun, kl
from torch import Tensor, nn
from torch.optim import SGD, Adam

from compress.engine.play import play
from compress.methods.dfq import DFQ
from compress.requirements import obstacle


def distance(T: nn.Module, x: Tensor) -> Tensor:
    """The sum over T's BatchNorm layers of the norms of what comes in less what is remembered."""
    total, values = torch.zeros((), dtype=x.dtype), T.normalise(x)
    for layer in T.body:
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
            total = total + (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()
        values = layer(values)
    return total


def published(twins: Twins) -> data_free.Losses:
    """S at rest while G moves, G at rest, if it is to, while it makes what S learns from."""
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
    twins.G.train(not m.rest_G)
    loss_S = torch.zeros(())
    for _ in range(m.moves):
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
        pytest.param({"bn": 0.0, "moves": 4, "lr": 0.02}, id="answers only"),
        pytest.param({"rest_G": False}, id="G normalises by the batch"),
    ],
)
def test_the_step_is_the_published_one_in_float64(tmp_path, settings):
    method, run = begun(tmp_path, "dfq", **settings)
    data_free.same_steps(method, run, twins_of(method, run), published, falling="S")


@pytest.mark.parametrize("weight", ["adv", "bn", "one_hot", "balance", "temperature"])
def test_a_weight_off_by_a_fiftieth_is_told_from_rounding_by_the_reference(tmp_path, weight):
    method, run = begun(tmp_path, "dfq", adv=10.0)
    twins = twins_of(method, run)
    twins.m = copy.copy(method)
    setattr(twins.m, weight, getattr(method, weight) * 1.02)
    with pytest.raises(AssertionError):
        data_free.same_steps(method, run, twins, published, falling="S")


def test_each_player_is_moved_by_its_own_loss_and_by_no_other(tmp_path, monkeypatch):
    method, run = begun(tmp_path, "dfq", moves=3)
    assert data_free.moves_one_at_a_time(method, run, monkeypatch) == "GSSS"


def test_every_move_is_on_fresh_images(tmp_path):
    method, _ = begun(tmp_path, "dfq", moves=3)
    at_G, at_S = data_free.inputs_of(method.G.net), data_free.inputs_of(method.S.net)
    method.step()
    for seen in (at_G, at_S):
        assert len(seen) == 4
        assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize(("rest_G", "seen_by_G"), [(True, 2), (False, 8)])
def test_the_student_rests_while_the_generator_moves_and_the_generator_while_the_student_does(
    tmp_path, rest_G, seen_by_G
):
    method, run = begun(tmp_path, "dfq", moves=3, rest_G=rest_G)
    for _ in range(2):
        method.step()
    batches = {
        name: {int(v) for k, v in run.players[name].net.state_dict().items() if k.endswith("num_batches_tracked")}
        for name in "GS"
    }
    assert batches == {"G": {seen_by_G}, "S": {6}}
    assert all(player.net.training for player in run.players.values())


def contradiction(S, T, x: Tensor) -> Tensor:
    return kl(S(x), T(x))


def doubt(S, T, x: Tensor) -> Tensor:
    return -T(x).log_softmax(1).amax(1).mean()


def spread(S, T, x: Tensor) -> Tensor:
    return torch.special.entr(T(x).softmax(1).mean(0)).sum()


def strangeness(S, T, x: Tensor) -> Tensor:
    return distance(T, x)


@pytest.mark.parametrize(
    ("weight", "measure", "sign"),
    [("adv", contradiction, 1), ("one_hot", doubt, -1), ("balance", spread, 1), ("bn", strangeness, -1)],
)
def test_the_generator_raises_or_lowers_what_each_term_wants(tmp_path, weight, measure, sign):
    alone = dict.fromkeys(("adv", "bn", "one_hot", "balance"), 0.0) | {weight: 1.0}
    method, run = begun(tmp_path, "dfq", lr_G=0.01, moves=1, **alone)
    S = copy.deepcopy(run.student).eval()
    before, after = data_free.trained(method, run, partial(measure, S, run.teacher.net))
    assert sign * (after - before) > 0.01 * before


def test_statistics_are_used_where_they_have_a_weight_only(tmp_path):
    assert DFQ().uses == ("gradients", "batchnorm")
    assert DFQ(bn=0.0).uses == ("gradients",)
    bare = nn.Sequential(nn.Conv2d(3, tiny.CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert "set method.bn to 0" in str(obstacle("dfq", DFQ(), "classification", bare))
    assert obstacle("dfq", DFQ(bn=0.0), "classification", bare) is None
    run = tiny.tiny_run(tmp_path, "dfq")
    run.teacher.net.body = bare
    play(tiny.tiny_method("dfq", bn=0.0), run)


def test_the_recipe_has_the_published_settings():
    plan, method = data_free.recipe("dfq-cifar100")
    assert method == DFQ(adv=1, bn=1, one_hot=1, balance=20, moves=10, lr=0.05, weight_decay=1e-4, lr_G=1e-3, z_dim=256)
    assert (plan.pace.steps, plan.pace.batch_size) == (200 * 400 // 10, 256)


def test_the_game_is_about_the_student_and_not_about_the_teacher(tmp_path):
    """The published fault: with the teacher in the student's place nothing is left of the adversarial term."""
    alone = {"adv": 1.0, "bn": 0.0, "one_hot": 0.0, "balance": 0.0}
    method, run = begun(tmp_path / "S", "dfq", **alone)
    assert method.step()["G"].item() < -1e-3
    method, run = begun(tmp_path / "T", "dfq", **alone)
    run.student.load_state_dict(run.teacher.net.state_dict())
    assert method.step()["G"].item() == pytest.approx(0, abs=1e-6)
