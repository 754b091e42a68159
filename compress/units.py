"""Numbers with a unit, as people write them: `90s`, `500kB`, `15ms`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Unit(NamedTuple):
    """What is measured, by what may stand behind the number; "" is a bare number."""

    factors: Mapping[str, float]
    expected: str  #: for whoever wrote something else


SECONDS = Unit({"": 1, "s": 1, "m": 60, "h": 3600}, "a duration such as 90s, 10m or 1.5h")
MILLISECONDS = Unit({"": 1, "ms": 1, "s": 1000}, "a time such as 15ms or 0.1s")
BYTES = Unit(
    {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "kiB": 2**10, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "bytes, as 500kB, 2MB or 2GiB",
)


def parse(text: str, unit: Unit) -> float:
    """`text` in the unit of a bare number, > 0. Raises ValueError with a sentence."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if found is None or found[2] not in unit.factors or float(found[1]) == 0:
        raise ValueError(f"found {text!r}, expected {unit.expected}")
    return float(found[1]) * unit.factors[found[2]]
