"""Types and descriptions that settings of several methods share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.config.quantities import Count, CountOrZero
from compress.config.quantities import PositiveFloat as Positive

Weight = Annotated[float, Field(ge=0)]  #: of a loss term; 0 disables the term
Fraction = Annotated[float, Field(ge=0, lt=1)]

#: tasks of one decision per image, which may have several labels; and those of pixels too
IMAGE_TASKS = ("classification", "multilabel_classification")
ALL_TASKS = (*IMAGE_TASKS, "segmentation", "binary_segmentation")

__all__ = [
    "ALL_TASKS",
    "IMAGE_TASKS",
    "SHALLOW_GENERATOR",
    "SMALL_GENERATOR",
    "Count",
    "CountOrZero",
    "Fraction",
    "Positive",
    "Weight",
]

SMALL_GENERATOR = "Generator: small, shallow, deep or dcgan; default: small up to 64 pixels, else deep."
SHALLOW_GENERATOR = "Generator: small, shallow, deep or dcgan; default: shallow up to 64 pixels, else deep."
