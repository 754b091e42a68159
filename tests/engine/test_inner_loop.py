"""Inner loops, given gradients, and forward passes that change nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from torch.optim import SGD, Adam

from compress.engine.accelerator import Accelerator
from compress.engine.schedules import constant
from compress.engine.trainable import DivergedError, InnerLoop, TrainableModel, create_grad_scaler

ACCELERATORS = [Accelerator(tiny.CPU, precision) for precision in ("32", "bf16", "16")]
HALF = ACCELERATORS[2]
each_accelerator = pytest.mark.parametrize("accelerator", ACCELERATORS, ids=lambda accelerator: accelerator.precision)


def model(accelerator: Accelerator, optim=None) -> TrainableModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    return TrainableModel("S", net, accelerator, optim or partial(SGD, lr=0.1), constant)


@pytest.fixture
def x():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@each_accelerator
def test_inner_loop_matches_optimizer(accelerator):
    target = torch.tensor([1.0, -2.0, 3.0])
    mine, its = (torch.zeros(3, requires_grad=True) for _ in range(2))
    loop, alone = InnerLoop("x", accelerator, Adam([mine], lr=0.1)), Adam([its], lr=0.1)
    for _ in range(30):
        loop.optimization_step((mine - target).square().sum())
        alone.zero_grad()
        (its - target).square().sum().backward()
        alone.step()
    assert torch.allclose(mine, its, atol=1e-5)


def test_inner_loop_non_finite_loss_raises():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(DivergedError, match="the images"):
        InnerLoop("the images", ACCELERATORS[0], SGD([x], lr=1.0)).optimization_step(x.sum() * float("nan"))
    assert torch.equal(x, torch.ones(2))


@each_accelerator
def test_inner_loop_steps_jointly_with_model(accelerator, x):
    alone, together = model(accelerator), model(accelerator)
    v = x.clone().requires_grad_()
    alone.optimization_step(alone(x).float().square().mean())
    loop = InnerLoop("x", accelerator, SGD([v], lr=0.0))
    loop.optimization_step(together(v).float().square().mean(), jointly_with=[together])
    for mine, its in zip(together.net.parameters(), alone.net.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-6)
    assert v.grad is not None
    assert torch.equal(v, x)


def test_inner_loop_float16_overflow_skips_step(x):
    S, v, scaler = model(HALF), x.clone().requires_grad_(), create_grad_scaler(HALF)
    before, scale = copy.deepcopy(dict(S.net.named_parameters())), scaler.get_scale()
    loop = InnerLoop("x", HALF, SGD([v], lr=1.0), scaler=scaler)
    loop.optimization_step(S(v).float().square().mean() * 1e30, jointly_with=[S])
    assert tiny.state_differences(before, dict(S.net.named_parameters())) == []
    assert torch.equal(v, x)
    assert scaler.get_scale() == scale / 2
    assert v.grad is not None
    assert bool(v.grad.isfinite().all())


def test_inner_loop_keeps_scaler_scale():
    scaler = create_grad_scaler(HALF)
    for halvings in (1, 2, 3):
        v = torch.ones(2, requires_grad=True)
        InnerLoop("x", HALF, SGD([v], lr=1.0), scaler=scaler).optimization_step(v.sum() * 1e36)
        assert scaler.get_scale() == 2.0**16 / 2**halvings


class OverflowingPeer(Accelerator):
    """Two processes, of which the other one has an overflow."""

    overflow = False

    def all_reduce_mean(self, tensors):
        for tensor in tensors:
            tensor += float("nan") if self.overflow else 0.0


@pytest.mark.parametrize("overflow", [False, True])
def test_inner_loop_shares_overflow_between_processes(overflow):
    accelerator = OverflowingPeer(tiny.CPU, "16", rank=0, world_size=2)
    object.__setattr__(accelerator, "overflow", overflow)
    v, scaler = torch.ones(2, requires_grad=True), create_grad_scaler(HALF)
    InnerLoop("x", accelerator, SGD([v], lr=0.1), scaler=scaler).optimization_step(v.square().sum())
    assert torch.equal(v, torch.ones(2)) == overflow
    assert (scaler.get_scale() == 2.0**15) == overflow


def test_inner_loop_averages_gradients_of_nets(x):
    class Doubling(Accelerator):
        def all_reduce_mean(self, tensors):
            for tensor in tensors:
                tensor *= 2

    net, v = nn.Linear(4, 2), x.clone().requires_grad_()
    net(v).square().mean().backward()
    expected, own = [2 * p.grad for p in net.parameters()], v.grad.clone()
    accelerator = Doubling(tiny.CPU, "32")
    InnerLoop("x", accelerator, SGD([*net.parameters(), v], lr=0.0), nets=[net]).optimization_step(
        net(v).square().mean()
    )
    assert all(torch.allclose(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))
    assert torch.allclose(v.grad, own)


# Trainable models.


def test_apply_gradients_equals_optimization_step(x):
    one, other = (model(ACCELERATORS[0], partial(Adam, lr=0.01)) for _ in range(2))
    for _ in range(3):
        loss = one(x).square().mean()
        one.apply_gradients(list(torch.autograd.grad(loss, list(one.net.parameters()))))
        other.optimization_step(other(x).square().mean())
    assert tiny.state_differences(one.state_dict(), other.state_dict()) == []


def test_apply_gradients_averages_over_processes():
    class Halving(Accelerator):
        def all_reduce_mean(self, tensors):
            for tensor in tensors:
                tensor /= 2

    S = model(Halving(tiny.CPU, "32"), partial(SGD, lr=1.0))
    before = [p.detach().clone() for p in S.net.parameters()]
    S.apply_gradients([torch.ones_like(p) for p in before])
    assert all(torch.allclose(p, old - 0.5) for p, old in zip(S.net.parameters(), before, strict=True))


@each_accelerator
def test_forward_eval_changes_nothing(accelerator, x):
    S, v = model(accelerator), x.clone().requires_grad_()
    before = copy.deepcopy(S.state_dict())
    output = S.forward_eval(v)
    output.float().square().sum().backward()
    assert tiny.state_differences(before, S.state_dict()) == []
    assert all(p.grad is None and p.requires_grad for p in S.net.parameters())
    assert v.grad is not None
    assert v.grad.abs().sum() > 0
    assert S.net.training
    S.net.eval()
    with accelerator.autocast():
        assert torch.equal(output, S.net(x))


def test_forward_eval_restores_training_after_error(x):
    S = model(replace(ACCELERATORS[0]))
    with pytest.raises(RuntimeError):
        S.forward_eval(x[:, :2])
    assert S.net.training
    assert all(p.requires_grad for p in S.net.parameters())
