"""The report's page as one self-contained HTML file: template, styles, scripts, data and a content security policy."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from profiles.report.html_tables import INITIAL_ROWS, initial_rows, verification_table, visible_columns
from profiles.report.images import EmbeddedImage
from profiles.report.rows import TIMES
from profiles.report.tables import Table

PAGE = Path(__file__).parent / "page"
PLOTLY = PAGE / "vendor" / "plotly-basic.min.js"
#: our scripts in the order of execution; each uses the names of those before it
SCRIPTS = (
    "data", "words", "choice", "state", "look", "highlight", "tradeoffs", "filters", "budget", "details", "table",
    "courses", "classes", "start",
)  # fmt: skip


def render_page(
    data: Mapping[str, Any],
    *,
    tables: Sequence[Table] = (),
    images: Sequence[EmbeddedImage] = (),
    commands: Sequence[str] = (),
    caveats: Sequence[str] = (),
    environment: Sequence[Table] = (),
) -> str:
    """Render the page as HTML. All text from records is escaped.

    Args:
        data: Result of `profiles.report.rows.build_page_data`.
        tables: Tables shown beside the verification of the exported files.
        images: Images whose source is a data URI.
        commands: Command lines that reproduce the results.
        caveats: Caveats of the results.
        environment: Tables with two columns.

    Raises:
        ValueError: `data` contains NaN or an infinity.
    """
    kept = visible_columns(data)
    script = page_script()
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = templates.get_template("page.html.jinja").render(
        title=data["title"], summary=data["summary"], rows=len(data["rows"]), first=INITIAL_ROWS, columns=kept,
        first_rows=initial_rows(data, kept), has_curves=bool(data.get("curves")), has_classes=bool(data.get("classes")),
        verification=verification_table(data), tables=tables, images=images, commands=commands, caveats=caveats,
        environment=environment, policy=security_policy([read_plotly(), script]),
        style=Markup(read_asset("theme.css") + read_asset("page.css")),
        plotly=Markup(read_plotly()), script=Markup(script),
        data=script_json(script_data(data, [one.key for one in kept])),
    )  # fmt: skip
    return text.rstrip() + "\n"


def script_data(data: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    """Return the data of the scripts: `data` with packed rows and rounded numbers, and the CSV names of latencies."""
    rest = {key: round_numbers(value) for key, value in data.items() if key != "rows"}
    return rest | {"rows": pack_rows(data["rows"]), "columns": list(kept), "csv_times": TIMES}


@cache
def read_asset(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


@cache
def read_plotly() -> str:
    """Return Plotly's basic bundle as published."""
    return f"\n{PLOTLY.read_text(encoding='utf-8').strip()}\n"


@cache
def page_script() -> str:
    """Return our scripts as one that defines no global name."""
    text = "\n".join(read_asset(f"js/{name}.js") for name in SCRIPTS)
    return f'\n(() => {{\n"use strict";\n{text}\n}})();\n'


def security_policy(scripts: Sequence[str]) -> str:
    """Return a content security policy that allows exactly these scripts and no network.

    Inline styles must be allowed, because Plotly writes them while drawing.
    """
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


MAX_KEYS = 200  #: columns of packed objects
DIGITS = 9  #: significant digits of numbers, more than any measurement has
#: characters that could end a script element or a line of JavaScript -> how JSON may write them
ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def script_json(value: Any) -> Markup:
    """Return a JSON value as the text of a `<script type="application/json">`, which it cannot close.

    Raises ValueError for NaN and infinities.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(ESCAPES))


def pack_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pack rows as `{"length": n, "column": packed}`."""
    return {"length": len(rows), "column": pack_column([dict(row) for row in rows])}


def pack_column(values: Sequence[Any]) -> Any:
    """Pack a column of JSON values.

    null: all are null. A list: the values. {"words", "index"}: repeated strings, -1 for null. {"of", "at"}: objects, a
    packed column per key, at these indices (without "at": at all). Keys of objects must be strings.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    keys = dict.fromkeys(key for value in known if isinstance(value, dict) for key in value)
    if all(isinstance(value, dict) for value in known) and len(keys) <= MAX_KEYS:
        packed: dict[str, Any] = {"of": {key: pack_column([value.get(key) for value in known]) for key in keys}}
        if len(known) < len(values):
            packed["at"] = [i for i, value in enumerate(values) if value is not None]
        return packed
    if all(isinstance(value, str) for value in known) and len(words := list(dict.fromkeys(known))) < len(known) / 2:
        index = {word: i for i, word in enumerate(words)}
        return {"words": words, "index": [-1 if value is None else index[value] for value in values]}
    return [round_numbers(value) for value in values]


def round_numbers(value: Any) -> Any:
    """Round numbers to `DIGITS` significant digits; integers are unchanged."""
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")
    if isinstance(value, list | tuple):
        return [round_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: round_numbers(item) for key, item in value.items()}
    return value
