"""Generators: noise -> images in [0, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import UsageError
from compress.models.network import Normalize


def to_channels_last(x: Tensor) -> Tensor:
    """Convert to channels-last memory, which convolutions prefer, while the map is still small."""
    return x.contiguous(memory_format=torch.channels_last)


class Generator(nn.Module):
    """z -> image by one linear layer and two upsamplings: the network of DAFL and MosaicKD.

    Noise [n, z_dim] from N(0, 1); images [n, 3, size, size] in [0, 1]. 2,026,051 parameters at the defaults.
    Raises UsageError unless `size` is a multiple of 4.
    """

    width_factor = 4  #: channels of the smallest map, in units of `width`

    def __init__(self, z_dim: int = 100, width: int = 64, size: int = 32, channels: int = 3) -> None:
        super().__init__()
        if size % 4:
            raise UsageError(f"task.image_size: found {size}, expected a multiple of 4 for this generator.")
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
    """`Generator` with half the width in its first map, as in CMI and FastDFKD: 2,328,899 parameters at z_dim 256."""

    width_factor = 2


class DeepGenerator(nn.Module):
    """z -> image by five upsamplings at constant width: 503,875 parameters at 224.

    Raises UsageError unless `size` is a multiple of 32.
    """

    def __init__(self, z_dim: int = 100, width: int = 64, size: int = 224, channels: int = 3) -> None:
        super().__init__()
        if size % 32:
            raise UsageError(f"task.image_size: found {size}, expected a multiple of 32 for generators above 64.")
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
    """z -> image by four transposed convolutions of stride 2: DFAD's network for segmentation (z_dim 256).

    The width falls from 8 to 1 times `width`. Raises UsageError unless `size` is a multiple of 16.
    """

    def __init__(self, z_dim: int = 256, width: int = 64, size: int = 128, channels: int = 3) -> None:
        super().__init__()
        if size % 16:
            raise UsageError(f"task.image_size: found {size}, expected a multiple of 16 for this generator.")
        self.start = (8 * width, size // 16, size // 16)
        self.linear = nn.Linear(z_dim, 8 * width * (size // 16) ** 2)
        layers: list[nn.Module] = [nn.BatchNorm2d(8 * width)]
        for in_channels, out_channels in [(8, 4), (4, 2), (2, 1), (1, 1)]:
            layers += [
                nn.ConvTranspose2d(in_channels * width, out_channels * width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(out_channels * width),
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
        # the published one ends in tanh in [-1, 1]; this is the same image in [0, 1]
        return ((grown.tanh() + 1) / 2).expand(-1, 3, -1, -1)


class StandardizedGenerator(nn.Module):
    """A generator with BatchNorm instead of its last sigmoid, so that images have the statistics of the teacher's data.

    ZSKT uses it, whose networks read standardized images. With `tanh` before a BatchNorm without weights, it is the
    output of DAFL and DFAD. Images have the given mean and standard deviation per channel. In training they may leave
    [0, 1]; in eval mode they are clamped. Raises UsageError for a generator that does not end in a sigmoid.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, *, mean: Tensor, std: Tensor, tanh: bool = False) -> None:
        super().__init__()
        layers = list(getattr(inner, "grow", ()))
        if not layers or not isinstance(layers[-1], nn.Sigmoid):
            raise UsageError(
                "method.generator: found dcgan, which does not end in a sigmoid; choose another, or set "
                "method.standardize_output to false."
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
    """Wrap `inner` in `StandardizedGenerator` with the mean and deviation by which the network `reader` normalizes.

    With `tanh` a `dcgan` is returned unchanged: it already ends in tanh, and DFAD adds nothing.
    """
    if tanh and isinstance(inner, DcganGenerator):
        return inner
    normalize = next(module for module in reader.modules() if isinstance(module, Normalize))
    return StandardizedGenerator(inner, mean=normalize.mean, std=normalize.std, tanh=tanh)


GENERATORS = {"shallow": Generator, "small": SmallGenerator, "deep": DeepGenerator, "dcgan": DcganGenerator}


def build_generator(
    size: int, *, z_dim: int = 100, width: int = 64, channels: int = 3, kind: str | None = None
) -> nn.Module:
    """Build a generator of images of `size` x `size` pixels.

    Args:
        size: Side of the images in pixels.
        z_dim: Length of the noise vectors.
        width: Channels of the last hidden layer.
        channels: Channels that it computes, 3 or 1 (repeated).
        kind: A name in GENERATORS; None: "shallow" up to 64 pixels, "deep" above.

    Raises:
        UsageError: Another kind, or a size that the network cannot produce.
    """
    kind = kind or ("shallow" if size <= 64 else "deep")
    if kind not in GENERATORS:
        raise UsageError(f"method.generator: found {kind}, expected one of {', '.join(GENERATORS)}.")
    return GENERATORS[kind](z_dim, width, size, channels)


def init_dcgan_weights(net: nn.Module) -> nn.Module:
    """Initialize `net` as DCGAN does: weights N(0, 0.02), BatchNorm weights N(1, 0.02), biases 0."""
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
    """The side in pixels of square images. Raises UsageError if they are not square."""
    height, width = image_size
    if height != width:
        raise UsageError(
            f"task.image_size: found {height}x{width}, expected a square; generators only make square images."
        )
    return height
