"""Rows of JSON made small: by columns, words that repeat named once, what is not known left out. `data.js` unpacks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

DIGITS = 9  #: significant digits that are kept of a number: more than any measurement has
#: characters that could end a script element or a line of JavaScript -> how JSON may write them
ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def script_json(value: Any) -> Markup:
    """Any JSON value as the text of a `<script type="application/json">`: nothing in it can end the element.

    Raises ValueError on NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(ESCAPES))


def packed_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as `{"length": n, "column": packed}`."""
    return {"length": len(rows), "column": packed([dict(row) for row in rows])}


def packed(values: Sequence[Any]) -> Any:
    """A column of JSON values, smaller.

    null: all are; a list: as they are; {"words", "index"}: strings that repeat, -1 for null; {"of", "at"}: objects, a
    packed column a key, at these places (without "at": at all). Keys of objects must be strings.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    if all(isinstance(value, dict) for value in known):
        keys = dict.fromkeys(key for value in known for key in value)
        found: dict[str, Any] = {"of": {key: packed([value.get(key) for value in known]) for key in keys}}
        if len(known) < len(values):
            found["at"] = [i for i, value in enumerate(values) if value is not None]
        return found
    if all(isinstance(value, str) for value in known) and len(words := list(dict.fromkeys(known))) < len(known) / 2:
        place = {word: i for i, word in enumerate(words)}
        return {"words": words, "index": [-1 if value is None else place[value] for value in values]}
    return [shorter(value) for value in values]


def shorter(value: Any) -> Any:
    """A value with its numbers rounded to `DIGITS`; whole numbers stay whole."""
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")
    if isinstance(value, list | tuple):
        return [shorter(item) for item in value]
    if isinstance(value, dict):
        return {key: shorter(item) for key, item in value.items()}
    return value
