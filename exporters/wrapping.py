"""What stands around a network in the exported file: pictures as a camera gives them in, decisions out.

Both are modules, so that they are exported with the network and compared with PyTorch like the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from exporters.failure import ExportError

Postprocess = Literal["none", "softmax", "argmax", "topk"]
#: kind of answer -> names of the outputs
OUTPUTS: dict[Postprocess, tuple[str, ...]] = {
    "none": ("logits",),
    "softmax": ("probabilities",),
    "argmax": ("labels",),
    "topk": ("labels", "probabilities"),
}
#: labels an image with "topk", or as many as there are classes
BEST = 5


@dataclass(frozen=True)
class Framing:
    """How a picture of any size becomes one of the network's: its centre, scaled."""

    size: tuple[int, int]  #: (height, width) that the network reads
    resize: int | None = None  #: what its short side is scaled to before the centre is cut out; None: the longer side


class Prepared(nn.Module):
    """The network behind its preparation: uint8 RGB [n, h, w, 3] of any size -> answer.

    The centre is cut out and scaled with a triangular filter as wide as a pixel of the result, rounding to whole values
    after each axis as Pillow's `resize(box=…, resample=BILINEAR)` does. Written as two matrix products, which every
    runtime has: TensorRT's Resize knows no such filter.
    """

    def __init__(self, network: nn.Module, framing: Framing) -> None:
        super().__init__()
        self.network, self.framing = network, framing

    def forward(self, images: UInt8[Tensor, "n h w 3"]) -> Tensor:
        high, wide = images.shape[1], images.shape[2]
        (height, width), short = self.framing.size, self.framing.resize or max(self.framing.size)
        share = torch.sym_min(
            torch.sym_min(high, wide) / short, torch.sym_min(wide / width, high / height)
        )  # source pixels a pixel
        x = images.float().permute(0, 3, 1, 2)  # in this order: TensorRT turns no bytes
        x = whole(x @ taps(wide, width, share).T)
        x = whole(taps(high, height, share) @ x)
        return self.network(x / 255)


def taps(source: int, size: int, share: Any) -> Float[Tensor, "size source"]:
    """How much each of `source` pixels counts for each of `size`, which take `share` of them each around the middle.

    `share` is a number, or one that torch.export leaves open.
    """
    begin = (source - size * share) / 2
    centres = begin + (torch.arange(size, dtype=torch.float32) + 0.5) * share
    pixels = torch.arange(source, dtype=torch.float32) + 0.5
    weights = (1 - (pixels - centres[:, None]).abs() / torch.sym_max(share, 1.0)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def whole(x: Tensor) -> Tensor:
    """Rounded to 0…255, as bytes are; halves up, and what another order of summation makes of halves too."""
    return (x + 0.5002).floor().clamp(0, 255)


class Answering(nn.Module):
    """The network with its decision behind it: logits [n, classes, ...] -> OUTPUTS[kind]."""

    def __init__(self, network: nn.Module, kind: Postprocess, classes: int) -> None:
        super().__init__()
        self.network, self.kind, self.best = network, kind, min(BEST, classes)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.network(images)
        if self.kind == "softmax":
            return logits.softmax(1)
        if self.kind == "argmax":
            return logits.argmax(1).to(torch.uint8)
        probabilities, labels = logits.softmax(1).topk(self.best, dim=1)
        return labels.to(torch.int32), probabilities


def answering(network: nn.Module, example: Tensor, kind: Postprocess) -> nn.Module:
    """The network with what comes after it. Raises ExportError for more classes than uint8 holds."""
    if kind == "none":
        return network
    with torch.no_grad():
        shape = network(example[:1]).shape
    if kind == "argmax" and shape[1] > 256:
        raise ExportError(f"{shape[1]} classes do not fit into a uint8 label; export the logits, without argmax.")
    if kind == "topk" and len(shape) > 2:
        raise ExportError("topk: the best few labels are of an image, and this network answers with maps; use argmax.")
    return Answering(network, kind, shape[1]).eval()
