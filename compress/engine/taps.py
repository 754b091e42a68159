"""Looking inside a network by hooks, so that no model needs surgery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Moments = tuple[Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"]]


def remembering(net: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of `net` that keep statistics, in their order."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


@contextmanager
def batchnorm_moments(net: nn.Module) -> Iterator[list[Moments]]:
    """While open, every forward of `net` appends, for each of its BatchNorm layers in order, what comes in and what is
    remembered: (mean, variance, running mean, running variance), each [c]. Gradients reach the first two.
    """
    found: list[Moments] = []
    layers = remembering(net)
    hooks = [layer.register_forward_pre_hook(partial(_note, found)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Seen:
    """What comes into a BatchNorm layer over many batches, and how far that is from what the layer remembers."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer, self.count = layer, 0
        self.total = self.squares = torch.zeros(layer.num_features, dtype=torch.float64)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().movedim(1, -1).reshape(-1, self.layer.num_features).double().cpu()
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    def shift(self) -> float:
        """Mean over channels of KL(N(μ, σ²) ‖ N(μ̂, σ̂²)) in nats; μ̂, σ̂² from training, μ, σ² of what was seen; >= 0."""
        assert self.layer.running_mean is not None
        assert self.layer.running_var is not None
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(self.layer.eps)
        old_mean, old = self.layer.running_mean.double().cpu(), self.layer.running_var.double().cpu() + self.layer.eps
        return float(((old / variance).log() + (variance + (mean - old_mean).square()) / old - 1).mean() / 2)


@contextmanager
def last_batchnorm(net: nn.Module) -> Iterator[Seen | None]:
    """While open, looks at what comes into the last BatchNorm layer of `net`; None where it has none."""
    layers = remembering(net)
    if not layers:
        yield None
        return
    seen = Seen(layers[-1])
    hook = layers[-1].register_forward_pre_hook(seen)
    try:
        yield seen
    finally:
        hook.remove()


def _note(found: list[Moments], layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, _BatchNorm)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, second = central_moments(inputs[0], layer.running_mean)
    found.append((mean + layer.running_mean, second - mean.square(), layer.running_mean, layer.running_var))


def central_moments(x: Tensor, centre: Float[Tensor, " c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """(mean of x − centre, mean of (x − centre)²) a channel (dim 1), over all else.

    By matrix products, which keep the precision of x for the sums' terms and are three times as fast on bf16 as
    reductions; centring first keeps the difference of squares harmless.
    """
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]) - centre.to(x.dtype)
    weight = torch.full((1, len(rows)), 1 / len(rows), dtype=x.dtype, device=x.device)
    mean = (weight @ rows)[0]
    second = torch.diagonal(rows.T @ (rows / len(rows)))
    return mean.float(), second.float()
