"""Published weights of torchvision and timm, fetched by these libraries, with their own normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from torch import nn

from compress.errors import CompressError, UsageError, suggest_nearest
from compress.models.card import IMAGENET_MEAN, IMAGENET_STD, ModelCard
from compress.models.families import deeplab
from compress.models.network import Normalize
from compress.models.registry import MODELS, build_on_meta, import_timm, infer_task, list_torchvision_classifiers
from compress.models.segmentation import TorchvisionSegmenter, list_torchvision_segmenters

SMALL, MEDIUM, LARGE = (32, 32), (64, 64), (224, 224)


@dataclass(frozen=True)
class DefaultPreprocessing:
    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None


def default_preprocessing(architecture: str, *, grayscale: bool = False) -> DefaultPreprocessing:
    """The usual input of `architecture`: the size its family was made for, or the published one for libraries."""
    found = rgb_preprocessing(architecture)
    if not grayscale:
        return found
    luma = Normalize((0.0,), (1.0,)).luma.flatten().tolist()
    mean = sum(weight * value for weight, value in zip(luma, found.mean, strict=True))
    return DefaultPreprocessing(found.image_size, (round(mean, 4),), (round(sum(found.std) / 3, 4),), found.resize)


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
    crop = preset.crop_size[0] if hasattr(preset, "crop_size") else resize  # a segmenter sees the image uncut
    return DefaultPreprocessing((crop, crop), tuple(preset.mean), tuple(preset.std), resize)


def timm_preprocessing(name: str) -> DefaultPreprocessing:
    timm = import_timm()
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None:
        return DefaultPreprocessing(LARGE)
    _, height, width = cfg.input_size
    return DefaultPreprocessing(
        (height, width), tuple(cfg.mean), tuple(cfg.std), round(min(height, width) / (cfg.crop_pct or 1))
    )


PRETRAINED_PREFIXES = ("torchvision/", "timm/", "smp/")


def load_pretrained(spec: str) -> tuple[nn.Module, ModelCard]:
    """The body and card of `torchvision/NAME` or `timm/NAME` (timm's NAME.TAG too), with their default weights.

    Raises UsageError for an unknown name, CompressError where the weights cannot be had.
    """
    prefix, _, name = spec.partition("/")
    if prefix == "smp":
        return reject_smp(spec)
    return load_torchvision_pretrained(name) if prefix == "torchvision" else load_timm_pretrained(name)


def load_torchvision_pretrained(name: str) -> tuple[nn.Module, ModelCard]:
    import torchvision

    known = [*list_torchvision_classifiers(), *list_torchvision_segmenters()]
    if name not in known:
        raise UsageError(
            f"torchvision/{name}: no such classifier or segmenter in torchvision{suggest_nearest(name, known) or '.'}"
        )
    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT")  # noqa: B009 - not in the enum's type
    try:
        model = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        where = f"download {weights.url} elsewhere and give the file as the teacher"
        raise download_error(f"torchvision/{name}", error, where) from error
    if name in list_torchvision_segmenters():
        model = TorchvisionSegmenter(model)
    names = list(weights.meta["categories"])
    return model, pretrained_card(f"torchvision/{name}", len(names), names, str(weights))


def load_timm_pretrained(name: str) -> tuple[nn.Module, ModelCard]:
    timm = import_timm()
    if not timm.is_model(name):
        raise UsageError(
            f"timm/{name}: no such model in timm {timm.__version__}{suggest_nearest(name, timm.list_models()) or '.'}"
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        where = "download the weights elsewhere and give the file as the teacher"
        raise download_error(f"timm/{name}", error, where) from error
    cfg = getattr(model, "pretrained_cfg", {})
    return model, pretrained_card(
        f"timm/{name}", int(getattr(model, "num_classes", 0)), None, str(cfg.get("tag") or "")
    )


def reject_smp(spec: str) -> NoReturn:
    """smp publishes encoders trained on ImageNet, but no trained segmenters under these names."""
    build_on_meta(spec, classes=2)  # raises for a name that nobody knows
    raise UsageError(
        f"{spec}: an architecture without trained weights; give your checkpoint of it as the teacher, "
        f"with --teacher-arch {spec}."
    )


def download_error(spec: str, error: Exception, where: str) -> CompressError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return CompressError(f"{spec}: the published weights could not be had ({reason}); {where}.")


def pretrained_card(architecture: str, classes: int, names: list[str] | None, source: str) -> ModelCard:
    if classes < 1:
        raise UsageError(f"{architecture}: its published weights have no classifier, so they cannot teach one.")
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
        provenance={"source": source},
    )


# # MERGED DOC """What to assume when a checkpoint says nothing: image size and normalisation of the published weights."""
#
