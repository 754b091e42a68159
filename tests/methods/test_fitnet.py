"""FitNet against a float64 reference, its regressor, and the stages it reads."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
from tiny import tiny_method, tiny_run
from torch import Tensor, nn
from torch.optim import SGD

from compress.engine.hooks import find_stages
from compress.engine.trainer import train
from compress.errors import UsageError
from compress.methods.fitnet import FitNet, build_regressor

STEPS = 3


def map_and_logits(net: nn.Module, x: Tensor, *, after: int) -> tuple[Tensor, Tensor]:
    """Return the map after layer `after` of the tiny classifier and its logits, without hooks."""
    body = net.get_submodule("body")
    x = net.get_submodule("normalize")(x)
    captured = x
    for i, layer in enumerate(body.children()):
        x = layer(x)
        if i == after:
            captured = x
    return captured, x


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        pytest.param({}, 5, id="defaults"),
        pytest.param({"stage": 1, "hint": 3.0, "temperature": 2.0, "lr": 0.05, "weight_decay": 0.01}, 2, id="others"),
    ],
)
def test_step_matches_reference(tmp_path, settings, after):
    method, run = tiny_method("fitnet", **settings), tiny_run(tmp_path, "fitnet", steps=STEPS)
    assert isinstance(method, FitNet)
    run.seed_all()
    method.setup(run)
    T = copy.deepcopy(run.teacher.net).double()
    S, R = (copy.deepcopy(run.trainables[name].net).double().train() for name in "SR")
    optim = SGD([*S.parameters(), *R.parameters()], lr=1, momentum=0.9, weight_decay=method.weight_decay)
    batches = run.registered["stream unlabeled"][0].batches
    for i in range(STEPS):
        run.set_progress(i / STEPS)
        ours = method.step()
        optim.param_groups[0]["lr"] = method.lr * (1 + math.cos(math.pi * i / STEPS)) / 2
        x, k = batches.batch_at(i)[0].double() / 255, method.temperature
        with torch.no_grad():
            at_T, t = map_and_logits(T, x, after=after)
        at_S, s = map_and_logits(S, x, after=after)
        p = (t / k).softmax(1)
        loss_S = k**2 * (p * (p.log() - (s / k).log_softmax(1))).sum(1).mean()
        loss_R = (R(at_S) - at_T).square().mean()
        optim.zero_grad()
        (loss_S + method.hint * loss_R).backward()
        optim.step()
        assert ours["S"].item() == pytest.approx(loss_S.item(), rel=1e-4)
        assert ours["R"].item() == pytest.approx(loss_R.item(), rel=1e-4)
    for name, net in (("S", S), ("R", R)):
        tiny.assert_weights_near(run.trainables[name].net, net, rtol=1e-3, atol=2e-5)


def test_hint_trains_layers_before_it(tmp_path):
    """With a negligible weight of the predictions, later layers hardly move."""
    run = tiny_run(tmp_path, "fitnet", steps=1)
    before = {key: value.clone() for key, value in run.student.state_dict().items()}
    train(tiny_method("fitnet", stage=1, temperature=1e-3, weight_decay=0.0), run)
    moved = {key: float((value - before[key]).abs().max()) for key, value in run.student.state_dict().items()}
    assert moved["body.0.weight"] > 100 * max(moved["body.3.weight"], moved["body.8.weight"])


def test_regressor_trains_with_student(tmp_path):
    run = tiny_run(tmp_path, "fitnet", steps=2)
    train(tiny_method("fitnet"), run)
    state = tiny.final_state(run)["shared"]["trainables"]["R"]
    assert state["optimizer"]["state"]
    assert {key.split(".")[0] for key in state["net"]} == {"0", "1"}


# The regressor.


@pytest.mark.parametrize(
    ("inside", "outside", "kernel", "stride"),
    [
        ((8, 16, 16), (5, 16, 16), (1, 1), (1, 1)),
        ((8, 16, 16), (5, 8, 8), (3, 3), (2, 2)),
        ((8, 8, 8), (5, 16, 16), (4, 4), (2, 2)),
        ((8, 16, 16), (5, 12, 12), (5, 5), (1, 1)),
        ((8, 16, 12), (5, 8, 6), (3, 3), (2, 2)),
        ((8, 9, 16), (5, 7, 16), (3, 1), (1, 1)),
    ],
)
def test_regressor_maps_shapes(inside, outside, kernel, stride):
    R = build_regressor(inside, outside)
    first = next(R.children())
    assert (first.kernel_size, first.stride) == (kernel, stride)
    assert isinstance(first, nn.ConvTranspose2d) == (outside[1] > inside[1])
    assert R(torch.rand(2, *inside)).shape == (2, *outside)


def test_regressor_output_can_be_negative():
    """A wide ResNet's hint is read before a ReLU."""
    output = build_regressor((4, 8, 8), (3, 8, 8))(torch.randn(16, 4, 8, 8)).detach()
    assert output.mean((0, 2, 3)).abs().max() < 1e-5
    assert float(output.min()) < -1


def test_regressor_of_other_ratio_raises():
    with pytest.raises(UsageError, match=r"5x5.*16x16"):
        build_regressor((8, 5, 5), (4, 16, 16))


# Stages.


def test_missing_stage_raises(tmp_path):
    with pytest.raises(UsageError, match="stage: found 3"):
        train(tiny_method("fitnet", stage=3), tiny_run(tmp_path, "fitnet"))


@pytest.mark.parametrize("name", ["wrn16_1", "resnet18"])
def test_stage_of_paper_networks(name):
    """Index 2 of RepDistiller's list, which starts with the stem: 16x16 of 32x32."""
    from compress.models.card import ModelCard
    from compress.models.registry import build_network

    net = build_network(ModelCard(name, 10, (32, 32))).eval()
    path, shape = list(find_stages(net, torch.zeros(2, 3, 32, 32)).items())[1]
    assert shape == {"wrn16_1": (32, 16, 16), "resnet18": (128, 16, 16)}[name]
    assert path.count(".") == 1, "a whole stage, not a layer within it"
