"""Capture activations and BatchNorm statistics with hooks, so that no model has to be modified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from compress.engine.micro_batch import Capture
from compress.engine.trainable import eval_mode
from compress.errors import UsageError

#: (mean, variance, running mean, running variance) of a layer's inputs, each [c]
BatchNormStats = tuple[Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, " c"]]
Shape = tuple[int, ...]


@contextmanager
def capture_activations(net: nn.Module, *paths: str, capture_inputs: bool = False) -> Iterator[dict[str, Tensor]]:
    """Capture the outputs of modules during every forward pass of `net`; gradients pass.

    Args:
        net: The network.
        *paths: Module paths.
        capture_inputs: Captures the modules' inputs instead.

    Yields:
        Module path -> activation of the latest forward pass.
    """
    captured: dict[str, Tensor] = {}

    def record(path: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        capture.record((path, inputs[0] if capture_inputs else output))

    def register_hooks() -> list[RemovableHandle]:
        return [net.get_submodule(path).register_forward_hook(partial(record, path)) for path in paths]

    capture = Capture[tuple[str, Tensor]](
        net, register_hooks, lambda entry: captured.update([entry]), _merge_activations
    )
    with capture:
        yield captured


def _merge_activations(entries: Sequence[tuple[str, Tensor]], _: Sequence[float]) -> tuple[str, Tensor]:
    return entries[0][0], torch.cat([tensor for _, tensor in entries])


# BatchNorm statistics.


def batchnorm_layers(net: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of `net` that track running statistics, in order."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


@contextmanager
def capture_batchnorm_stats(net: nn.Module) -> Iterator[list[BatchNormStats]]:
    """Capture the input statistics of each BatchNorm layer during every forward pass of `net`.

    Yields:
        List that grows by one entry per layer and forward pass. Gradients reach the mean and the variance.
    """
    captured: list[BatchNormStats] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, second = compute_central_moments(inputs[0], layer.running_mean)
        capture.record((mean + layer.running_mean, second - mean.square(), layer.running_mean, layer.running_var))

    def register_hooks() -> list[RemovableHandle]:
        return [layer.register_forward_pre_hook(record) for layer in batchnorm_layers(net)]

    capture = Capture[BatchNormStats](net, register_hooks, captured.append, _merge_stats)
    with capture:
        yield captured


def _merge_stats(parts: Sequence[BatchNormStats], shares: Sequence[float]) -> BatchNormStats:
    """Return the statistics of a batch from those of its parts."""
    _, _, running_mean, running_variance = parts[0]
    means, variances = (torch.stack([part[i] for part in parts]) for i in range(2))
    weights = torch.tensor(shares, dtype=means.dtype, device=means.device)
    mean = weights @ means
    return mean, weights @ (variances + (means - mean).square()), running_mean, running_variance


def compute_central_moments(x: Tensor, center: Float[Tensor, " c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Return (mean of x - center, mean of (x - center)^2) per channel (dim 1).

    Matrix products are three times as fast on bf16 as reductions and accumulate in higher precision. Centering first
    avoids cancellation in the variance.
    """
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]) - center.to(x.dtype)
    weight = torch.full((1, len(rows)), 1 / len(rows), dtype=x.dtype, device=x.device)
    mean = (weight @ rows)[0]
    second = torch.diagonal(rows.T @ (rows / len(rows)))
    return mean.float(), second.float()


class RunningStats:
    """Exponential moving averages of captured BatchNorm input statistics.

    Register it with the run, so that checkpoints contain it.

    Args:
        decay: Share of the old average that each batch keeps.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []

    def blend(self, stats: list[BatchNormStats]) -> list[BatchNormStats]:
        """Return the averages as they would be after this batch; gradients reach the batch. Changes nothing."""
        if not self.means:
            return stats
        old = zip(self.means, self.variances, strict=True)
        return [
            (m.lerp(mean.to(m), self.decay), v.lerp(variance.to(v), self.decay), running_mean, running_variance)
            for (m, v, running_mean, running_variance), (mean, variance) in zip(stats, old, strict=True)
        ]

    def update(self, stats: list[BatchNormStats]) -> None:
        """Include a batch in the averages."""
        blended = self.blend(stats)
        self.means, self.variances = [m.detach() for m, *_ in blended], [v.detach() for _, v, *_ in blended]

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"means": self.means, "variances": self.variances}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.means, self.variances = list(state["means"]), list(state["variances"])


@contextmanager
def capture_instance_means(net: nn.Module, *paths: str) -> Iterator[list[Float[Tensor, "n c"]]]:
    """Capture the mean over positions of each image's activations, during every forward pass of `net`.

    Args:
        net: The network.
        *paths: Modules whose outputs are averaged; without any, the inputs of all BatchNorm layers.

    Yields:
        List that grows by one entry [n, c] per module and forward pass; gradients pass.
    """
    captured: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = output if paths else inputs[0]
        capture.record(x.flatten(2).mean(2, dtype=torch.float32) if x.ndim > 2 else x.float())

    def register_hooks() -> list[RemovableHandle]:
        layers = [net.get_submodule(path) for path in paths] if paths else batchnorm_layers(net)
        return [layer.register_forward_hook(record) for layer in layers]

    capture = Capture[Tensor](net, register_hooks, captured.append, lambda parts, _: torch.cat(list(parts)))
    with capture:
        yield captured


class InputStatistics:
    """Statistics of a BatchNorm layer's inputs over many batches."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer, self.count = layer, 0
        self.total = self.squares = torch.zeros(layer.num_features, dtype=torch.float64)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().movedim(1, -1).reshape(-1, self.layer.num_features).double().cpu()
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    def kl_divergence(self) -> float:
        """Return the divergence of these inputs from the layer's running statistics.

        Mean over channels of KL(N(μ, σ²) ‖ N(μ̂, σ̂²)) in nats, with μ̂, σ̂² from training; >= 0.
        """
        assert self.layer.running_mean is not None
        assert self.layer.running_var is not None
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(self.layer.eps)
        old_mean, old = self.layer.running_mean.double().cpu(), self.layer.running_var.double().cpu() + self.layer.eps
        return float(((old / variance).log() + (variance + (mean - old_mean).square()) / old - 1).mean() / 2)


@contextmanager
def capture_last_batchnorm(net: nn.Module) -> Iterator[InputStatistics | None]:
    """Collect statistics of the inputs of the last BatchNorm layer of `net`; None if it has none."""
    layers = batchnorm_layers(net)
    if not layers:
        yield None
        return
    statistics = InputStatistics(layers[-1])
    hook = layers[-1].register_forward_pre_hook(statistics)
    try:
        yield statistics
    finally:
        hook.remove()


# Layers found by a forward pass.


def find_stages(net: nn.Module, images: Float[Tensor, "n 3 h w"]) -> dict[str, Shape]:
    """Find the last module of each resolution.

    Among all modules whose output has the same height and width, takes the least nested one, and among those the last:
    `layer2` of a ResNet, not a convolution within it. Runs one forward pass in eval mode.

    Returns:
        Module path -> output shape [c, h, w], in forward order.
    """
    outputs: list[tuple[str, Shape]] = []

    def record(path: str, _: nn.Module, __: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            outputs.append((path, tuple(output.shape[1:])))

    with _body_hooks(net, record):
        net(images)
    stages: dict[Shape, tuple[str, Shape]] = {}
    for path, shape in outputs:
        known = stages.get(shape[1:])
        if known is None or path.count(".") <= known[0].count("."):
            stages[shape[1:]] = path, shape
    order = {path: i for i, (path, _) in enumerate(outputs)}
    return dict(sorted(stages.values(), key=lambda stage: order[stage[0]]))


def find_classifier(net: nn.Module, images: Float[Tensor, "n 3 h w"]) -> tuple[str, int]:
    """Find the last linear layer, whose inputs are the penultimate features.

    Runs one forward pass in eval mode.

    Returns:
        Module path and number of input features.

    Raises:
        UsageError: If the network has no linear layer.
    """
    layers: list[tuple[str, int]] = []

    def record(path: str, module: nn.Module, _: tuple[Tensor, ...], output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, Tensor) and output.ndim == 2:
            layers.append((path, module.in_features))

    with _body_hooks(net, record):
        net(images)
    if not layers:
        raise UsageError(
            "found a network without a linear layer, expected one with penultimate features; choose another method "
            "(kd and mosaic work without) or another network."
        )
    return layers[-1]


@contextmanager
def _body_hooks(net: nn.Module, record: Callable[[str, nn.Module, tuple[Tensor, ...], object], None]) -> Iterator[None]:
    """Call `record` for every module inside the body of `net`, in eval mode and without gradients."""
    body = getattr(net, "body", net)
    start = "body." if body is not net else ""
    named = ((path, module) for path, module in body.named_modules() if path)
    hooks = [module.register_forward_hook(partial(record, start + path)) for path, module in named]
    try:
        with eval_mode(net):
            yield
    finally:
        for hook in hooks:
            hook.remove()
