"""Types and descriptions that settings of several methods share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]  #: of a loss term; 0 disables the term
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
CountOrZero = Annotated[int, Field(ge=0)]

SMALL_GENERATOR = "Generator: small, shallow, deep or dcgan; default: small up to 64 pixels, else deep."
SHALLOW_GENERATOR = "Generator: small, shallow, deep or dcgan; default: shallow up to 64 pixels, else deep."
