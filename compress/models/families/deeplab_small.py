"""DeepLabV3 for images of 64 to 128 pixels: a wide residual network at output stride 4, and a small ASPP.

After Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017. The last
stage is dilated instead of strided, ASPP pools at several rates and over the whole image, and the logits are resized
bilinearly to the input's size.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.models.families.wrn import WideResNet

RATES = (2, 4)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3 at each of RATES, global mean; then a 1x1."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.near = conv_bn_relu(in_channels, width, 1)
        self.far = nn.ModuleList(conv_bn_relu(in_channels, width, 3, rate) for rate in RATES)
        self.whole = nn.Conv2d(in_channels, width, 1)
        self.project = conv_bn_relu((2 + len(RATES)) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([self.near(x), *(far(x) for far in self.far), whole], 1))


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, rate: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class SmallDeepLab(nn.Module):
    """Images of 16 pixels or more -> logits [n, classes, h, w] at the input's size."""

    def __init__(self, depth: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        backbone = WideResNet(depth, width, classes, channels)
        backbone.conv1.stride = (2, 2)
        dilate_stage(backbone.block3)
        self.conv1, self.bn = backbone.conv1, backbone.bn
        self.block1, self.block2, self.block3 = backbone.block1, backbone.block2, backbone.block3
        self.pyramid = ASPP(64 * width, 32 * width)
        self.classifier = nn.Conv2d(32 * width, classes, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        deep = self.block3(self.block2(self.block1(self.conv1(x))))
        small = self.classifier(self.pyramid(F.relu(self.bn(deep))))
        return F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


def dilate_stage(stage: nn.Module) -> None:
    """Replace the stride of a stage by dilation 2 of its 3x3 convolutions."""
    for conv in stage.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (2, 2)


def build_deeplab(depth: int, width: int, classes: int, channels: int) -> SmallDeepLab:
    return SmallDeepLab(depth, width, classes, channels)


MODELS = {f"deeplab_wrn{depth}_{width}": partial(build_deeplab, depth, width) for depth, width in [(16, 1), (16, 2)]}
