"""Parse numbers with a unit (`90s`, `500kB`, `15ms`), and the bounds of numbers in settings, models and data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

#: far above what any machine can do; below them, no computation overflows
MAX_COUNT, MAX_CLASSES, MAX_IMAGE_SIDE = 2**31 - 1, 10**6, 2**14
MAX_SEED = 2**48 - 1  #: the number of a process is added below the lowest bit


class Unit(NamedTuple):
    """A quantity and the suffixes of its units."""

    factors: Mapping[str, float]  #: suffix -> factor; "" is a bare number
    expected: str  #: examples, for errors
    maximum: float  #: in the unit of a bare number; clocks and sizes beyond it overflow


SECONDS = Unit({"": 1, "s": 1, "m": 60, "h": 3600}, "a duration such as 90s, 10m or 1.5h", 1e9)
MILLISECONDS = Unit({"": 1, "ms": 1, "s": 1000}, "a time such as 15ms or 0.1s", 1e9)
BYTES = Unit(
    {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "kiB": 2**10, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "bytes, such as 500kB, 2MB or 2GiB",
    1e15,
)


def parse_quantity(text: str, unit: Unit) -> float:
    """Parse `text` into a positive number in the unit of a bare number. Raises ValueError with a sentence."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    number = 0.0 if match is None else float(match[1]) * unit.factors.get(match[2], 0)
    if not 0 < number <= unit.maximum:
        raise ValueError(f"found {text!r}, expected {unit.expected}")
    return number
