"""References for methods with a generator: the published step in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.engine.run import Run

STEPS = 3
Losses = dict[str, Tensor]


class Twins:
    """T, G and S of a run in float64; nothing is frozen, and unused gradients are discarded.

    Args:
        optimizers: Name -> function from parameters to an optimizer.
    """

    def __init__(self, method: Any, run: Run, optimizers: dict[str, Callable[..., Optimizer]]) -> None:
        self.m = method
        self.T = copy.deepcopy(run.teacher.net).double().requires_grad_(True)
        self.G, self.S = (copy.deepcopy(run.trainables[name].net).double().train() for name in "GS")
        self.optimizers = {name: make(list(getattr(self, name).parameters())) for name, make in optimizers.items()}
        self.rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def noise(self) -> Tensor:
        return torch.randn(self.m.n, self.m.z_dim).double()

    def decay_rates(self, progress: float, names: str) -> None:
        for name in names:
            self.optimizers[name].param_groups[0]["lr"] = self.rates[name] * (1 + math.cos(math.pi * progress)) / 2

    def update(self, name: str, loss: Tensor, *, clip: float | None = None) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            gradients = [p.grad for p in getattr(self, name).parameters()]
            length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            for gradient in gradients:
                gradient *= min(1.0, clip / length)
        self.optimizers[name].step()


def kl(s: Tensor, t: Tensor, T: float = 1.0) -> Tensor:
    return F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean") * T * T


def create_method(folder: Path, name: str, *, task: str = "classification", **settings: Any) -> tuple[Any, Run]:
    """Set up a method on a run, with the initial random state."""
    method, run = tiny.tiny_method(name, **settings), tiny.tiny_run(folder, name, steps=STEPS, task=task)
    run.seed_all()
    method.setup(run)
    return method, run


def assert_same_steps(
    method: Any, run: Run, twins: Twins, step: Callable[[Twins], Losses], *, falling: str,
    noisy: tuple[str, ...] = (), remembered: bool = True,
) -> None:  # fmt: skip
    """Compare losses and final weights of STEPS steps of `method` and of `step` on the same noise.

    Args:
        falling: Models with a cosine learning rate.
        noisy: Weights of S whose gradient is only rounding noise.
        remembered: Compare G's BatchNorm statistics too.
    """
    for i in range(STEPS):
        state = torch.get_rng_state()
        run.set_progress(i / STEPS)
        mine = method.step()
        torch.set_rng_state(state)
        twins.decay_rates(i / STEPS, falling)
        for name, his in step(twins).items():
            assert mine[name].item() == pytest.approx(his.item(), rel=5e-5, abs=1e-6), (i, name)
    # Adam can turn the rounding of a gradient near 0 into a whole step, so compare most weights, and the norm.
    for name in "GS":
        mine, his = run.trainables[name].net.state_dict(), getattr(twins, name).state_dict()
        left_out = noisy if name == "S" else () if remembered else tuple(dict(twins.G.named_buffers()))
        a, b = (torch.cat([v.reshape(-1).double() for k, v in one.items() if k not in left_out]) for one in (mine, his))
        assert torch.isclose(a, b, rtol=1e-4, atol=1e-5).double().mean() > 0.99, name
        assert float((a - b).norm() / b.norm()) < 2e-4, name


def measure_training(
    method: Any, run: Run, measure: Callable[[Tensor], Tensor], steps: int = 12
) -> tuple[float, float]:
    """Return `measure` of G's images of fixed noise, before and after some steps without student updates."""
    monkeypatch = pytest.MonkeyPatch()
    z = run.fixed_noise(64, method.z_dim)

    def now() -> float:
        G = copy.deepcopy(method.G.net).train()
        with torch.no_grad():
            return measure(G(z)).item()

    with monkeypatch.context() as patch:
        patch.setattr(method.S, "optimization_step", lambda *_, **__: None)
        before = now()
        for _ in range(steps):
            method.step()
    return before, now()


def inputs_of(net: nn.Module) -> list[Tensor]:
    """Return a list that receives the inputs of every later forward pass of `net`."""
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen
