"""What begins and ends within one step: drafts, and the ways to use a player without moving it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from torch.optim import SGD, Adam

from compress.engine.place import Place
from compress.engine.player import Diverged, Draft, Player, new_scaler
from compress.engine.schedules import constant

PLACES = [Place(tiny.CPU, precision) for precision in ("32", "bf16", "16")]
HALF = PLACES[2]
each_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.precision)


def player(place: Place, optim=None) -> Player:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    return Player("S", net, place, optim or partial(SGD, lr=0.1), constant)


@pytest.fixture
def x():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@each_place
def test_a_draft_goes_down_the_gradient_as_the_optimizer_alone_would(place):
    target = torch.tensor([1.0, -2.0, 3.0])
    mine, its = (torch.zeros(3, requires_grad=True) for _ in range(2))
    draft, alone = Draft("x", place, Adam([mine], lr=0.1)), Adam([its], lr=0.1)
    for _ in range(30):
        draft.minimize((mine - target).square().sum())
        alone.zero_grad()
        (its - target).square().sum().backward()
        alone.step()
    assert torch.allclose(mine, its, atol=1e-5)


def test_a_loss_that_is_not_finite_is_named_before_anything_moves():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(Diverged, match="the loss of the images is nan"):
        Draft("the images", PLACES[0], SGD([x], lr=1.0)).minimize(x.sum() * float("nan"))
    assert torch.equal(x, torch.ones(2))


@each_place
def test_a_player_may_move_together_with_a_draft_each_by_its_own_optimizer(place, x):
    alone, together = player(place), player(place)
    v = x.clone().requires_grad_()
    alone.minimize(alone(x).float().square().mean())
    draft = Draft("x", place, SGD([v], lr=0.0))
    draft.minimize(together(v).float().square().mean(), together=[together])
    for mine, its in zip(together.net.parameters(), alone.net.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-6)
    assert v.grad is not None
    assert torch.equal(v, x)


def test_in_float16_an_overflow_moves_nobody_lowers_the_scale_and_leaves_no_direction(x):
    S, v, scaler = player(HALF), x.clone().requires_grad_(), new_scaler(HALF)
    before, scale = copy.deepcopy(dict(S.net.named_parameters())), scaler.get_scale()
    draft = Draft("x", HALF, SGD([v], lr=1.0), scaler=scaler)
    draft.minimize(S(v).float().square().mean() * 1e30, together=[S])
    assert tiny.differences(before, dict(S.net.named_parameters())) == []
    assert torch.equal(v, x)
    assert scaler.get_scale() == scale / 2
    assert v.grad is not None
    assert bool(v.grad.isfinite().all())


def test_a_kept_scaler_knows_its_scale_in_the_next_draft():
    scaler = new_scaler(HALF)
    for halvings in (1, 2, 3):
        v = torch.ones(2, requires_grad=True)
        Draft("x", HALF, SGD([v], lr=1.0), scaler=scaler).minimize(v.sum() * 1e36)
        assert scaler.get_scale() == 2.0**16 / 2**halvings


class Two(Place):
    """A place of two processes, of which the other has `spoilt` gradients: what is averaged with them is."""

    spoilt = False

    def average(self, tensors):
        for tensor in tensors:
            tensor += float("nan") if self.spoilt else 0.0


@pytest.mark.parametrize("spoilt", [False, True])
def test_where_one_process_overflows_no_process_moves(spoilt):
    place = Two(tiny.CPU, "16", rank=0, world=2)
    object.__setattr__(place, "spoilt", spoilt)
    v, scaler = torch.ones(2, requires_grad=True), new_scaler(HALF)
    Draft("x", place, SGD([v], lr=0.1), scaler=scaler).minimize(v.square().sum())
    assert torch.equal(v, torch.ones(2)) == spoilt
    assert (scaler.get_scale() == 2.0**15) == spoilt


def test_the_gradients_of_nets_are_averaged_and_those_of_the_rest_are_not(x):
    class Doubling(Place):
        def average(self, tensors):
            for tensor in tensors:
                tensor *= 2

    net, v = nn.Linear(4, 2), x.clone().requires_grad_()
    net(v).square().mean().backward()
    expected, own = [2 * p.grad for p in net.parameters()], v.grad.clone()
    place = Doubling(tiny.CPU, "32")
    Draft("x", place, SGD([*net.parameters(), v], lr=0.0), nets=[net]).minimize(net(v).square().mean())
    assert all(torch.allclose(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))
    assert torch.allclose(v.grad, own)


# A player.


@each_place
def test_a_player_moves_along_gradients_made_by_hand(place):
    S = player(place, partial(SGD, lr=0.5))
    before = [p.detach().clone() for p in S.net.parameters()]
    gradients = [torch.full_like(p, 0.2) for p in before]
    S.move_along(gradients)
    for old, new in zip(before, S.net.parameters(), strict=True):
        assert torch.allclose(new, old - 0.1, atol=1e-6)
    S.net[0].weight.grad.zero_()
    assert float(gradients[0][0, 0]) == pytest.approx(0.2), "they are copied, and the giver's stay as they are"


def test_moving_along_a_players_own_gradient_is_minimizing(x):
    one, other = (player(PLACES[0], partial(Adam, lr=0.01)) for _ in range(2))
    for _ in range(3):
        loss = one(x).square().mean()
        one.move_along(list(torch.autograd.grad(loss, list(one.net.parameters()))))
        other.minimize(other(x).square().mean())
    assert tiny.differences(one.state_dict(), other.state_dict()) == []


def test_hand_made_gradients_are_averaged_over_the_processes():
    class Halving(Place):
        def average(self, tensors):
            for tensor in tensors:
                tensor /= 2

    S = player(Halving(tiny.CPU, "32"), partial(SGD, lr=1.0))
    before = [p.detach().clone() for p in S.net.parameters()]
    S.move_along([torch.ones_like(p) for p in before])
    assert all(torch.allclose(p, old - 0.5) for p, old in zip(S.net.parameters(), before, strict=True))


@each_place
def test_at_rest_nothing_of_a_player_changes_and_gradients_reach_the_image(place, x):
    S, v = player(place), x.clone().requires_grad_()
    before = copy.deepcopy(S.state_dict())
    answer = S.at_rest(v)
    answer.float().square().sum().backward()
    assert tiny.differences(before, S.state_dict()) == []
    assert all(p.grad is None and p.requires_grad for p in S.net.parameters())
    assert v.grad is not None
    assert v.grad.abs().sum() > 0
    assert S.net.training
    S.net.eval()
    with place.autocast():
        assert torch.equal(answer, S.net(x)), "it is the answer of eval mode"


def test_a_player_at_rest_learns_again_after_an_error(x):
    S = player(replace(PLACES[0]))
    with pytest.raises(RuntimeError):
        S.at_rest(x[:, :2])
    assert S.net.training
    assert all(p.requires_grad for p in S.net.parameters())
