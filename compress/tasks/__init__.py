"""TASKS: what a network predicts, and how predictions are scored."""

from __future__ import annotations

from typing import Protocol

from compress.tasks.binary_segmentation import BinarySegmentation
from compress.tasks.classification import Classification
from compress.tasks.multilabel_classification import MultilabelClassification
from compress.tasks.segmentation import Segmentation


class ModelDescription(Protocol):
    """The part of a model card that a task uses."""

    task: str
    classes: int
    image_size: tuple[int, int]
    class_names: list[str] | None

    @property
    def channels(self) -> int: ...

    @property
    def decision_threshold(self) -> float | None: ...


Task = Classification | MultilabelClassification | Segmentation | BinarySegmentation


def task_for_card(card: ModelDescription) -> Task:
    """Return the task of the model with this card."""
    task = TASKS[card.task]
    common = (card.classes, card.image_size, card.channels, card.class_names)
    if card.decision_threshold is None:
        return task(*common)
    return task(*common, card.decision_threshold)


TASKS = {
    "classification": Classification,
    "multilabel_classification": MultilabelClassification,
    "segmentation": Segmentation,
    "binary_segmentation": BinarySegmentation,
}
