"""Steps in micro-batches against steps of whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from contract import assert_resumes_exactly
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.engine.accelerator import Accelerator
from compress.engine.micro_batch import describe_micro_batch
from compress.engine.run import Run
from compress.engine.trainable import TrainableModel
from compress.errors import CompressError
from compress.methods import METHODS
from profiles.latency.tensor_memory import LiveTensorTracker

#: settings that bring hooks and copies of networks into the step; Adam's first step makes small gradients large
VARIANTS: dict[str, dict[str, Any]] = {"mosaic": {"bn": 1.0, "meta_steps": 2, "ema_G": 0.5, "lr_G": 1e-6}}


def freeze_batchnorm(net: nn.Module) -> None:
    """Let BatchNorm normalize by its running statistics, so that images do not depend on each other."""
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval().train = lambda mode=True, layer=layer: layer  # pyright: ignore[reportAttributeAccessIssue]


def step_once(folder: Path, name: str, task: str, micro_batch: int | None, **settings: Any) -> tuple[dict, Run]:
    torch.manual_seed(3)
    run = tiny.tiny_run(folder, name, task=task, accelerator=Accelerator(tiny.CPU, "32", micro_batch=micro_batch))
    if name in ("balanced", "dfnd"):
        tiny.balance_predictions(run.teacher)
    method = tiny.tiny_method(name, **settings)
    method.setup(run)
    for model in run.trainables.values():
        freeze_batchnorm(model.net)
    if getattr(method, "ema", None) is not None:
        freeze_batchnorm(method.ema.net)
    if hasattr(method, "create_fresh_generator"):
        create = method.create_fresh_generator

        def create_frozen() -> nn.Module:
            freeze_batchnorm(net := create())
            return net

        method.create_fresh_generator = create_frozen
    losses = method.step()
    run.close()
    return losses, run


CASES = [(name, task) for name, kind in METHODS.items() for task in kind.tasks]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_step_equals_that_of_the_whole_batch(name: str, task: str, tmp_path: Path) -> None:
    settings = VARIANTS.get(name, {}) if task == "classification" else {}
    whole, expected = step_once(tmp_path / "whole", name, task, None, **settings)
    parts, run = step_once(tmp_path / "parts", name, task, 3, **settings)
    for loss, value in whole.items():
        assert torch.allclose(parts[loss], value, rtol=1e-6, atol=1e-6), loss
    for player, model in run.trainables.items():
        reference = dict(expected.trainables[player].net.named_parameters())
        for key, parameter in model.net.named_parameters():
            gradient = reference[key].grad
            if gradient is None or parameter.grad is None:
                assert gradient is parameter.grad
                continue
            largest = max(1.0, float(gradient.abs().max()))
            assert torch.allclose(parameter.grad, gradient, rtol=0, atol=4e-6 * largest), (player, key)
            if isinstance(model.optimizer, torch.optim.SGD):
                assert torch.allclose(parameter, reference[key], rtol=0, atol=1e-6 * largest), (player, key)


def model_in_parts(net: nn.Module, size: int | None) -> TrainableModel:
    accelerator = Accelerator(tiny.CPU, "32", micro_batch=size)
    return TrainableModel("S", net, accelerator, lambda p: torch.optim.SGD(p, lr=0.1), lambda _: 1.0)


def test_batchnorm_counts_each_part_once() -> None:
    """The statistics are those of a loop over the parts; computing a part again changes nothing."""
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model, loop = (model_in_parts(tiny.random_network(2), size) for size in (3, None))
    loss = model(x).square().mean()
    model.optimization_step(loss)
    expected = sum(loop(part).square().sum() for part in x.split(3)) / 6 / tiny.CLASSES
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-6)
    for (key, buffer), (_, other) in zip(model.net.named_buffers(), loop.net.named_buffers(), strict=True):
        assert torch.equal(buffer, other), key
    for (key, parameter), (_, other) in zip(model.net.named_parameters(), loop.net.named_parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-4, atol=1e-6), key


def test_part_is_computed_again_in_its_mode() -> None:
    """Gradients of `forward_eval` reach the input only, although the network trains again when they are computed."""
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for size in (None, 2):
        leaf, model = x.clone().requires_grad_(), model_in_parts(tiny.random_network(2), size)
        model.forward_eval(leaf).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        assert model.net.training
        assert all(p.requires_grad and p.grad is None for p in model.net.parameters())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_dropout_repeats_its_masks() -> None:
    """Where an output is 0, so is its gradient."""
    x = torch.ones(8, 4, requires_grad=True)
    output = Accelerator(tiny.CPU, "32", micro_batch=2).forward(nn.Dropout(0.5), x)
    torch.rand(3)
    output.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, output.detach())
    assert 0 < (output == 0).sum() < output.numel()


def test_only_one_part_is_in_memory() -> None:
    net, x = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8))), torch.rand(1024, 64)
    peaks = []
    for size in (None, 512, 128):
        with LiveTensorTracker() as live:
            Accelerator(tiny.CPU, "32", micro_batch=size).forward(net, x).sum().backward()
        peaks.append(live.peak)
    assert peaks[0] > 1.3 * peaks[1] > 1.3 * peaks[2]


@pytest.mark.parametrize("images", [1, 3, 5, 7])
def test_no_part_has_one_image(images: int) -> None:
    sizes: list[int] = []
    net = nn.Identity()
    net.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    x = torch.rand(images, 2)
    assert torch.equal(Accelerator(tiny.CPU, "32", micro_batch=2).forward(net, x), x)
    assert sum(sizes) == images
    assert images == 1 or min(sizes) >= 2


def test_output_without_rows_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    with pytest.raises(CompressError):
        Accelerator(tiny.CPU, "32", micro_batch=2).forward(Mean(), torch.rand(4, 2))


def test_run_in_micro_batches_resumes_exactly(tmp_path: Path) -> None:
    accelerator = Accelerator(tiny.CPU, "32", micro_batch=3)
    assert_resumes_exactly(tmp_path, "mosaic", "32", accelerator=accelerator)


def test_sentence_names_what_differs() -> None:
    sentence = describe_micro_batch(4, 16, {"S": tiny.random_network(2), "H": nn.Sequential(nn.Dropout(), nn.ReLU())})
    assert "in S" in sentence
    assert "in H" in sentence
    assert "except" not in describe_micro_batch(4, 16, {"H": nn.ReLU()})
