"""TASKS: what a network predicts, and how predictions are scored."""

from __future__ import annotations

from typing import Protocol

from compress.tasks.classification import Classification
from compress.tasks.segmentation import Segmentation


class ModelDescription(Protocol):
    """The part of a model card that a task uses."""

    task: str
    classes: int
    image_size: tuple[int, int]
    class_names: list[str] | None

    @property
    def channels(self) -> int: ...


def task_for_card(card: ModelDescription) -> Classification | Segmentation:
    """Return the task of the model with this card."""
    return TASKS[card.task](card.classes, card.image_size, card.channels, card.class_names)


TASKS = {"classification": Classification, "segmentation": Segmentation}
