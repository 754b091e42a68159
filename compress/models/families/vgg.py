"""VGG-11 with BatchNorm for 32x32 images: one linear layer after average pooling (the variant of the KD papers)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

#: channels of the convolutions of each of the five groups
GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Groups with 2x2 pooling before the 2nd to the 4th (and before the 5th for 64x64 images); logits [n, classes]."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.groups = nn.ModuleList()
        in_channels = channels
        for group in GROUPS:
            layers: list[nn.Module] = []
            for out_channels in group:
                layers += [nn.Conv2d(in_channels, out_channels, 3, 1, 1), nn.BatchNorm2d(out_channels), nn.ReLU()]
                in_channels = out_channels
            self.groups.append(nn.Sequential(*layers))
        self.fc = nn.Linear(in_channels, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        large = x.shape[-1] >= 64
        for index, group in enumerate(self.groups):
            if 0 < index < 4 or (index == 4 and large):
                x = F.max_pool2d(x, 2)
            x = group(x)
        return self.fc(x.mean((2, 3)))


MODELS = {"vgg11": VGG}
