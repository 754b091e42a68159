"""The page's parts put together: template, styles, scripts, data, and the policy that forbids it the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from profiles.page.cells import FIRST, columns, first_rows, verification
from profiles.page.packing import packed_rows, script_json, shorter
from profiles.pictures import Picture
from profiles.tables import Table
from profiles.tradeoff import TIMES

HERE = Path(__file__).parent
PLOTLY = HERE / "vendor" / "plotly-basic.min.js"
#: our scripts in the order in which they run, as one: each sees the names of those before it
SCRIPTS = (
    "data", "words", "choice", "state", "look", "highlight", "tradeoffs", "filters", "budget", "details", "table",
    "courses", "classes", "start",
)  # fmt: skip


def render_page(
    data: Mapping[str, Any],
    *,
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
    commands: Sequence[str] = (),
    caveats: Sequence[str] = (),
    environment: Sequence[Table] = (),
) -> str:
    """The page as HTML; everything in it that comes from records is text, whatever they are named.

    `data` is what `profiles.tradeoff.page_data` makes. `tables` are shown beside the verification of the artefacts
    (how the models were made, say); `pictures` have their data URIs as source; `environment` are tables of two
    columns. Raises ValueError on numbers that JSON does not have.
    """
    kept = columns(data)
    script = ours()
    environment_of_templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment_of_templates.get_template("page.html.jinja").render(
        title=data["title"], summary=data["summary"], rows=len(data["rows"]), first=FIRST, columns=kept,
        first_rows=first_rows(data, kept), has_curves=bool(data.get("curves")), has_classes=bool(data.get("classes")),
        verification=verification(data), tables=tables, pictures=pictures, commands=commands, caveats=caveats,
        environment=environment, policy=policy([plotly(), script]), style=Markup(read("theme.css") + read("page.css")),
        plotly=Markup(plotly()), script=Markup(script), data=script_json(embedded(data, [one.key for one in kept])),
    )  # fmt: skip
    return text.rstrip() + "\n"


def embedded(data: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    """What the scripts read: `data` with its rows packed, numbers shortened, and how the CSV calls the times."""
    rest = {key: shorter(value) for key, value in data.items() if key != "rows"}
    return rest | {"rows": packed_rows(data["rows"]), "columns": list(kept), "csv_times": TIMES}


@cache
def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@cache
def plotly() -> str:
    """Plotly's basic bundle, as its makers publish it."""
    return f"\n{PLOTLY.read_text(encoding='utf-8').strip()}\n"


@cache
def ours() -> str:
    """Our scripts as one that leaves no name behind."""
    text = "\n".join(read(f"js/{name}.js") for name in SCRIPTS)
    return f'\n(() => {{\n"use strict";\n{text}\n}})();\n'


def policy(scripts: Sequence[str]) -> str:
    """The content security policy: these very scripts and no other, nothing from anywhere.

    Styles must be allowed as such: Plotly writes them as it draws.
    """
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
