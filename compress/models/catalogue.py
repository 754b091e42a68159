"""Every model that has a name: built in, shipped with weights, or published by torchvision and timm."""

from __future__ import annotations

import torch

from compress.errors import UsageError
from compress.models import MODELS, body, timm_names, torchvision_names
from compress.models.folder import load_card
from compress.models.loading import embedded_names, embedded_root

Row = dict[str, str]


def catalogue() -> dict[str, list[Row]]:
    """Kind -> rows of name and description. The kinds of libraries end in a slash, which begins their models' names."""
    return {
        "built_in": [{"name": name, "about": built_in(name)} for name in MODELS],
        "embedded": [{"name": f"embedded/{name}", "about": embedded(name)} for name in embedded_names()],
        "torchvision/": [{"name": f"torchvision/{name}", "about": "torchvision"} for name in torchvision_names()],
        "timm/": [{"name": f"timm/{name}", "about": "timm"} for name in optional_timm_names()],
    }


def optional_timm_names() -> list[str]:
    try:
        return timm_names()
    except UsageError:
        return []  # timm is an optional part


def built_in(name: str) -> str:
    with torch.device("meta"):
        params = sum(parameter.numel() for parameter in body(name, classes=10).parameters())
    return f"{params / 1e6:.2f} M parameters at 10 classes, for 32x32 images"


def embedded(name: str) -> str:
    card = load_card(embedded_root() / name)
    height, width = card.image_size
    score = "".join(f", {key} {value:.3f}" for key, value in list(card.metrics.items())[:1])
    return f"{card.architecture} with weights, {card.classes} classes, {height}x{width}{score}"
