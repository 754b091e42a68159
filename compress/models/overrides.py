"""Facts about a model from the user, and their consistency checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.errors import UsageError
from compress.models.card import FIELDS_WITH_SOURCE, FROM_OPTION, SIGMOID_TASKS, ModelCard, base_task, with_sources


@dataclass(frozen=True)
class ModelOverrides:
    """Facts that override or complete the card of a model; None: unchanged.

    Example:
        >>> ModelOverrides(image_size=(224, 224), mean=[0.5], std=[0.5]).classes is None
        True
    """

    architecture: str | None = None  #: architecture of bare weights; None: recognized from the tensors
    classes: int | None = None  #: expected number of classes
    image_size: tuple[int, int] | None = None  #: (height, width) in pixels
    mean: Sequence[float] | None = None  #: per channel, or one for all, of values in [0, 1]
    std: Sequence[float] | None = None  #: per channel, or one for all, of values in [0, 1]
    grayscale: bool | None = None  #: the network reads one channel
    class_names: Sequence[str] | None = None  #: a name for every class, in the order of the logits
    trust_pickle: bool = False  #: load pickles and TorchScript, which can run code
    ema: bool = False  #: prefer averaged weights
    resize: int | None = None  #: short side in pixels before the center crop
    output: str | int | None = None  #: name or index of the output with the logits, of a model with several
    threshold: float | None = None  #: probability above which a binary or multi-label model says yes
    task: str | None = None  #: "classification" or "multilabel_classification", for a network with several logits


def apply_overrides(card: ModelCard, overrides: ModelOverrides, spec: str) -> ModelCard:
    """The card with the overrides of the user. Raises UsageError if both cannot be true."""
    if overrides.classes is not None and overrides.classes != card.classes:
        raise UsageError(f"{spec}: found {card.classes} classes, expected {overrides.classes}; leave out --classes.")
    if overrides.grayscale is not None and overrides.grayscale != card.grayscale:
        kind = "grayscale" if card.grayscale else "color"
        raise UsageError(f"{spec}: found a model of {kind} images, expected the other; leave out --grayscale.")
    if overrides.class_names is not None and len(overrides.class_names) != card.classes:
        raise UsageError(f"{spec}: found {len(overrides.class_names)} class names, expected {card.classes}.")
    task = overrides.task or card.task
    if base_task(task) != base_task(card.task) or (card.classes == 1 and task not in SIGMOID_TASKS.values()):
        raise UsageError(f"{spec}: found a model for {card.task}, expected one for {task}; leave out --task.")
    if task == "binary_segmentation" and card.classes != 1:
        raise UsageError(f"{spec}: found {card.classes} classes per pixel, expected 1 for {task}; leave out --task.")
    if overrides.threshold is not None and task not in SIGMOID_TASKS.values():
        raise UsageError(
            f"{spec}: found a model for {task}, which takes the most probable class; leave out --threshold, or give "
            "--task multilabel_classification."
        )
    given = [name for name in FIELDS_WITH_SOURCE if getattr(overrides, name) is not None]
    if "image_size" in given:
        given.append("resize")
    return replace(
        card,
        task=task,
        threshold=card.threshold if overrides.threshold is None else overrides.threshold,
        image_size=overrides.image_size or card.image_size,
        resize=overrides.resize or (None if overrides.image_size else card.resize),
        mean=channel_values(overrides.mean, card, "mean", spec) if overrides.mean is not None else card.mean,
        std=channel_values(overrides.std, card, "std", spec) if overrides.std is not None else card.std,
        class_names=list(overrides.class_names) if overrides.class_names is not None else card.class_names,
        provenance=with_sources(card.provenance, FROM_OPTION, *given),
    )


def channel_values(values: Sequence[float], card: ModelCard, name: str, spec: str) -> tuple[float, ...]:
    """One value per channel for images in [0, 1]; a single value applies to all channels."""
    numbers = tuple(float(value) for value in values)
    numbers = numbers * card.channels if len(numbers) == 1 else numbers
    if len(numbers) != card.channels:
        raise UsageError(f"{spec}: found {len(numbers)} values for --{name}, expected 1 or {card.channels}.")
    if max(numbers) > 1 or min(numbers) < 0 or (name == "std" and min(numbers) == 0):
        raise UsageError(f"{spec}: --{name} {numbers}: expected values in [0, 1] (divide values in [0, 255] by 255).")
    return numbers
