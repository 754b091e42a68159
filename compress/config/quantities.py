"""Types of settings with their bounds: counts, sizes in pixels, seeds, and quantities with a unit (`90s`, `1MB`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from compress.units import (
    BYTES,
    MAX_CLASSES,
    MAX_COUNT,
    MAX_IMAGE_SIDE,
    MAX_SEED,
    SECONDS,
    Unit,
    parse_quantity,
)


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
Classes = Annotated[int, Field(gt=0, le=MAX_CLASSES)]
Pixels = Annotated[int, Field(gt=0, le=MAX_IMAGE_SIDE)]  #: a side of an image
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
PositiveFloat = Annotated[float, Field(gt=0)]
Epochs = Annotated[float, Field(gt=0, le=1e9)]
Duration = Annotated[float, Field(gt=0, le=SECONDS.maximum), BeforeValidator(parse_with_unit(SECONDS, float))]
ByteSize = Annotated[int, Field(gt=0, le=round(BYTES.maximum)), BeforeValidator(parse_with_unit(BYTES, round))]
