"""Types of settings that are written with a unit: durations (`90s`) and sizes (`1MB`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from compress.units import BYTES, SECONDS, Unit, parse_quantity


def parse_with_unit(unit: Unit, convert: Callable[[float], float]) -> Callable[[Any], Any]:
    """Create a validator that parses text with a unit and leaves numbers as they are."""

    def parse(value: Any) -> Any:
        try:
            return convert(parse_quantity(value, unit)) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"{error}.") from error

    return parse


Duration = Annotated[float, Field(gt=0), BeforeValidator(parse_with_unit(SECONDS, float))]
ByteSize = Annotated[int, Field(gt=0), BeforeValidator(parse_with_unit(BYTES, round))]
