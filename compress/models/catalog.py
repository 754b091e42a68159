"""Every model that has a name: built in, shipped with weights, or known to torchvision, timm and smp."""

from __future__ import annotations

from collections.abc import Callable

import torch

from compress.errors import UsageError
from compress.models.loading import embedded_dir, list_embedded_models
from compress.models.pretrained import default_preprocessing
from compress.models.registry import MODELS, build_model, infer_task, list_timm_models, list_torchvision_classifiers
from compress.models.segmentation import list_smp_models, list_torchvision_segmenters
from compress.models.serialization import load_card

Row = dict[str, str]


def list_models() -> dict[str, list[Row]]:
    """Kind -> rows of name and description. The kinds of libraries end in a slash, which begins their models' names."""
    return {
        "built_in": [{"name": name, "about": describe_built_in(name)} for name in MODELS],
        "embedded": [{"name": f"embedded/{name}", "about": describe_embedded(name)} for name in list_embedded_models()],
        "torchvision/": [
            *({"name": f"torchvision/{name}", "about": "torchvision"} for name in list_torchvision_classifiers()),
            *(
                {"name": f"torchvision/{name}", "about": "torchvision, segmentation"}
                for name in list_torchvision_segmenters()
            ),
        ],
        "timm/": [{"name": f"timm/{name}", "about": "timm"} for name in names_if_installed(list_timm_models)],
        "smp/": [{"name": f"smp/{name}", "about": "smp, segmentation"} for name in names_if_installed(list_smp_models)],
    }


def names_if_installed(names: Callable[[], list[str]]) -> list[str]:
    """The names that a package gives which may not be installed."""
    try:
        return names()
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
