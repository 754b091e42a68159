"""Patch discriminators: one logit per patch of an image (Isola et al., 2017; MosaicKD, Sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import UsageError


@dataclass(frozen=True)
class ConvSpec:
    """A convolution and its LeakyReLU, with BatchNorm between them if `norm`."""

    kernel: int
    stride: int
    padding: int
    norm: bool = False


#: patch size in pixels -> hidden convolutions; a 1x1 convolution to one logit follows. From Table 4 of the paper, and
#: 46 for larger images. The paper's deeper ones (22 and 46) have half the width, 64.
PATCH_LAYERS: dict[int, tuple[ConvSpec, ...]] = {
    1: (ConvSpec(1, 1, 0),),
    2: (ConvSpec(2, 1, 0),),
    4: (ConvSpec(4, 2, 1), ConvSpec(1, 1, 0, norm=True)),
    8: (ConvSpec(4, 2, 1), ConvSpec(3, 2, 1, norm=True)),
    10: (ConvSpec(4, 2, 1), ConvSpec(4, 2, 1, norm=True)),
    18: (ConvSpec(4, 2, 1), ConvSpec(4, 2, 1, norm=True), ConvSpec(3, 1, 1, norm=True)),
    22: (ConvSpec(4, 2, 1), ConvSpec(4, 2, 1, norm=True), ConvSpec(4, 2, 1, norm=True)),
    46: (ConvSpec(4, 2, 1), ConvSpec(4, 2, 1, norm=True), ConvSpec(4, 2, 1, norm=True), ConvSpec(4, 2, 1, norm=True)),
}
#: maximum width of a layer, in units of the first layer's
MAX_WIDTH_FACTOR = 8


def receptive_field(layers: tuple[ConvSpec, ...]) -> tuple[int, int]:
    """(side of the patch of one logit, distance between neighboring patches), in pixels."""
    field, jump = 1, 1
    for layer in layers:
        field += (layer.kernel - 1) * jump
        jump *= layer.stride
    return field, jump


class PatchDiscriminator(nn.Module):
    """Images [n, 3, h, w] in [0, 1] -> logits [n, 1, a, b], one per `patch` x `patch` pixels; positive is real."""

    def __init__(self, patch: int = 8, width: int = 128) -> None:
        super().__init__()
        if patch not in PATCH_LAYERS:
            raise UsageError(
                f"method.patch_size: found {patch}, expected {', '.join(map(str, PATCH_LAYERS))} or the image's side."
            )
        self.layers = build_conv_stack(PATCH_LAYERS[patch], width)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 a b"]:
        # centered, so that zero padding means mid-gray and not black
        return self.layers(2 * x - 1)


def build_conv_stack(layers: tuple[ConvSpec, ...], width: int) -> nn.Sequential:
    """The hidden convolutions, doubled in width after each stride of 2, and the 1x1 convolution to one logit."""
    modules: list[nn.Module] = []
    in_channels, out_channels = 3, width
    for layer in layers:
        modules.append(
            nn.Conv2d(in_channels, out_channels, layer.kernel, layer.stride, layer.padding, bias=not layer.norm)
        )
        if layer.norm:
            modules.append(nn.BatchNorm2d(out_channels))
        modules.append(nn.LeakyReLU(0.2))
        halves = layer.stride == 2 and layer.kernel > 1
        in_channels, out_channels = (
            out_channels,
            min(2 * out_channels, MAX_WIDTH_FACTOR * width) if halves else out_channels,
        )
    return nn.Sequential(*modules, nn.Conv2d(in_channels, 1, 1))


class ImageDiscriminator(nn.Module):
    """Images [n, 3, s, s] -> one logit [n, 1, 1, 1]: the patch is the whole image (Table 4, L = 32; DCGAN).

    At least four strides of 2, more while the map is even and wider than 4, then one convolution over the rest.
    Raises UsageError unless s is a multiple of 16.
    """

    def __init__(self, size: int, width: int = 64) -> None:
        super().__init__()
        if size % 16:
            raise UsageError(
                f"method.patch_size: a patch of the whole image needs a side that is a multiple of 16, found {size}."
            )
        halvings = 4
        while (left := size // 2**halvings) > 4 and left % 2 == 0:
            halvings += 1
        down = build_conv_stack((ConvSpec(4, 2, 1), *[ConvSpec(4, 2, 1, norm=True)] * (halvings - 1)), width)
        self.layers = nn.Sequential(*list(down)[:-1], nn.Conv2d(MAX_WIDTH_FACTOR * width, 1, left))

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 1 1 1"]:
        return self.layers(2 * x - 1)


def build_discriminator(patch: int, size: int, *, width: int = 128) -> nn.Module:
    """Build the discriminator with one logit per `patch` x `patch` pixels of `size` x `size` images."""
    return ImageDiscriminator(size, width // 2) if patch >= size else PatchDiscriminator(patch, width)
