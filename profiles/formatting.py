"""Numbers and lists as text; text escaped for Markdown; CSV. Imports nothing else of this package."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compress.files import sanitize

MAX_LISTED = 8  #: names in one sentence
MAX_FLOAT = 1e300  #: larger numbers overflow in sums and squares
MIN_POSITIVE = 1e-12  #: smaller costs are no measurements, in any unit


def finite_number(value: Any) -> float | None:
    """Return `value` as a float without a negative zero if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_FLOAT:
        return None
    return float(value) + 0.0


def positive_number(value: Any) -> float | None:
    """Return `value` as a float if it is a finite number above zero, and large enough for a measurement, else None."""
    number = finite_number(value)
    return number if number is not None and number >= MIN_POSITIVE else None


def safe_ratio(numerator: Any, denominator: Any) -> float | None:
    """Return the ratio if both are finite numbers and the denominator is above zero, else None."""
    top, bottom = finite_number(numerator), positive_number(denominator)
    return None if top is None or bottom is None else top / bottom


def to_json_safe(value: Any) -> Any:
    """Return `value` as JSON can hold it: NaN as None, unknown types as text, and bytes of names that are not UTF-8."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {to_json_safe(str(key)): to_json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_safe(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode(errors="backslashreplace").decode()


def format_percent(value: float | None, digits: int = 2) -> str:
    """Format a share in [0, 1] as a percentage; empty for None."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def format_factor(value: float | None) -> str:
    """Format a factor with two or three digits: `3.1×`; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}×" if value >= 100 else f"{value:.2g}×" if value < 10 else f"{value:.3g}×"


def format_count(value: float | None) -> str:
    """Format a count with three significant digits and a unit prefix: `180 k`, `23.5 M`; empty for None."""
    if value is None:
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{format_significant(value / size)}{unit}"
    return f"{value:.0f}"


def format_significant(value: float | None) -> str:
    """Format a number with three significant digits, without an exponent unless it is tiny; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def format_scientific(value: float | None) -> str:
    """Format a number as `1.2e-05`; empty for None."""
    return "" if value is None else f"{value:.1e}"


def format_duration(value: Any) -> str:
    """Format seconds as `12.3 s`, `4.5 min` or `2 h 05 min`; empty for anything but a number."""
    seconds = finite_number(value)
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{format_significant(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 120 else f"{seconds / 60:.1f} min"


def capitalize_name(name: str) -> str:
    """Capitalize the first letter, except for a name with capitals of its own: `mIoU` stays."""
    return name[:1].upper() + name[1:] if name.islower() else name


def join_words(items: Sequence[str]) -> str:
    """Join names with commas and a final `and`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def shorten_list(names: Sequence[str], most: int = MAX_LISTED) -> list[str]:
    """Return the first `most` names and how many more there are."""
    return list(names) if len(names) <= most + 1 else [*names[:most], f"{len(names) - most} more"]


def escape_markdown(text: object) -> str:
    """Return text on one line in which nothing is Markdown or HTML markup."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    line = re.sub(r"^([#+>-]|\d+\.)(?=\s|$)", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fence_code(lines: Sequence[str]) -> str:
    """Return lines as a Markdown code block whose fence occurs in none of them."""
    text = "\n".join(lines)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return f"{fence}console\n{text}\n{fence}"


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV. All cells are quoted, because other programs also separate at semicolons and tabs."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([map(escape_formula, row) for row in rows])
    return file.getvalue()


def escape_formula(value: Any) -> Any:
    """Return text on one line, with an apostrophe before what a spreadsheet would take for a formula.

    Spreadsheets ignore spaces, quotes and invisible characters before a formula, some accept full-width signs, and
    some begin a new cell at a semicolon.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    parts = sanitize(str(value), " ").split(";")
    return ";".join(f"'{part}" if is_formula(part) else part for part in parts)


def is_formula(text: str) -> bool:
    return unicodedata.normalize("NFKC", text).lstrip(' "')[:1] in ("=", "+", "-", "@")
