"""ResNets for 32x32 images: a 3x3 stem of stride 1, no pooling after it (He et al., 2016; the KD papers' variant)."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of 64-128-256-512 channels; logits [n, classes]."""

    def __init__(self, blocks: tuple[int, int, int, int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, blocks[0], 1)
        self.layer2 = self._stage(64, 128, blocks[1], 2)
        self.layer3 = self._stage(128, 256, blocks[2], 2)
        self.layer4 = self._stage(256, 512, blocks[3], 2)
        self.fc = nn.Linear(512, classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def build_resnet(blocks: tuple[int, int, int, int], classes: int, channels: int) -> ResNet:
    return ResNet(blocks, classes, channels)


MODELS = {"resnet18": partial(build_resnet, (2, 2, 2, 2)), "resnet34": partial(build_resnet, (3, 4, 6, 3))}
