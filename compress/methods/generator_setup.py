"""The generator of a method, from its settings."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from compress.engine.run import Run
from compress.models.generators import build_generator, square_side, standardize_output


class GeneratorSettings(Protocol):
    """Settings of a method with a generator."""

    generator: str | None
    z_dim: int
    width_G: int


def create_generator(method: GeneratorSettings, run: Run, *, small: str = "small") -> nn.Module:
    """Build G for the run's image size and channels.

    Args:
        method: Its setting `generator` selects the architecture.
        run: The run.
        small: Default architecture for images of up to 64 pixels; above, it is `deep`.

    Raises:
        UsageError: If the images are not square.
    """
    size = square_side(run.task.image_size)
    kind = method.generator or (small if size <= 64 else "deep")
    return build_generator(size, z_dim=method.z_dim, width=method.width_G, channels=run.task.channels, kind=kind)


def create_standardized_generator(
    method: GeneratorSettings, run: Run, *, standardize: bool, tanh: bool = False
) -> nn.Module:
    """Build G; with `standardize`, its output has the mean and deviation by which the student normalizes."""
    G = create_generator(method, run)
    return standardize_output(G, run.student, tanh=tanh) if standardize else G


def to_images(x: Tensor) -> Tensor:
    """Convert a generator's output to float32, channels last."""
    return x.to(torch.float32, memory_format=torch.channels_last)
