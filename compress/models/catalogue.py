"""Every model that has a name: built in, shipped with weights, or known to torchvision, timm and smp."""

from __future__ import annotations

from collections.abc import Callable

import torch

from compress.errors import UsageError
from compress.models import MODELS, body, task_of, timm_names, torchvision_names
from compress.models.defaults import defaults
from compress.models.folder import load_card
from compress.models.loading import embedded_names, embedded_root
from compress.models.segmenters import smp_names, torchvision_segmenters

Row = dict[str, str]


def catalogue() -> dict[str, list[Row]]:
    """Kind -> rows of name and description. The kinds of libraries end in a slash, which begins their models' names."""
    return {
        "built_in": [{"name": name, "about": built_in(name)} for name in MODELS],
        "embedded": [{"name": f"embedded/{name}", "about": embedded(name)} for name in embedded_names()],
        "torchvision/": [
            *({"name": f"torchvision/{name}", "about": "torchvision"} for name in torchvision_names()),
            *(
                {"name": f"torchvision/{name}", "about": "torchvision, segmentation"}
                for name in torchvision_segmenters()
            ),
        ],
        "timm/": [{"name": f"timm/{name}", "about": "timm"} for name in optional(timm_names)],
        "smp/": [{"name": f"smp/{name}", "about": "smp, segmentation"} for name in optional(smp_names)],
    }


def optional(names: Callable[[], list[str]]) -> list[str]:
    """The names that a package gives which may not be installed."""
    try:
        return names()
    except UsageError:
        return []


def built_in(name: str) -> str:
    with torch.device("meta"):
        params = sum(parameter.numel() for parameter in body(name, classes=10).parameters())
    height, width = defaults(name).image_size
    task = ", segmentation" if task_of(name) == "segmentation" else ""
    return f"{params / 1e6:.2f} M parameters at 10 classes, for {height}x{width} images{task}"


def embedded(name: str) -> str:
    card = load_card(embedded_root() / name)
    height, width = card.image_size
    score = "".join(f", {key} {value:.3f}" for key, value in list(card.metrics.items())[:1])
    return f"{card.architecture} with weights, {card.classes} classes, {height}x{width}{score}"
