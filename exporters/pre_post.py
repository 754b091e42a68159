"""Preprocessing and postprocessing as modules, so that they are exported and verified together with the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from exporters.errors import ExportError

Postprocess = Literal["none", "softmax", "argmax", "topk", "sigmoid", "threshold"]
#: kind of output -> names of the outputs
OUTPUT_NAMES: dict[Postprocess, tuple[str, ...]] = {
    "none": ("logits",),
    "softmax": ("probabilities",),
    "argmax": ("labels",),
    "topk": ("labels", "probabilities"),
    "sigmoid": ("probabilities",),
    "threshold": ("labels",),
}
#: kinds of output of networks whose logits are decisions of their own
SIGMOID_KINDS: tuple[Postprocess, ...] = ("sigmoid", "threshold")
#: labels per image with "topk", if there are as many classes
TOP_K = 5
#: of a quotient that is a whole number of pixels
ROUNDING = 1e-3
#: classes that a uint8 label can name
MAX_UINT8_CLASSES = 256


@dataclass(frozen=True)
class Preprocessing:
    """Center crop and resize of images of any size to the network's input size.

    Example:
        >>> Preprocessing(size=(224, 224), resize=256).resize
        256
    """

    size: tuple[int, int]  #: (height, width) of the network's input
    resize: int | None = None  #: length that the short side is resized to before the crop; None: max(size)


class WithPreprocessing(nn.Module):
    """A network with preprocessing in front: uint8 RGB [n, h, w, 3] of any size -> output.

    The center is cropped, from a whole pixel of the resized image on, and resized with a triangular filter as wide as
    an output pixel. Each axis is rounded to integers, as Pillow's `resize(box=…, resample=BILINEAR)` does. The resize
    consists of two matrix products, which every runtime has: TensorRT's Resize has no such filter.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing

    def forward(self, images: UInt8[Tensor, "n h w 3"]) -> Tensor:
        source_height, source_width = images.shape[1], images.shape[2]
        (height, width), short = self.preprocessing.size, self.preprocessing.resize or max(self.preprocessing.size)
        scale = torch.sym_min(  # source pixels per output pixel
            torch.sym_min(source_height, source_width) / short,
            torch.sym_min(source_width / width, source_height / height),
        )
        x = images.float().permute(0, 3, 1, 2)  # cast before permute: TensorRT cannot permute uint8
        x = round_to_uint8(x @ resize_weights(source_width, width, scale).T)
        x = round_to_uint8(resize_weights(source_height, height, scale) @ x)
        return self.network(x / 255)


def resize_weights(source: int, size: int, scale: Any) -> Float[Tensor, "size source"]:
    """Return the weight of each source pixel in each output pixel along one axis, around its middle.

    `scale` is the number of source pixels per output pixel: a float, or a symbol of torch.export.
    """
    resized = (torch.ones(()) * source / scale + ROUNDING).floor()
    begin = ((resized - size) / 2).round() * scale  # a whole pixel of the resized image, as torchvision's CenterCrop
    centers = begin + (torch.arange(size, dtype=torch.float32) + 0.5) * scale
    pixels = torch.arange(source, dtype=torch.float32) + 0.5
    weights = (1 - (pixels - centers[:, None]).abs() / torch.sym_max(scale, 1.0)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def round_to_uint8(x: Tensor) -> Tensor:
    """Round to 0…255. Halves go up, also those that another order of summation moves slightly down."""
    return (x + 0.5002).floor().clamp(0, 255)


class WithPostprocessing(nn.Module):
    """A network with postprocessing behind: logits [n, classes, ...] -> the outputs in OUTPUT_NAMES[kind]."""

    def __init__(self, network: nn.Module, kind: Postprocess, classes: int, threshold: float | None = None) -> None:
        super().__init__()
        self.network, self.kind, self.k = network, kind, min(TOP_K, classes)
        self.smallest_logit = 0.0 if threshold is None else threshold_logit(threshold)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.network(images)
        if self.kind == "sigmoid":
            return logits.sigmoid()
        if self.kind == "threshold":
            labels = (logits > self.smallest_logit).to(torch.uint8)
            return labels[:, 0] if labels.ndim > 2 else labels
        if self.kind == "softmax":
            return logits.softmax(1)
        if self.kind == "argmax":
            return logits.argmax(1).to(torch.uint8)
        probabilities, labels = logits.softmax(1).topk(self.k, dim=1)
        return labels.to(torch.int32), probabilities


def threshold_logit(threshold: float) -> float:
    """Return the logit whose sigmoid is `threshold`.

    Example:
        >>> threshold_logit(0.5)
        0.0
    """
    return math.log(threshold / (1 - threshold))


def with_postprocessing(
    network: nn.Module, example: Tensor, kind: Postprocess, threshold: float | None = None
) -> nn.Module:
    """Append the postprocessing. Raise ExportError if it does not fit the network's output."""
    if kind == "none":
        return network
    if (kind in SIGMOID_KINDS) != (threshold is not None):
        found, kinds = ("one class per image or pixel", "softmax or argmax")
        if threshold is not None:
            found, kinds = ("a decision for every logit, by a threshold", "sigmoid or threshold")
        raise ExportError(f"{kind}: found a network of {found}; use {kinds}.")
    with torch.no_grad():
        shape = network(example[:1]).shape
    if kind == "argmax" and shape[1] > MAX_UINT8_CLASSES:
        raise ExportError(f"argmax: found {shape[1]} classes, expected at most {MAX_UINT8_CLASSES}; export the logits.")
    if kind == "topk" and len(shape) > 2:
        raise ExportError("topk: found a network that predicts maps, expected one label per image; use argmax.")
    return WithPostprocessing(network, kind, shape[1], threshold).eval()
