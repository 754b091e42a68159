"""What to assume when a checkpoint says nothing: image size and normalisation of the published weights."""

from __future__ import annotations

from dataclasses import dataclass

from compress.models import MODELS, _timm_package, task_of, torchvision_names
from compress.models.card import IMAGENET_MEAN, IMAGENET_STD
from compress.models.families import deeplab
from compress.models.network import Normalise
from compress.models.segmenters import torchvision_segmenters

SMALL, MEDIUM, LARGE = (32, 32), (64, 64), (224, 224)


@dataclass(frozen=True)
class Defaults:
    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None


def defaults(architecture: str, *, grey: bool = False) -> Defaults:
    """The usual input of `architecture`: the size its family was made for, or the published one for libraries."""
    found = usual(architecture)
    if not grey:
        return found
    luma = Normalise((0.0,), (1.0,)).luma.flatten().tolist()
    mean = sum(weight * value for weight, value in zip(luma, found.mean, strict=True))
    return Defaults(found.image_size, (round(mean, 4),), (round(sum(found.std) / 3, 4),), found.resize)


def usual(architecture: str) -> Defaults:
    prefix, _, name = architecture.partition("/")
    if architecture in deeplab.MODELS or prefix == "smp":
        return Defaults(deeplab.IMAGE_SIZE)
    if architecture in MODELS:
        return Defaults(MEDIUM if task_of(architecture) == "segmentation" else SMALL)
    if prefix == "torchvision" and name in [*torchvision_names(), *torchvision_segmenters()]:
        return torchvision_defaults(name)
    if prefix == "timm" and name:
        return timm_defaults(name)
    return Defaults(LARGE)


def torchvision_defaults(name: str) -> Defaults:
    import torchvision

    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT")  # noqa: B009 - not in the enum's type
    preset = weights.transforms()
    resize = preset.resize_size[0]
    crop = preset.crop_size[0] if hasattr(preset, "crop_size") else resize  # a segmenter sees the image uncut
    return Defaults((crop, crop), tuple(preset.mean), tuple(preset.std), resize)


def timm_defaults(name: str) -> Defaults:
    timm = _timm_package()
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None:
        return Defaults(LARGE)
    _, height, width = cfg.input_size
    return Defaults((height, width), tuple(cfg.mean), tuple(cfg.std), round(min(height, width) / (cfg.crop_pct or 1)))
