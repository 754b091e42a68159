"""Generators: noise to images in [0, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import UsageError
from compress.models.network import Normalize


def to_channels_last(x: Tensor) -> Tensor:
    """Channels last in memory, as the convolutions want it: here it is small, after each doubling it is not."""
    return x.contiguous(memory_format=torch.channels_last)


class Generator(nn.Module):
    """z -> image by one linear layer and two doublings: DAFL's network, which MosaicKD uses.

    Noise [n, z_dim] from N(0, 1); images [n, 3, size, size] in [0, 1]. 2,026,051 parameters at the defaults.
    Raises UsageError unless `size` is a multiple of 4.
    """

    width_factor = 4  #: channels of the smallest map, in units of `width`

    def __init__(self, z_dim: int = 100, width: int = 64, size: int = 32, channels: int = 3) -> None:
        super().__init__()
        if size % 4:
            raise UsageError(
                f"task.image_size: the generator makes images whose side is a multiple of 4, found {size}."
            )
        widest = self.width_factor * width
        self.start = (widest, size // 4, size // 4)
        self.linear = nn.Linear(z_dim, widest * (size // 4) ** 2)
        self.bn = nn.BatchNorm2d(widest)
        self.grow = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(widest, 2 * width, 3, 1, 1, bias=False),
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
        return self.grow(self.bn(to_channels_last(self.linear(z).unflatten(1, self.start)))).expand(-1, 3, -1, -1)


class SmallGenerator(Generator):
    """The same with a first map half as wide: CMI's and FastDFKD's. 2,328,899 parameters with their z_dim of 256."""

    width_factor = 2


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
        return self.grow(to_channels_last(self.linear(z).unflatten(1, self.start))).expand(-1, 3, -1, -1)


class DcganGenerator(nn.Module):
    """z -> image by four transposed convolutions that each double: DFAD's network for segmentation (its z_dim is 256).

    Narrows from 8 to 1 `width`, then one more of the same width. Raises UsageError unless `size` is a multiple of 16.
    """

    def __init__(self, z_dim: int = 256, width: int = 64, size: int = 128, channels: int = 3) -> None:
        super().__init__()
        if size % 16:
            raise UsageError(
                f"task.image_size: this generator makes images whose side is a multiple of 16, found {size}."
            )
        self.start = (8 * width, size // 16, size // 16)
        self.linear = nn.Linear(z_dim, 8 * width * (size // 16) ** 2)
        layers: list[nn.Module] = [nn.BatchNorm2d(8 * width)]
        for inside, outside in [(8, 4), (4, 2), (2, 1), (1, 1)]:
            layers += [
                nn.ConvTranspose2d(inside * width, outside * width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(outside * width),
                nn.LeakyReLU(0.2),
            ]
        self.grow = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, 1, 1))
        for module in self.grow:
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n 3 h w"]:
        grown = self.grow(to_channels_last(self.linear(z).unflatten(1, self.start)))
        # The published one answers tanh in [-1, 1]; this is the same image in [0, 1].
        return ((grown.tanh() + 1) / 2).expand(-1, 3, -1, -1)


class StandardizedGenerator(nn.Module):
    """A generator whose last layer is BatchNorm in the place of the sigmoid, so that its images vary as those of the
    teacher's data do, however it begins: ZSKT's, whose networks read standardised images.

    With `tanh` that comes before, and the BatchNorm has no weights: DAFL's and DFAD's. Images are of the given mean and
    deviation a channel, and leave [0, 1] in training; at rest they are cut to it.
    Raises UsageError for a generator that ends in no sigmoid.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, *, mean: Tensor, std: Tensor, tanh: bool = False) -> None:
        super().__init__()
        layers = list(getattr(inner, "grow", ()))
        if not layers or not isinstance(layers[-1], nn.Sigmoid):
            raise UsageError(
                "method.generator: dcgan ends in no sigmoid that could be replaced; choose another one, or set "
                "method.standardised to false."
            )
        *rest, last, _ = layers
        end = [nn.Tanh()] if tanh else []
        inner.grow = nn.Sequential(*rest, last, *end, nn.BatchNorm2d(last.out_channels, affine=not tanh))
        self.inner = inner
        self.register_buffer("mean", mean.detach().clone(), persistent=False)
        self.register_buffer("std", std.detach().clone(), persistent=False)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n 3 h w"]:
        x = self.inner(z) * self.std + self.mean
        return x if self.training else x.clamp(0, 1)


def standardize_output(inner: nn.Module, reader: nn.Module, *, tanh: bool = False) -> nn.Module:
    """`inner` with the end of `Standardised`, for the mean and deviation by which the network `reader` normalises.

    With `tanh` a `dcgan` stays as it is: it ends in one itself, and DFAD puts nothing behind it.
    """
    if tanh and isinstance(inner, DcganGenerator):
        return inner
    normalise = next(module for module in reader.modules() if isinstance(module, Normalize))
    return StandardizedGenerator(inner, mean=normalise.mean, std=normalise.std, tanh=tanh)


GENERATORS = {"shallow": Generator, "small": SmallGenerator, "deep": DeepGenerator, "dcgan": DcganGenerator}


def build_generator(
    size: int, *, z_dim: int = 100, width: int = 64, channels: int = 3, kind: str | None = None
) -> nn.Module:
    """A generator of images of `size` pixels a side: one of KINDS, or the paper's, shallow up to 64 and deep above.

    Raises UsageError for another kind, and for a size that the network cannot double to.
    """
    kind = kind or ("shallow" if size <= 64 else "deep")
    if kind not in GENERATORS:
        raise UsageError(f"method.generator: found {kind}, expected one of {', '.join(GENERATORS)}.")
    return GENERATORS[kind](z_dim, width, size, channels)


def init_dcgan_weights(net: nn.Module) -> nn.Module:
    """`net` with the weights of DCGAN's beginning: N(0, 0.02), those of BatchNorm N(1, 0.02), and biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return net


def square_side(image_size: tuple[int, int]) -> int:
    """The side in pixels of the images to make. Raises UsageError where they are not square."""
    height, width = image_size
    if height != width:
        raise UsageError(
            f"task.image_size: found {height}x{width}, but generators make square images; use a square teacher."
        )
    return height
