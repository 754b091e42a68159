"""The paper's networks for segmentation: DeepLabV3 at output stride 8 on ResNet-50 and MobileNetV2 of torchvision.

Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017. ASPP
at rates 12, 24 and 36; logits [n, classes, h, w], resized bilinearly to the input's size. Weights are random.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from compress.models.segmentation import TorchvisionSegmenter

#: ratio of image size to the last feature map's size
OUTPUT_STRIDE = 8
#: (height, width) of the images in the paper's comparison
IMAGE_SIZE = (256, 256)


def resnet50(classes: int, channels: int) -> TorchvisionSegmenter:
    """torchvision's `deeplabv3_resnet50` with the same tensors, without the auxiliary head."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    inner = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    if channels != 3:
        inner.set_submodule("backbone.conv1", init_first_conv(nn.Conv2d(channels, 64, 7, 2, 3, bias=False)))
    return TorchvisionSegmenter(inner)


def mobilenet_v2(classes: int, channels: int) -> TorchvisionSegmenter:
    """torchvision's MobileNetV2 up to its 320 channels with the same tensors, dilated from stride 8 on."""
    from torchvision.models import mobilenet_v2
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

    features = mobilenet_v2(weights=None).features[:-1]
    if channels != 3:
        features.set_submodule("0.0", init_first_conv(nn.Conv2d(channels, 32, 3, 2, 1, bias=False)))
    blocks = nn.Sequential(features[0], *dilate_blocks(features[1:]))
    backbone = IntermediateLayerGetter(blocks, {str(len(blocks) - 1): "out"})
    return TorchvisionSegmenter(DeepLabV3(backbone, DeepLabHead(320, classes)))


class PaddedInvertedResidual(nn.Module):
    """An inverted residual that pads before it expands, as in the paper: 5.55 GMACs at 256x256 instead of 5.21."""

    def __init__(self, conv: nn.Module, residual: bool, padding: int) -> None:
        super().__init__()
        self.conv, self.residual, self.padding = conv, residual, padding

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, [self.padding] * 4))
        return x + y if self.residual else y


def init_first_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """Initialize a first layer for grayscale images as torchvision initializes its own."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def dilate_blocks(blocks: nn.Sequential) -> Iterator[PaddedInvertedResidual]:
    """MobileNetV2's blocks after its first layer; beyond OUTPUT_STRIDE, strides become dilation."""
    reached, rate = 2, 1
    for block in blocks:
        (spatial,) = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        spatial.dilation, spatial.padding = (rate, rate), (0, 0)
        yield PaddedInvertedResidual(block.get_submodule("conv"), bool(block.use_res_connect), padding=rate)
        if reached == OUTPUT_STRIDE and spatial.stride == (2, 2):
            spatial.stride, rate = (1, 1), 2 * rate
        reached *= spatial.stride[0]


MODELS = {"deeplabv3_resnet50": resnet50, "deeplabv3_mobilenet_v2": mobilenet_v2}
