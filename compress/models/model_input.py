"""How a model reads images, and where each of these facts comes from: the file, an option, or an assumption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.models.card import (
    ASSUMED,
    FIELDS_WITH_SOURCE,
    FROM_FILE,
    FROM_OPTION,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SOURCES_KEY,
    ModelCard,
)
from compress.models.outputs import describe_output


@dataclass(frozen=True)
class ModelInput:
    """How images are prepared for a model, and where these facts come from."""

    architecture: str  #: architecture of the model
    classes: int  #: number of classes
    image_size: tuple[int, int]  #: (height, width) in pixels
    resize: int | None  #: short side in pixels before the center crop; None: the larger side of image_size
    mean: tuple[float, ...]  #: normalization mean per channel, of values in [0, 1]
    std: tuple[float, ...]  #: normalization standard deviation per channel
    grayscale: bool  #: whether the model reads one channel, made from RGB images
    #: field -> where it comes from: "the file", "option", "assumed", "published weights" or another text
    sources: dict[str, str]
    assumed: list[str]  #: fields that neither the file nor an option states
    summary: str  #: all of this in one line


def describe_input(spec: str, card: ModelCard) -> ModelInput:
    """Describe the input of a model.

    Args:
        spec: Name or path of the model, for the summary.
        card: Its card; `provenance` tells where its fields come from.
    """
    stored = card.provenance.get(SOURCES_KEY, {})
    names = [name for name in FIELDS_WITH_SOURCE if name != "class_names" or card.class_names is not None]
    sources = {name: str(stored.get(name, FROM_FILE)) for name in names}
    assumed = [name for name, source in sources.items() if source == ASSUMED]
    return ModelInput(
        card.architecture, card.classes, card.image_size, card.resize, card.mean, card.std, card.grayscale, sources,
        assumed, summarize_input(spec, card, sources),
    )  # fmt: skip


def summarize_input(spec: str, card: ModelCard, sources: dict[str, str]) -> str:
    """Return one line: what was read from where, what is assumed, and how to change it."""
    groups: dict[str, list[str]] = {}
    for name in ("image_size", "mean", "std"):
        groups.setdefault(sources[name], []).append(name)
    classes = f"{card.classes} class{'es' if card.classes != 1 else ''}"
    facts = [
        f"{describe_fields(card, fields)} ({'given' if source == FROM_OPTION else f'from {source}'})"
        for source, fields in groups.items()
        if source != ASSUMED
    ]
    parts = [f"{spec}: {'; '.join([f'{card.architecture}, {classes}', *facts])}."]
    if assumed := groups.get(ASSUMED):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in assumed)
        parts.append(f"Assumed: {describe_fields(card, assumed)} (the file does not say). If wrong: {options}.")
    if others := card.provenance.get("also_fits"):
        parts.append(f"Assumed: {card.architecture}; the weights fit {', '.join(others)} too. If wrong: --arch.")
    if output := describe_output(card.provenance):
        parts.append(f"Output: {output}.")
    if others := card.provenance.get("other_networks"):
        parts.append(f"The file has other networks too: {', '.join(others)}.")
    return " ".join(parts)


def describe_fields(card: ModelCard, fields: Sequence[str]) -> str:
    """Describe image size, mean and standard deviation, those of `fields`."""
    parts = []
    if "image_size" in fields:
        height, width = card.image_size
        crop = f" from the center of a short side of {card.resize}" if card.resize not in (None, height) else ""
        parts.append(f"{'grayscale ' if card.grayscale else ''}{height}x{width}{crop}")
    statistics = [name for name in ("mean", "std") if name in fields]
    if len(statistics) == 2 and not any(card.mean) and set(card.std) == {1.0}:
        parts.append("values in [0, 1] without normalization")
    elif len(statistics) == 2 and (card.mean, card.std) == (IMAGENET_MEAN, IMAGENET_STD):
        parts.append("ImageNet mean and std")
    else:
        parts += [f"{name} {' '.join(f'{value:.4g}' for value in getattr(card, name))}" for name in statistics]
    return ", ".join(parts)
