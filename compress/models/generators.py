"""Generators: noise to images in [0, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import UsageError


def laid_out(x: Tensor) -> Tensor:
    """Channels last in memory, as the convolutions want it: here it is small, after each doubling it is not."""
    return x.contiguous(memory_format=torch.channels_last)


class Generator(nn.Module):
    """z -> image by one linear layer and two doublings: DAFL's network, which MosaicKD uses.

    Noise [n, z_dim] from N(0, 1); images [n, 3, size, size] in [0, 1]. 2,026,051 parameters at the defaults.
    Raises UsageError unless `size` is a multiple of 4.
    """

    def __init__(self, z_dim: int = 100, width: int = 64, size: int = 32, channels: int = 3) -> None:
        super().__init__()
        if size % 4:
            raise UsageError(
                f"task.image_size: the generator makes images whose side is a multiple of 4, found {size}."
            )
        self.start = (4 * width, size // 4, size // 4)
        self.linear = nn.Linear(z_dim, 4 * width * (size // 4) ** 2)
        self.bn = nn.BatchNorm2d(4 * width)
        self.grow = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4 * width, 2 * width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, 1, 1),
            nn.Sigmoid(),
        )

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n 3 h w"]:
        return self.grow(self.bn(laid_out(self.linear(z).unflatten(1, self.start)))).expand(-1, 3, -1, -1)


class DeepGenerator(nn.Module):
    """z -> image by five doublings at constant width, 503,875 parameters at 224.

    Raises UsageError unless `size` is a multiple of 32.
    """

    def __init__(self, z_dim: int = 100, width: int = 64, size: int = 224, channels: int = 3) -> None:
        super().__init__()
        if size % 32:
            raise UsageError(
                f"task.image_size: above 64 the generator makes sides that are multiples of 32, found {size}."
            )
        self.start = (width, size // 32, size // 32)
        self.linear = nn.Linear(z_dim, width * (size // 32) ** 2)
        layers: list[nn.Module] = [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        for _ in range(5):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(width, width, 3, 1, 1),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.grow = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, 1, 1), nn.Sigmoid())

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n 3 h w"]:
        return self.grow(laid_out(self.linear(z).unflatten(1, self.start))).expand(-1, 3, -1, -1)


def generator(size: int, *, z_dim: int = 100, width: int = 64, channels: int = 3) -> nn.Module:
    """The generator of the paper for images of `size` pixels a side: shallow up to 64, deep above."""
    return Generator(z_dim, width, size, channels) if size <= 64 else DeepGenerator(z_dim, width, size, channels)
