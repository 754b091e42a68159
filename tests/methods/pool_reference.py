"""References for methods with an image pool: the published step in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from generator_reference import kl
from torch import Tensor, nn
from torch.optim import SGD

from compress.engine.augmentation import random_crop_flip
from compress.engine.run import Run

STEPS = 5
Losses = dict[str, float]


class PoolReference:
    """T and S of a run in float64; S trains on images of the run's pool as in the authors' code."""

    def __init__(self, method: Any, run: Run) -> None:
        self.m, self.run, self.n = method, run, run.batch_size
        self.T = copy.deepcopy(run.teacher.net).double().requires_grad_(True)
        self.S = copy.deepcopy(run.student).double().train()
        self.optimizer = SGD(self.S.parameters(), lr=method.lr, momentum=0.9, weight_decay=method.weight_decay)

    def forward_eval(self, x: Tensor) -> Tensor:
        """Forward of the student in eval mode."""
        self.S.eval()
        output = self.S(x)
        self.S.train()
        return output

    def train_student(self, step: int) -> float:
        pixels = self.m.pool.pixels
        x = random_crop_flip(pixels[torch.randint(len(pixels), (self.n,))].float() / 255).double()
        self.optimizer.param_groups[0]["lr"] = self.m.lr * (1 + math.cos(math.pi * step / STEPS)) / 2
        with torch.no_grad():
            t = self.T(x)
        loss = kl(self.S(x), t, self.m.temperature)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def forward_with_bn_inputs(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the output, and the inputs of every BatchNorm layer."""
    inside: list[Tensor] = []
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(lambda _, inputs, __: inside.append(inputs[0])) for layer in layers]
    output = net(x)
    for hook in hooks:
        hook.remove()
    return output, inside


def bn_statistics(inside: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1, correction=0)) for x in inside]


def bn_distance(net: nn.Module, stats: list[tuple[Tensor, Tensor]]) -> Tensor:
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    pairs = zip(layers, stats, strict=True)
    return sum((l.running_mean - m).norm() + (l.running_var - v).norm() for l, (m, v) in pairs)


def agreement_kl(s: Tensor, t: Tensor) -> Tensor:
    """The decision-adversarial term with opposite sign."""
    mask = (s.max(1)[1] == t.max(1)[1]).double()
    return (F.kl_div(s.log_softmax(1), t.softmax(1), reduction="none").sum(1) * mask).mean()


def assert_same_steps(
    method: Any, run: Run, reference: PoolReference, synthesize: Callable[[PoolReference], tuple[float, Tensor, Tensor]]
) -> None:
    """Compare losses, images and weights of STEPS steps of `method` and of the published ones on the same noise.

    Args:
        synthesize: Returns the lowest loss, its images [n, 3, h, w] and their classes.
    """
    pool, made = method.pool, 0
    for i in range(STEPS):
        state = torch.get_rng_state()
        run.set_progress(i / STEPS)
        run.step = i
        mine = {name: loss.item() for name, loss in method.step().items()}
        torch.set_rng_state(state)
        if "G" in mine:
            loss, images, y = synthesize(reference)
            assert mine["G"] == pytest.approx(loss, rel=1e-4)
            assert torch.equal(pool.labels[made:], y)
            off = (pool.pixels[made:].double() - images.detach().clamp(0, 1) * 255).abs()
            assert (off < 0.51).double().mean() > 0.99, "rounded to 8 bits"
            assert off.mean() < 0.26
            made = len(pool)
        if "S" in mine:
            # The last bit of a float32 probability is 1.2e-7, and the divergence is multiplied by 400.
            assert mine["S"] == pytest.approx(reference.train_student(i), rel=1e-4, abs=5e-5)
    assert_near(run.student, reference.S)


def assert_near(mine: nn.Module, his: nn.Module) -> None:
    """Compare most weights, and the norm: Adam can turn the rounding of a gradient near 0 into a whole step."""
    a, b = (torch.cat([v.reshape(-1).double() for v in net.state_dict().values()]) for net in (mine, his))
    assert torch.isclose(a, b, rtol=1e-4, atol=1e-5).double().mean() > 0.99
    assert float((a - b).norm() / b.norm()) < 2e-4
