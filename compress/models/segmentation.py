"""Segmentation networks of torchvision and smp with logits [n, classes, h, w] at the size of the input.

Their tensors keep their names, so files that these libraries save load unchanged.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import UsageError, suggest_nearest


class TorchvisionSegmenter(nn.Module):
    """The output "out" of a segmenter of torchvision, without the auxiliary head that only training needs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        from torchvision.models.segmentation import LRASPP

        self.backbone, self.classifier = inner.get_submodule("backbone"), inner.get_submodule("classifier")
        self.uses_multiple_features = isinstance(inner, LRASPP)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        features = self.backbone(x)
        small = self.classifier(features if self.uses_multiple_features else features["out"])
        return F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


class SmpSegmenter(nn.Module):
    """A segmenter of segmentation-models-pytorch for any image size.

    Images are padded with the mean color to the next size that it supports, and the logits are cropped.
    """

    def __init__(self, inner: nn.Module, multiple: int) -> None:
        super().__init__()
        self.encoder, self.decoder = inner.get_submodule("encoder"), inner.get_submodule("decoder")
        self.segmentation_head = inner.get_submodule("segmentation_head")
        self.multiple = multiple

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        height, width = x.shape[2:]
        features = self.encoder(F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple)))
        # transformers return their feature maps together with prefix tokens
        deep = self.decoder(*features) if isinstance(features, tuple) else self.decoder(features)
        return self.segmentation_head(deep)[:, :, :height, :width]


def list_torchvision_segmenters() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models.segmentation)


def build_torchvision_segmenter(name: str, classes: int) -> nn.Module:
    """One of `torchvision_segmenters()` with random weights; nothing is downloaded."""
    import torchvision

    return TorchvisionSegmenter(
        torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    )


def import_smp():
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise UsageError(
            "segmentation-models-pytorch is not installed; run `pip install 'compress-distill[smp]'`."
        ) from error
    return segmentation_models_pytorch


def list_smp_models() -> list[str]:
    """ARCH:ENCODER of every architecture with every encoder of smp; `tu-NAME` of timm is accepted too."""
    smp = import_smp()
    usual = [arch for arch in smp.MODEL_ARCHITECTURES_MAPPING if arch != "dpt"]  # DPT needs transformers of timm
    return [f"{arch}:{encoder}" for arch in usual for encoder in smp.encoders.get_encoder_names()]


def build_smp_segmenter(name: str, classes: int, channels: int) -> nn.Module:
    """Build ARCH:ENCODER with random weights, without a download. Raises UsageError if smp cannot build it."""
    smp = import_smp()
    arch, _, encoder = name.partition(":")
    architectures = list(smp.MODEL_ARCHITECTURES_MAPPING)
    if arch not in architectures:
        raise UsageError(
            f"smp/{name}: no such architecture in segmentation-models-pytorch{suggest_nearest(arch, architectures)} "
            f"Known: {', '.join(architectures)}; write smp/ARCH:ENCODER."
        )
    if not encoder:
        raise UsageError(
            f"smp/{name}: found no encoder; write smp/{name}:resnet18, or see `compress models smp/{name}`."
        )
    encoders = smp.encoders.get_encoder_names()
    if encoder not in encoders and not encoder.startswith("tu-"):
        raise UsageError(
            f"smp/{name}: no such encoder{suggest_nearest(encoder, encoders)} See `compress models smp/{arch}`; "
            "tu-NAME accepts any encoder of timm."
        )
    extra = {"dynamic_img_size": True} if arch == "dpt" else {}  # else its transformer only accepts one size
    try:
        inner: Any = smp.create_model(arch, encoder, None, in_channels=channels, classes=classes, **extra)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UsageError(f"smp/{name}: smp cannot combine them ({error}); choose another encoder.") from error
    multiple = inner.encoder.output_stride if inner.requires_divisible_input_shape else 1
    return SmpSegmenter(inner, 2 * multiple if arch == "dpt" else multiple)  # DPT halves the map once more
