"""Players: who is moved, who is held still, and what a frozen network lets through."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from torch.optim import SGD, Adam

from compress.engine.place import Place, choose_precision, open_place
from compress.engine.player import Diverged, Frozen, Player, resting
from compress.engine.schedules import constant, cosine
from compress.errors import UsageError

PLACES = [pytest.param(Place(tiny.CPU, precision), id=precision) for precision in ("32", "bf16")]


def player(place: Place, optim=None, schedule=cosine) -> Player:
    return Player("S", tiny.born(3), place, optim or partial(SGD, lr=0.1), schedule)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(4, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", PLACES)
def test_fixed_gives_gradients_to_the_inputs_only(place, x):
    """Also after an ordinary forward: autocast keeps copies of weights, and those of before must not be used."""
    S = player(place)
    S(x)
    x.requires_grad_()
    S.fixed(x).float().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in S.net.parameters())
    assert all(p.requires_grad for p in S.net.parameters())


@pytest.mark.parametrize("place", PLACES)
def test_fixed_answers_and_slopes_as_an_ordinary_forward(place, x):
    one, other = player(place), player(place)
    x.requires_grad_()
    a, b = one.fixed(x), other(x)
    assert torch.equal(a, b)
    slopes = [torch.autograd.grad(y.float().square().sum(), x)[0] for y in (a, b)]
    assert torch.equal(*slopes)
    assert tiny.differences(one.net.state_dict(), other.net.state_dict()) == [], "BatchNorm sees it alike"


@pytest.mark.parametrize("place", PLACES)
def test_an_ordinary_forward_after_fixed_learns(place, x):
    S = player(place)
    S.fixed(x)
    S.minimize(S(x).float().square().mean())
    assert all(p.grad is not None for p in S.net.parameters())


def test_what_was_frozen_in_a_net_stays_frozen_after_fixed(x):
    S = player(PLACES[0].values[0])
    first = next(S.net.parameters())
    first.requires_grad_(False)
    S.fixed(x)
    assert not first.requires_grad
    assert sum(not p.requires_grad for p in S.net.parameters()) == 1


def test_fixed_gives_the_parameters_back_where_the_forward_fails():
    S = player(PLACES[0].values[0])
    with pytest.raises(RuntimeError):
        S.fixed(torch.rand(4, 5, 8, 8))
    assert all(p.requires_grad for p in S.net.parameters())


@pytest.mark.parametrize("place", PLACES)
def test_a_frozen_network_passes_gradients_and_never_changes(place, x):
    net = tiny.born(1)
    before = copy.deepcopy(net.state_dict())
    T = Frozen(net.train(), place)
    x.requires_grad_()
    T(x).float().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert tiny.differences(before, net.state_dict()) == []


def test_minimize_is_a_step_of_the_optimizer_down_the_gradient(x):
    S = player(PLACES[0].values[0], partial(SGD, lr=0.1))
    twin = copy.deepcopy(S.net)
    S.minimize(S(x).square().mean())
    twin(x).square().mean().backward()
    for (name, mine), his in zip(S.net.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, his - 0.1 * his.grad, atol=1e-7), name


def test_gradients_do_not_pile_up_from_step_to_step(x):
    S = player(PLACES[0].values[0], partial(SGD, lr=0.0))
    sizes = []
    for _ in range(2):
        S.minimize(S(x).square().mean())
        sizes.append([p.grad.clone() for p in S.net.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b) for a, b in zip(*sizes, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_refused_before_anything_changes(x, value):
    S = player(PLACES[0].values[0], partial(Adam, lr=0.1))
    before = copy.deepcopy(S.state_dict())
    loss = S(x).sum() * value
    after_forward = copy.deepcopy(S.state_dict())
    with pytest.raises(Diverged, match="the loss of S is"):
        S.minimize(loss)
    assert tiny.differences(after_forward, S.state_dict()) == []
    assert tiny.differences(before["optimizer"], S.state_dict()["optimizer"]) == []


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_move_along_follows_gradients_made_by_hand(precision):
    S = player(Place(tiny.CPU, precision), partial(SGD, lr=0.5), constant)
    before = [p.detach().clone() for p in S.net.parameters()]
    gradients = [torch.full_like(p, 2.0) for p in before]
    S.move_along(gradients)
    assert all(torch.allclose(p, old - 1.0) for p, old in zip(S.net.parameters(), before, strict=True))
    gradients[0].zero_()
    assert next(S.net.parameters()).grad is not gradients[0]


def test_the_learning_rate_is_a_pure_function_of_progress():
    S = player(PLACES[0].values[0], partial(SGD, lr=0.4))
    for progress, factor in ((0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (0.25, 0.8535534), (0.5, 0.5)):
        S.set_progress(progress)
        assert S.optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor, abs=1e-7)


def test_looking_changes_nothing(x):
    S = player(PLACES[0].values[0])
    before = copy.deepcopy(S.net.state_dict())
    answer = S.look(x)
    assert not answer.requires_grad
    assert S.net.training
    assert tiny.differences(before, S.net.state_dict()) == []
    with pytest.raises(ZeroDivisionError), resting(S.net):
        raise ZeroDivisionError
    assert S.net.training, "also where looking fails"


@pytest.mark.parametrize("where", ["parameter", "buffer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_player_knows_whether_it_is_finite(where, value):
    S = player(PLACES[0].values[0])
    assert S.is_finite()
    tensors = list(
        S.net.parameters() if where == "parameter" else (b for b in S.net.buffers() if b.is_floating_point())
    )
    with torch.no_grad():
        tensors[-1].view(-1)[-1] = value
    assert not S.is_finite()


def test_a_players_state_is_net_and_optimizer_and_comes_back_whole(x):
    place = PLACES[1].values[0]
    one, other = player(place, partial(Adam, lr=0.01)), Player("S", tiny.born(8), place, partial(Adam, lr=0.01), cosine)
    for _ in range(2):
        one.minimize(one(x).float().square().mean())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for S in (one, other):
        S.minimize(S(x).float().square().mean())
    assert tiny.differences(one.state_dict(), other.state_dict()) == []


def test_in_float16_a_gradient_that_overflows_moves_nothing_and_lowers_the_scale(x):
    S = player(Place(tiny.CPU, "16"), partial(SGD, lr=0.1))
    S.minimize(S(x).float().square().mean())
    before, scale = copy.deepcopy(dict(S.net.named_parameters())), S.scaler.get_scale()
    S.minimize(S(x).float().square().mean() * 1e30)
    assert tiny.differences(before, dict(S.net.named_parameters())) == []
    assert S.scaler.get_scale() == scale / 2
    assert S.state_dict()["scaler"]["scale"] == scale / 2


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_a_gradient_longer_than_the_clip_is_shortened_to_it_and_keeps_its_direction(x, precision):
    S = player(Place(tiny.CPU, precision), partial(SGD, lr=0.0))
    S.minimize(S(x).float().square().mean())
    whole = flat_gradient(S) / S.scaler.get_scale()
    S.minimize(S(x).float().square().mean(), clip=0.1 * float(whole.norm()))
    short = flat_gradient(S)
    assert float(short.norm()) == pytest.approx(0.1 * float(whole.norm()), rel=1e-3)
    assert float(torch.cosine_similarity(short, whole, dim=0)) > 0.999


@pytest.mark.parametrize("precision", ["32", "16"])
def test_a_clip_longer_than_the_gradient_changes_nothing(x, precision):
    one, other = (player(Place(tiny.CPU, precision), partial(Adam, lr=0.01)) for _ in range(2))
    for S, options in ((one, {}), (other, {"clip": 1e3})):
        S.minimize(S(x).float().square().mean(), **options)
    mine, its = (torch.cat([p.detach().flatten() for p in S.net.parameters()]) for S in (one, other))
    assert torch.allclose(mine, its, rtol=1e-5, atol=1e-7)


def test_those_who_move_together_are_clipped_each_by_itself(x):
    S, R = player(PLACES[0].values[0], partial(SGD, lr=0.0)), player(PLACES[0].values[0], partial(SGD, lr=0.0))
    S.minimize(10 * S(x).square().mean() + R(x).square().mean(), together=[R], clip=1e-3)
    assert [float(flat_gradient(one).norm()) for one in (S, R)] == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_in_float16_a_clipped_gradient_that_overflows_still_moves_nothing_and_lowers_the_scale(x):
    S = player(Place(tiny.CPU, "16"), partial(SGD, lr=0.1))
    before, scale = copy.deepcopy(dict(S.net.named_parameters())), S.scaler.get_scale()
    S.minimize(S(x).float().square().mean() * 1e30, clip=1.0)
    assert tiny.differences(before, dict(S.net.named_parameters())) == []
    assert S.scaler.get_scale() == scale / 2


def flat_gradient(S: Player) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in S.net.parameters() if p.grad is not None])


def test_networks_and_images_are_channels_last():
    place = PLACES[0].values[0]
    S = player(place)
    images = place.images(tiny.Pictures().pixels[:2])
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert S.net.body[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_bytes_become_floats_in_0_to_1():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = PLACES[0].values[0].images(pixels)
    assert torch.equal(images[0, 0].flatten(), torch.arange(256) / 255)


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_single(x):
    S = player(PLACES[1].values[0])
    assert S(x).dtype == torch.bfloat16
    assert {p.dtype for p in S.net.parameters()} == {torch.float32}
    assert player(PLACES[0].values[0])(x).dtype == torch.float32


def test_float16_on_a_cpu_and_a_gpu_that_is_not_there_are_refused():
    with pytest.raises(UsageError, match="four times slower"):
        choose_precision(tiny.CPU, "16")
    with pytest.raises(UsageError, match="--device: found 'tpu9000'"):
        open_place("tpu9000")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="PyTorch sees no GPU here"):
            open_place("cuda")


def test_auto_is_a_precision_that_the_processor_has():
    assert choose_precision(tiny.CPU, "auto") in ("32", "bf16")
    assert choose_precision(tiny.CPU, "bf16") == "bf16"


def test_a_net_without_buffers_plays(x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * tiny.SIZE**2, 2))
    S = Player("S", net, PLACES[0].values[0], partial(SGD, lr=0.1), cosine)
    S.minimize(S(x).square().mean())
    S.align()
    assert S.is_finite()
