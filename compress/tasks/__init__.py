"""TASKS: what kind of answer a network gives, and how it is judged."""

from __future__ import annotations

from typing import Protocol

from compress.tasks.classification import Classification
from compress.tasks.segmentation import Segmentation


class Described(Protocol):
    """What a task must know of a model: its card says it."""

    task: str
    classes: int
    image_size: tuple[int, int]
    class_names: list[str] | None

    @property
    def channels(self) -> int: ...


def task_of(card: Described) -> Classification | Segmentation:
    """The task of the model that `card` describes."""
    return TASKS[card.task](card.classes, card.image_size, card.channels, card.class_names)


TASKS = {"classification": Classification, "segmentation": Segmentation}
