"""The card of a model: all that a stranger must know to use it. Stored as `config.json` beside the weights."""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from compress.errors import CompressError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FORMAT = 1


@dataclass(config=ConfigDict(extra="forbid"))
class Card:
    """What a model is and expects. Images travel as float RGB in [0, 1], NCHW; the network normalises itself."""

    architecture: str  #: built-in name, torchvision/…, timm/…, smp/…, package.module:factory, or "exported" (a program)
    classes: int  #: number of classes, the width of the last layer
    image_size: tuple[int, int]  #: (height, width) in pixels
    task: str = "classification"  #: or "segmentation": one decision a pixel
    mean: tuple[float, ...] = IMAGENET_MEAN  #: per channel, of values in [0, 1]; one entry if `grey`
    std: tuple[float, ...] = IMAGENET_STD
    grey: bool = False  #: the network turns RGB into luma (ITU-R 601) before it normalises
    resize: int | None = None  #: short side in pixels before the centre crop; None: the larger of image_size
    class_names: list[str] | None = None
    metrics: dict[str, float] = field(default_factory=dict)  #: shares in [0, 1]
    provenance: dict[str, Any] = field(default_factory=dict)  #: teacher's hash, recipe, versions, date
    sha256: str | None = None  #: of model.safetensors
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)  # pyright: ignore[reportArgumentType]

    @property
    def channels(self) -> int:
        """Channels that the body sees: 1 for a grey model, else 3."""
        return 1 if self.grey else 3


def read_card(content: dict[str, Any], where: Path) -> Card:
    """The card in `content`, which was read from `where`. Raises CompressError naming the field that is wrong."""
    try:
        return TypeAdapter(Card).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(str(part) for part in first["loc"])
        raise CompressError(
            f"{where}: {field_name}: {first['msg'].lower()}; this is not a model card of ours."
        ) from error
