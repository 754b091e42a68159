"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis, 2016), pre-activation."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Block(nn.Module):
    """BN-ReLU-conv twice, with a 1x1 convolution as shortcut if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideResNet(nn.Module):
    """`depth` = 6n + 4 layers, `width` times 16-32-64 channels; logits [n, classes]."""

    def __init__(self, depth: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, sizes[0], 3, 1, 1, bias=False)
        self.block1 = self._stage(sizes[0], sizes[1], blocks, 1)
        self.block2 = self._stage(sizes[1], sizes[2], blocks, 2)
        self.block3 = self._stage(sizes[2], sizes[3], blocks, 2)
        self.bn = nn.BatchNorm2d(sizes[3])
        self.fc = nn.Linear(sizes[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(in_channels, out_channels, stride)
        return nn.Sequential(first, *(Block(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def build_wrn(depth: int, width: int, classes: int, channels: int) -> WideResNet:
    return WideResNet(depth, width, classes, channels)


#: (depth, width): those of the paper, and two shallow ones for small devices
SIZES = ((10, 1), (10, 2), (16, 1), (16, 2), (28, 2), (28, 10), (40, 1), (40, 2), (40, 4))
MODELS = {f"wrn{depth}_{width}": partial(build_wrn, depth, width) for depth, width in SIZES}
