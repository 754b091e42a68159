"""What a user says of a model, and what may be true of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.errors import UsageError
from compress.models.card import Card


@dataclass(frozen=True)
class Wishes:
    """What the user said of a model, over what the model says of itself; None: nothing."""

    arch: str | None = None
    classes: int | None = None
    image_size: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    grey: bool | None = None
    class_names: Sequence[str] | None = None
    trust_pickle: bool = False
    ema: bool = False
    resize: int | None = None


def settle(card: Card, wishes: Wishes, spec: str) -> Card:
    """The card with what the user said of it. Raises UsageError where both cannot be true."""
    if wishes.classes is not None and wishes.classes != card.classes:
        raise UsageError(f"{spec}: this model has {card.classes} classes, found {wishes.classes} asked for.")
    if wishes.grey is not None and wishes.grey != card.grey:
        raise UsageError(
            f"{spec}: this model reads {'grey' if card.grey else 'colour'} images; leave out the other option."
        )
    if wishes.class_names is not None and len(wishes.class_names) != card.classes:
        raise UsageError(f"{spec}: found {len(wishes.class_names)} class names for {card.classes} classes.")
    return replace(
        card,
        image_size=wishes.image_size or card.image_size,
        resize=wishes.resize or (None if wishes.image_size else card.resize),
        mean=statistic(wishes.mean, card, "mean", spec) if wishes.mean is not None else card.mean,
        std=statistic(wishes.std, card, "std", spec) if wishes.std is not None else card.std,
        class_names=list(wishes.class_names) if wishes.class_names is not None else card.class_names,
    )


def statistic(values: Sequence[float], card: Card, name: str, spec: str) -> tuple[float, ...]:
    """One value a channel, in the unit of images in [0, 1]; a single value serves all channels."""
    found = tuple(float(value) for value in values)
    found = found * card.channels if len(found) == 1 else found
    if len(found) != card.channels:
        raise UsageError(f"{spec}: found {len(found)} values for --{name}, expected 1 or {card.channels}.")
    if max(found) > 1 or min(found) < 0 or (name == "std" and min(found) == 0):
        raise UsageError(f"{spec}: --{name} {found}: expected values in [0, 1] (divide values in [0, 255] by 255).")
    return found
