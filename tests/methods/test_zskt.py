"""ZSKT against Algorithm 1 with its code's losses in float64."""

from __future__ import annotations

import copy
import math
from functools import partial

import generator_reference
import pytest
import tiny
import torch
import torch.nn.functional as F
from generator_reference import Twins, create_method, kl
from torch import Tensor, nn
from torch.optim import Adam

from compress.engine.trainer import train
from compress.errors import UsageError
from compress.methods.zskt import ZSKT

#: a bias that BatchNorm takes away again has no gradient but rounding, of which Adam makes whole steps
NOISY = ("body.3.bias", "body.4.running_mean")


def divergence(s: Tensor, t: Tensor) -> Tensor:
    """Mean over images and classes, as torch's kl_div reduces by default."""
    p = t.softmax(1)
    return (p * (p.log() - s.log_softmax(1))).mean()


def maps(net, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the last maps of 8x8 and 4x4 of the tiny network, and its logits."""
    at_8 = net.body[:3](net.normalize(x))
    at_4 = net.body[3:6](at_8)
    return [at_8, at_4], net.body[6:](at_4)


def attended(maps: Tensor) -> Tensor:
    q = (maps**2).mean(1).flatten(1)
    return q / q.norm(dim=1, keepdim=True)


def published(twins: Twins) -> generator_reference.Losses:
    """One z for a step of G and n_S steps of S; G runs each time, and its unused gradients are discarded."""
    m, z = twins.m, twins.noise()
    x = twins.G(z)
    loss_G = -divergence(twins.S(x), twins.T(x))
    twins.update("G", loss_G, clip=m.max_grad_norm)
    loss_S = torch.zeros(())
    for _ in range(m.student_steps):
        x = twins.G(z)
        (of_T, t), (of_S, s) = maps(twins.T, x), maps(twins.S, x)
        loss_S = divergence(s, t.detach())
        for a, b in zip(of_S, of_T, strict=True):
            loss_S = loss_S + m.attention * ((attended(a) - attended(b.detach())) ** 2).mean()
        twins.update("S", loss_S, clip=m.max_grad_norm)
    return {"G": loss_G, "S": loss_S}


def twins_of(method: ZSKT, run) -> Twins:
    return Twins(method, run, {"G": partial(Adam, lr=method.lr_G), "S": partial(Adam, lr=method.lr)})


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="published"),
        pytest.param({"attention": 3.0, "student_steps": 4, "max_grad_norm": 0.01}, id="clipped"),
        pytest.param({"attention": 0.0}, id="logits only"),
        pytest.param({"standardize_output": False}, id="a sigmoid"),
    ],
)
def test_step_matches_reference(tmp_path, settings):
    method, run = create_method(tmp_path, "zskt", **settings)
    twins = twins_of(method, run)  # its G runs n_S times, so its statistics differ
    generator_reference.assert_same_steps(method, run, twins, published, falling="GS", noisy=NOISY, remembered=False)


@pytest.mark.parametrize("weight", ["attention", "max_grad_norm"])
def test_reference_detects_changed_weight(tmp_path, weight):
    # Adam is invariant to the gradient norm, and so to the clip, except for its epsilon: use a tiny norm.
    method, run = create_method(tmp_path, "zskt", **({"max_grad_norm": 1e-7} if weight == "max_grad_norm" else {}))
    twins = twins_of(method, run)
    twins.m = copy.copy(method)
    setattr(twins.m, weight, getattr(method, weight) * 1.02)
    with pytest.raises(AssertionError):
        generator_reference.assert_same_steps(
            method, run, twins, published, falling="GS", noisy=NOISY, remembered=False
        )


def test_student_steps_reuse_generator_images(tmp_path):
    method, _ = create_method(tmp_path, "zskt", student_steps=3, lr_G=0.1)
    at_G, at_S = generator_reference.inputs_of(method.G.net), generator_reference.inputs_of(method.S.net)
    method.step()
    method.step()
    assert torch.equal(at_G[0], at_G[1])
    assert torch.equal(at_G[2], at_G[3])
    assert not torch.equal(at_G[0], at_G[2])
    assert len(at_S) == 2 * (1 + 3)
    assert torch.equal(at_S[1], at_S[2])
    assert torch.equal(at_S[1], at_S[3])
    assert not torch.allclose(at_S[0], at_S[1], atol=1e-3), "G has moved between"


def test_generator_raises_disagreement(tmp_path):
    method, run = create_method(tmp_path, "zskt", lr_G=0.01, student_steps=1)
    T, S = run.teacher.net, copy.deepcopy(run.student).train()
    before, after = generator_reference.measure_training(method, run, lambda x: kl(S(x), T(x)))
    assert after > 1.05 * before


def test_adversarial_term_uses_student(tmp_path):
    """Equal logits have no divergence; those of the student have."""
    method, _ = create_method(tmp_path, "zskt")
    x = method.G(torch.randn(method.n, method.z_dim))
    t = method.T(x)
    assert method.class_mean_kl(t, t).item() == pytest.approx(0, abs=1e-7)
    assert method.class_mean_kl(method.S.forward_frozen(x), t).item() > 1e-4


def test_gradient_norms_are_clipped(tmp_path):
    method, run = create_method(tmp_path, "zskt", max_grad_norm=1e-3)
    method.step()
    for model in run.trainables.values():
        length = math.sqrt(sum(float(p.grad.square().sum()) for p in model.net.parameters()))
        assert length == pytest.approx(1e-3, rel=1e-3)


def test_features_required_by_weight_only(tmp_path):
    assert ZSKT().uses == ("gradients", "features")
    assert ZSKT(attention=0.0).uses == ("gradients",)
    method, _ = create_method(tmp_path / "with", "zskt")
    assert method.pairs == [("body.2", "body.2"), ("body.5", "body.5")]
    method, _ = create_method(tmp_path / "without", "zskt", attention=0.0)
    assert method.pairs == []


def test_stages_match_by_resolution(tmp_path):
    """A student with one more stage and other channels has two resolutions in common."""
    run = tiny.tiny_run(tmp_path, "zskt")
    layers = [nn.Conv2d(3, 5, 3, 1, 1), *(nn.Conv2d(5, 5, 3, 2, 1) for _ in range(2))]
    run.student.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, tiny.CLASSES))
    method = tiny.tiny_method("zskt")
    train(method, run)
    assert method.pairs == [("body.2", "body.1"), ("body.5", "body.2")]


def test_no_common_resolution_raises(tmp_path):
    run = tiny.tiny_run(tmp_path, "zskt")
    run.student.body = nn.Sequential(nn.Conv2d(3, 4, 3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(UsageError, match=r"8x8, 4x4.*3x3"):
        tiny.tiny_method("zskt").setup(run)
    train(tiny.tiny_method("zskt", attention=0.0), run)


def test_kl_div_default_is_class_mean():
    """The published code relies on this default."""
    s, t = torch.randn(6, 10), torch.randn(6, 10)
    by_torch = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="none").mean()
    assert divergence(s, t).item() == pytest.approx(by_torch.item(), rel=1e-5)
    assert kl(s, t).item() == pytest.approx(10 * by_torch.item(), rel=1e-5)
