"""Published weights of torchvision and timm, and the preprocessing that they were trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

from torch import nn

from compress.errors import CompressError, UsageError, first_line, suggest_nearest
from compress.models.card import (
    FIELDS_WITH_SOURCE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PUBLISHED,
    ModelCard,
    with_sources,
)
from compress.models.families import deeplab
from compress.models.network import Normalize
from compress.models.registry import MODELS, build_on_meta, import_timm, infer_task, list_torchvision_classifiers
from compress.models.segmentation import TorchvisionSegmenter, list_torchvision_segmenters

PRETRAINED_PREFIXES = ("torchvision/", "timm/", "smp/")
#: networks of torchvision that, with published weights, change the normalization to mean and std 0.5 themselves
TRANSFORM_INPUT = ("googlenet", "inception_v3")
SMALL, MEDIUM, LARGE = (32, 32), (64, 64), (224, 224)


@dataclass(frozen=True)
class DefaultPreprocessing:
    """The usual input of an architecture, assumed for checkpoints without one."""

    image_size: tuple[int, int]  #: (height, width) in pixels
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None  #: short side before the center crop


def default_preprocessing(architecture: str, *, grayscale: bool = False) -> DefaultPreprocessing:
    """The input that the family was designed for, or that the library published its weights with."""
    rgb = rgb_preprocessing(architecture)
    if not grayscale:
        return rgb
    luma = Normalize((0.0,), (1.0,)).luma.flatten().tolist()
    mean = sum(weight * value for weight, value in zip(luma, rgb.mean, strict=True))
    return DefaultPreprocessing(rgb.image_size, (round(mean, 4),), (round(sum(rgb.std) / 3, 4),), rgb.resize)


def rgb_preprocessing(architecture: str) -> DefaultPreprocessing:
    prefix, _, name = architecture.partition("/")
    if architecture in deeplab.MODELS or prefix == "smp":
        return DefaultPreprocessing(deeplab.IMAGE_SIZE)
    if architecture in MODELS:
        return DefaultPreprocessing(MEDIUM if infer_task(architecture) == "segmentation" else SMALL)
    if prefix == "torchvision" and name in [*list_torchvision_classifiers(), *list_torchvision_segmenters()]:
        return torchvision_preprocessing(name)
    if prefix == "timm" and name:
        return timm_preprocessing(name)
    return DefaultPreprocessing(LARGE)


def torchvision_preprocessing(name: str) -> DefaultPreprocessing:
    import torchvision

    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT")  # noqa: B009 - not in the enum's type
    preset = weights.transforms()
    resize = preset.resize_size[0]
    crop = preset.crop_size[0] if hasattr(preset, "crop_size") else resize  # segmentation presets do not crop
    if name in TRANSFORM_INPUT:
        return DefaultPreprocessing((crop, crop), (0.5,) * 3, (0.5,) * 3, resize)
    return DefaultPreprocessing((crop, crop), tuple(preset.mean), tuple(preset.std), resize)


def timm_preprocessing(name: str) -> DefaultPreprocessing:
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None:
        return DefaultPreprocessing(LARGE)
    _, height, width = cfg.input_size
    resize = math.floor(min(height, width) / (cfg.crop_pct or 1))
    return DefaultPreprocessing((height, width), tuple(cfg.mean), tuple(cfg.std), resize)


def load_pretrained(spec: str) -> tuple[nn.Module, ModelCard]:
    """Load `torchvision/NAME` or `timm/NAME` (also timm's NAME.TAG) with its default weights.

    Raises UsageError for an unknown name, CompressError if the weights cannot be downloaded.
    """
    prefix, _, name = spec.partition("/")
    if prefix == "smp":
        return reject_smp(spec)
    return load_torchvision_pretrained(name) if prefix == "torchvision" else load_timm_pretrained(name)


def load_torchvision_pretrained(name: str) -> tuple[nn.Module, ModelCard]:
    import torchvision

    known = [*list_torchvision_classifiers(), *list_torchvision_segmenters()]
    if name not in known:
        raise UsageError(f"torchvision/{name}: no such classifier or segmenter{suggest_nearest(name, known) or '.'}")
    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT")  # noqa: B009 - not in the enum's type
    try:
        model = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        advice = f"download {weights.url} on another machine and give the file as the teacher"
        raise download_error(f"torchvision/{name}", error, advice) from error
    if name in list_torchvision_segmenters():
        model = TorchvisionSegmenter(model)
    if name in TRANSFORM_INPUT:
        model.transform_input = False  # pyright: ignore[reportArgumentType] - our normalization does it
    names = list(weights.meta["categories"])
    return model, pretrained_card(f"torchvision/{name}", len(names), names, str(weights))


def load_timm_pretrained(name: str) -> tuple[nn.Module, ModelCard]:
    timm = import_timm()
    if not timm.is_model(name):
        hint = suggest_nearest(name, timm.list_models()) or "."
        raise UsageError(f"timm/{name}: no such model in timm {timm.__version__}{hint}")
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        advice = "download the weights on another machine and give the file as the teacher"
        raise download_error(f"timm/{name}", error, advice) from error
    cfg = getattr(model, "pretrained_cfg", {})
    classes = int(getattr(model, "num_classes", 0))
    return model, pretrained_card(f"timm/{name}", classes, None, str(cfg.get("tag") or ""))


def reject_smp(spec: str) -> NoReturn:
    """smp publishes encoders trained on ImageNet, but no trained segmenters under these names."""
    build_on_meta(spec, classes=2)  # raises for an unknown name
    raise UsageError(
        f"{spec}: an architecture without trained weights; give your checkpoint of it as the teacher, "
        f"with --teacher-arch {spec}."
    )


def download_error(spec: str, error: Exception, advice: str) -> CompressError:
    return CompressError(f"{spec}: the published weights cannot be downloaded ({first_line(error)}); {advice}.")


def pretrained_card(architecture: str, classes: int, names: list[str] | None, source: str) -> ModelCard:
    if classes < 1:
        raise UsageError(f"{architecture}: its published weights have no classifier, so it cannot be a teacher.")
    usual = default_preprocessing(architecture)
    return ModelCard(
        architecture,
        classes,
        usual.image_size,
        infer_task(architecture),
        mean=usual.mean,
        std=usual.std,
        resize=usual.resize,
        class_names=names,
        provenance=with_sources({"source": source}, PUBLISHED, *FIELDS_WITH_SOURCE),
    )
