"""Trainable and frozen models, and the accelerator."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from torch.optim import SGD, Adam

from compress.engine.accelerator import Accelerator, create_accelerator, resolve_precision
from compress.engine.schedules import constant, cosine
from compress.engine.trainable import DivergedError, FrozenModel, TrainableModel, eval_mode
from compress.errors import UsageError

ACCELERATORS = [pytest.param(Accelerator(tiny.CPU, precision), id=precision) for precision in ("32", "bf16")]


def model(accelerator: Accelerator, optim=None, schedule=cosine) -> TrainableModel:
    return TrainableModel("S", tiny.random_network(3), accelerator, optim or partial(SGD, lr=0.1), schedule)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(4, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_forward_frozen_gradients_reach_inputs_only(accelerator, x):
    """Also after a normal forward pass: autocast caches weights, and must not use that cache."""
    S = model(accelerator)
    S(x)
    x.requires_grad_()
    S.forward_frozen(x).float().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in S.net.parameters())
    assert all(p.requires_grad for p in S.net.parameters())


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_forward_frozen_equals_forward(accelerator, x):
    one, other = model(accelerator), model(accelerator)
    x.requires_grad_()
    a, b = one.forward_frozen(x), other(x)
    assert torch.equal(a, b)
    slopes = [torch.autograd.grad(y.float().square().sum(), x)[0] for y in (a, b)]
    assert torch.equal(*slopes)
    assert tiny.state_differences(one.net.state_dict(), other.net.state_dict()) == []


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_forward_after_forward_frozen_learns(accelerator, x):
    S = model(accelerator)
    S.forward_frozen(x)
    S.optimization_step(S(x).float().square().mean())
    assert all(p.grad is not None for p in S.net.parameters())


def test_forward_frozen_keeps_frozen_parameters(x):
    S = model(ACCELERATORS[0].values[0])
    first = next(S.net.parameters())
    first.requires_grad_(False)
    S.forward_frozen(x)
    assert not first.requires_grad
    assert sum(not p.requires_grad for p in S.net.parameters()) == 1


def test_forward_frozen_restores_after_error():
    S = model(ACCELERATORS[0].values[0])
    with pytest.raises(RuntimeError):
        S.forward_frozen(torch.rand(4, 5, 8, 8))
    assert all(p.requires_grad for p in S.net.parameters())


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_frozen_model_passes_gradients_unchanged(accelerator, x):
    net = tiny.random_network(1)
    before = copy.deepcopy(net.state_dict())
    T = FrozenModel(net.train(), accelerator)
    x.requires_grad_()
    T(x).float().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert tiny.state_differences(before, net.state_dict()) == []


def test_optimization_step_follows_gradient(x):
    S = model(ACCELERATORS[0].values[0], partial(SGD, lr=0.1))
    twin = copy.deepcopy(S.net)
    S.optimization_step(S(x).square().mean())
    twin(x).square().mean().backward()
    for (name, mine), his in zip(S.net.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, his - 0.1 * his.grad, atol=1e-7), name


def test_gradients_do_not_accumulate(x):
    S = model(ACCELERATORS[0].values[0], partial(SGD, lr=0.0))
    sizes = []
    for _ in range(2):
        S.optimization_step(S(x).square().mean())
        sizes.append([p.grad.clone() for p in S.net.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b) for a, b in zip(*sizes, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_loss_changes_nothing(x, value):
    S = model(ACCELERATORS[0].values[0], partial(Adam, lr=0.1))
    before = copy.deepcopy(S.state_dict())
    loss = S(x).sum() * value
    after_forward = copy.deepcopy(S.state_dict())
    with pytest.raises(DivergedError, match="S"):
        S.optimization_step(loss)
    assert tiny.state_differences(after_forward, S.state_dict()) == []
    assert tiny.state_differences(before["optimizer"], S.state_dict()["optimizer"]) == []


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_apply_gradients_copies_gradients(precision):
    S = model(Accelerator(tiny.CPU, precision), partial(SGD, lr=0.5), constant)
    before = [p.detach().clone() for p in S.net.parameters()]
    gradients = [torch.full_like(p, 2.0) for p in before]
    S.apply_gradients(gradients)
    assert all(torch.allclose(p, old - 1.0) for p, old in zip(S.net.parameters(), before, strict=True))
    gradients[0].zero_()
    assert next(S.net.parameters()).grad is not gradients[0]


def test_learning_rate_is_function_of_progress():
    S = model(ACCELERATORS[0].values[0], partial(SGD, lr=0.4))
    for progress, factor in ((0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.25, 0.8535534), (0.5, 0.5)):
        S.set_progress(progress)
        assert S.optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor, abs=1e-7)


def test_predict_changes_nothing(x):
    S = model(ACCELERATORS[0].values[0])
    before = copy.deepcopy(S.net.state_dict())
    output = S.predict(x)
    assert not output.requires_grad
    assert S.net.training
    assert tiny.state_differences(before, S.net.state_dict()) == []
    with pytest.raises(ZeroDivisionError), eval_mode(S.net):
        raise ZeroDivisionError
    assert S.net.training


@pytest.mark.parametrize("where", ["parameter", "buffer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_is_finite_detects_nan_and_inf(where, value):
    S = model(ACCELERATORS[0].values[0])
    assert S.is_finite()
    tensors = list(
        S.net.parameters() if where == "parameter" else (b for b in S.net.buffers() if b.is_floating_point())
    )
    with torch.no_grad():
        tensors[-1].view(-1)[-1] = value
    assert not S.is_finite()


def test_trainable_state_restores_completely(x):
    accelerator = ACCELERATORS[1].values[0]
    one, other = (
        model(accelerator, partial(Adam, lr=0.01)),
        TrainableModel("S", tiny.random_network(8), accelerator, partial(Adam, lr=0.01), cosine),
    )
    for _ in range(2):
        one.optimization_step(one(x).float().square().mean())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for S in (one, other):
        S.optimization_step(S(x).float().square().mean())
    assert tiny.state_differences(one.state_dict(), other.state_dict()) == []


def test_float16_overflow_lowers_scale(x):
    S = model(Accelerator(tiny.CPU, "16"), partial(SGD, lr=0.1))
    S.optimization_step(S(x).float().square().mean())
    before, scale = copy.deepcopy(dict(S.net.named_parameters())), S.scaler.get_scale()
    S.optimization_step(S(x).float().square().mean() * 1e30)
    assert tiny.state_differences(before, dict(S.net.named_parameters())) == []
    assert S.scaler.get_scale() == scale / 2
    assert S.state_dict()["scaler"]["scale"] == scale / 2


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_gradient_clip_keeps_direction(x, precision):
    S = model(Accelerator(tiny.CPU, precision), partial(SGD, lr=0.0))
    S.optimization_step(S(x).float().square().mean())
    whole = flat_gradient(S) / S.scaler.get_scale()
    S.optimization_step(S(x).float().square().mean(), max_grad_norm=0.1 * float(whole.norm()))
    short = flat_gradient(S)
    assert float(short.norm()) == pytest.approx(0.1 * float(whole.norm()), rel=1e-3)
    assert float(torch.cosine_similarity(short, whole, dim=0)) > 0.999


@pytest.mark.parametrize("precision", ["32", "16"])
def test_large_clip_changes_nothing(x, precision):
    one, other = (model(Accelerator(tiny.CPU, precision), partial(Adam, lr=0.01)) for _ in range(2))
    for S, options in ((one, {}), (other, {"max_grad_norm": 1e3})):
        S.optimization_step(S(x).float().square().mean(), **options)
    mine, its = (torch.cat([p.detach().flatten() for p in S.net.parameters()]) for S in (one, other))
    assert torch.allclose(mine, its, rtol=1e-5, atol=1e-7)


def test_joint_models_clip_separately(x):
    S, R = (
        model(ACCELERATORS[0].values[0], partial(SGD, lr=0.0)),
        model(ACCELERATORS[0].values[0], partial(SGD, lr=0.0)),
    )
    S.optimization_step(10 * S(x).square().mean() + R(x).square().mean(), jointly_with=[R], max_grad_norm=1e-3)
    assert [float(flat_gradient(one).norm()) for one in (S, R)] == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_float16_clipped_overflow_lowers_scale(x):
    S = model(Accelerator(tiny.CPU, "16"), partial(SGD, lr=0.1))
    before, scale = copy.deepcopy(dict(S.net.named_parameters())), S.scaler.get_scale()
    S.optimization_step(S(x).float().square().mean() * 1e30, max_grad_norm=1.0)
    assert tiny.state_differences(before, dict(S.net.named_parameters())) == []
    assert S.scaler.get_scale() == scale / 2


def flat_gradient(S: TrainableModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in S.net.parameters() if p.grad is not None])


def test_networks_and_images_channels_last():
    accelerator = ACCELERATORS[0].values[0]
    S = model(accelerator)
    images = accelerator.to_float_images(tiny.InMemoryImages().pixels[:2])
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert S.net.body[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_uint8_images_become_unit_floats():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = ACCELERATORS[0].values[0].to_float_images(pixels)
    assert torch.equal(images[0, 0].flatten(), torch.arange(256) / 255)


def test_bf16_keeps_float32_weights(x):
    S = model(ACCELERATORS[1].values[0])
    assert S(x).dtype == torch.bfloat16
    assert {p.dtype for p in S.net.parameters()} == {torch.float32}
    assert model(ACCELERATORS[0].values[0])(x).dtype == torch.float32


def test_unavailable_device_or_precision_raises():
    with pytest.raises(UsageError, match="16"):
        resolve_precision(tiny.CPU, "16")
    with pytest.raises(UsageError, match="tpu9000"):
        create_accelerator("tpu9000")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cuda"):
            create_accelerator("cuda")


def test_auto_precision_is_supported():
    assert resolve_precision(tiny.CPU, "auto") in ("32", "bf16")
    assert resolve_precision(tiny.CPU, "bf16") == "bf16"


def test_model_without_buffers_trains(x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * tiny.SIZE**2, 2))
    S = TrainableModel("S", net, ACCELERATORS[0].values[0], partial(SGD, lr=0.1), cosine)
    S.optimization_step(S(x).square().mean())
    S.sync_buffers()
    assert S.is_finite()
