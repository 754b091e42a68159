"""All models with a name: built in, embedded with weights, or known to torchvision, timm and smp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compress.errors import UsageError
from compress.models.loading import embedded_dir, list_embedded_models
from compress.models.pretrained import default_preprocessing
from compress.models.registry import MODELS, build_model, infer_task, list_timm_models, list_torchvision_classifiers
from compress.models.segmentation import list_smp_models, list_torchvision_segmenters
from compress.models.serialization import load_card


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be given by name."""

    name: str  #: what every model option accepts
    description: str  #: parameters, image size or library


def list_models() -> dict[str, list[ModelInfo]]:
    """Every model with a name, by kind.

    Returns:
        "built_in", "embedded", and "torchvision/", "timm/", "smp/", which begin the names of their models.
        Libraries that are not installed have no models.
    """
    return {
        "built_in": [ModelInfo(name, describe_built_in(name)) for name in MODELS],
        "embedded": [ModelInfo(f"embedded/{name}", describe_embedded(name)) for name in list_embedded_models()],
        "torchvision/": [
            *(ModelInfo(f"torchvision/{name}", "torchvision") for name in list_torchvision_classifiers()),
            *(ModelInfo(f"torchvision/{name}", "torchvision, segmentation") for name in list_torchvision_segmenters()),
        ],
        "timm/": [ModelInfo(f"timm/{name}", "timm") for name in names_if_installed(list_timm_models)],
        "smp/": [ModelInfo(f"smp/{name}", "smp, segmentation") for name in names_if_installed(list_smp_models)],
    }


def names_if_installed(list_names: Callable[[], list[str]]) -> list[str]:
    try:
        return list_names()
    except UsageError:
        return []


def describe_built_in(name: str) -> str:
    with torch.device("meta"):
        params = sum(parameter.numel() for parameter in build_model(name, classes=10).parameters())
    height, width = default_preprocessing(name).image_size
    task = ", segmentation" if infer_task(name) == "segmentation" else ""
    return f"{params / 1e6:.2f} M parameters at 10 classes, for {height}x{width} images{task}"


def describe_embedded(name: str) -> str:
    card = load_card(embedded_dir() / name)
    height, width = card.image_size
    score = "".join(f", {key} {value:.3f}" for key, value in list(card.metrics.items())[:1])
    return f"{card.architecture} with weights, {card.classes} classes, {height}x{width}{score}"
