"""Types of settings with their bounds: counts, sizes in pixels, seeds, and quantities with a unit (`90s`, `1MB`).

The upper bounds lie far above what any machine can do. Below them, no computation with the setting overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from compress.units import BYTES, SECONDS, Unit, parse_quantity

MAX_COUNT = 2**31 - 1


def parse_with_unit(unit: Unit, convert: Callable[[float], float]) -> Callable[[Any], Any]:
    """Create a validator that parses text with a unit and leaves numbers as they are."""

    def parse(value: Any) -> Any:
        try:
            return convert(parse_quantity(value, unit)) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"{error}.") from error

    return parse


Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
BatchSize = Annotated[int, Field(gt=0, le=2**20)]
Classes = Annotated[int, Field(gt=0, le=10**6)]
Pixels = Annotated[int, Field(gt=0, le=2**14)]  #: a side of an image
Seed = Annotated[int, Field(ge=0, lt=2**48)]  #: the number of a process is added below the lowest bit
PositiveFloat = Annotated[float, Field(gt=0)]
Epochs = Annotated[float, Field(gt=0, le=1e9)]
Duration = Annotated[float, Field(gt=0, le=SECONDS.maximum), BeforeValidator(parse_with_unit(SECONDS, float))]
ByteSize = Annotated[int, Field(gt=0, le=round(BYTES.maximum)), BeforeValidator(parse_with_unit(BYTES, round))]
