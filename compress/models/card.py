"""The card of a model: everything needed to use it. Stored as `config.json` beside the weights."""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from compress.errors import CompressError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CARD_FORMAT = 2


@dataclass(config=ConfigDict(extra="forbid"))
class ModelCard:
    """What a model is and expects. Images are float RGB in [0, 1], NCHW; the network normalizes them itself."""

    architecture: str  #: built-in name, torchvision/…, timm/…, smp/…, package.module:factory, module:…, or "exported"
    classes: int  #: number of classes, the width of the last layer
    image_size: tuple[int, int]  #: (height, width) in pixels
    task: str = "classification"  #: or "segmentation": one class per pixel
    mean: tuple[float, ...] = IMAGENET_MEAN  #: per channel, of values in [0, 1]; one entry if `grayscale`
    std: tuple[float, ...] = IMAGENET_STD  #: per channel, of values in [0, 1]; one entry if `grayscale`
    grayscale: bool = False  #: the network converts RGB to luma (ITU-R 601) before it normalizes
    resize: int | None = None  #: short side in pixels before the center crop; None: the larger side of image_size
    class_names: list[str] | None = None  #: a name for every class, in the order of the logits
    metrics: dict[str, float] = field(default_factory=dict)  #: metrics on the validation set, in [0, 1]
    provenance: dict[str, Any] = field(default_factory=dict)  #: teacher's hash, recipe, versions, assumptions
    sha256: str | None = None  #: hash of model.safetensors, or of the file that the model was loaded from
    format: int = CARD_FORMAT  #: version of this format

    def as_dict(self) -> dict[str, Any]:
        """The card as JSON types."""
        return asdict(self)  # pyright: ignore[reportArgumentType]

    @property
    def channels(self) -> int:
        """Channels that the body reads: 1 for a grayscale model, else 3."""
        return 1 if self.grayscale else 3

    def example_input(self, n: int = 1) -> Tensor:
        """Random images float32 [n, 3, h, w] in [0, 1] of the size that the model reads; the same at every call."""
        return torch.rand(n, 3, *self.image_size, generator=torch.Generator().manual_seed(0))


def parse_card(content: dict[str, Any], source: Path) -> ModelCard:
    """The card in `content`, which was read from `source`. Raises CompressError naming the wrong field."""
    try:
        return TypeAdapter(ModelCard).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise CompressError(f"{source}: {name}: {first['msg'].lower()}; expected a model card.") from error
