"""Segmenters of torchvision and segmentation-models-pytorch, made to answer as ours do: logits [n, classes, h, w] at
the input's size. Their tensors keep their names, so the files that users of these libraries save load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, suggest_nearest


class TorchvisionSegmenter(nn.Module):
    """The "out" of one of torchvision's segmenters; its side head, which only training needs, is left out."""

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
    """A segmenter of segmentation-models-pytorch that takes any size: images are padded with the mean colour to the
    sides that it can halve, and its answer is cut to theirs."""

    def __init__(self, inner: nn.Module, multiple: int) -> None:
        super().__init__()
        self.encoder, self.decoder = inner.get_submodule("encoder"), inner.get_submodule("decoder")
        self.segmentation_head = inner.get_submodule("segmentation_head")
        self.multiple = multiple

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        height, width = x.shape[2:]
        features = self.encoder(F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple)))
        # A transformer's maps come together with its prefix tokens.
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
            "segmentation-models-pytorch is not installed; install it with `pip install 'compress-distill[smp]'`."
        ) from error
    return segmentation_models_pytorch


def list_smp_models() -> list[str]:
    """ARCH:ENCODER of every architecture with every encoder it is made for; `tu-NAME`, any of timm's, comes on top."""
    smp = import_smp()
    usual = [arch for arch in smp.MODEL_ARCHITECTURES_MAPPING if arch != "dpt"]  # DPT is for transformers of timm's
    return [f"{arch}:{encoder}" for arch in usual for encoder in smp.encoders.get_encoder_names()]


def build_smp_segmenter(name: str, classes: int, channels: int) -> nn.Module:
    """`name` is ARCH:ENCODER; random weights, nothing is downloaded. Raises UsageError for what smp cannot make."""
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
            f"smp/{name}: names no encoder; write smp/{name}:resnet18, or see `compress models smp/{name}`."
        )
    encoders = smp.encoders.get_encoder_names()
    if encoder not in encoders and not encoder.startswith("tu-"):
        raise UsageError(
            f"smp/{name}: no such encoder{suggest_nearest(encoder, encoders)} See `compress models smp/{arch}`; "
            "tu-NAME takes any encoder of timm's."
        )
    extra = {"dynamic_img_size": True} if arch == "dpt" else {}  # else its transformer reads one size only
    try:
        inner: Any = smp.create_model(arch, encoder, None, in_channels=channels, classes=classes, **extra)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UsageError(f"smp/{name}: these two do not go together ({error}); choose another encoder.") from error
    multiple = inner.encoder.output_stride if inner.requires_divisible_input_shape else 1
    return SmpSegmenter(inner, 2 * multiple if arch == "dpt" else multiple)  # DPT halves its patches' map once more


def extract_logits(answer: object, x: Tensor) -> Tensor:
    """The logits in what a network of unknown making answers to images `x`: the first of several, or the entry "out" or
    "logits"; a map of them enlarged to the images' size. Raises CompressError where there is no tensor."""
    if isinstance(answer, Mapping):
        answer = answer.get("out", answer.get("logits"))
    elif isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    if not isinstance(answer, Tensor):
        raise CompressError(f"the network answers with a {type(answer).__name__}, expected a tensor of logits.")
    if answer.dim() == 4 and answer.shape[2:] != x.shape[2:] and max(answer.shape[2:]) > 1:
        return F.interpolate(answer, size=x.shape[2:], mode="bilinear", align_corners=False)
    return answer


def logits_hook(_: nn.Module, images: tuple[Tensor, ...], answer: object) -> Tensor:
    """A forward hook: the module answers with its logits alone. A wrapper would change the names of its tensors."""
    return extract_logits(answer, images[0])
