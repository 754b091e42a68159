"""Records -> one report: `report.html` (one file, needs nothing else), .md, .csv and .json. Runs no model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from profiles import charts, tables
from profiles.advice import Advice, Budget, advise
from profiles.comparison import Comparison, Cost
from profiles.illustrations import draw, draw_classes
from profiles.joining import over_seeds
from profiles.page import render_page
from profiles.pictures import embed
from profiles.plain import finite
from profiles.record import Record, as_json, write_atomically
from profiles.tradeoff import as_csv, page_data, ranked
from profiles.wording import caveats, cell, fenced

SCHEMA = 2
TITLE = "Compression report"
ENDINGS = {"markdown": "md"}  #: of the kinds of file that are not called after theirs


def write_report(
    folder: Path,
    records: Sequence[Record],
    *,
    title: str = TITLE,
    pictures: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
    budget: Budget | None = None,
) -> dict[str, Path]:
    """Write the report of `records` into `folder`, each file in the place of the one before; return its files.

    Runs that only a seed tells apart are one model. `budget`: what the model that is advised may cost. `pictures`
    (caption -> image file) are embedded; one that cannot be read becomes a caveat. `notes` are caveats of the
    caller's. `commands` reproduce the results; those that the records' runs remember are added. The keys of the result
    are html, markdown, csv and json. Raises RecordError where the folder cannot be written.
    """
    folder, budget = Path(folder), budget or Budget()
    models = over_seeds(records)
    comparison = Comparison(models if len(models) <= tables.MOST_ROWS else ranked(Comparison(models)))
    advice = advise(comparison, budget)
    shown, failures = embed(pictures or {})
    drawn, by_class = draw(comparison, records), draw_classes(comparison)
    data = page_data(comparison, records, advice, budget, title=title)
    content = {
        "title": title,
        "summary": advice.sentence,
        "tables": tables.all_tables(comparison),
        "charts": drawn,
        "class_charts": by_class,
        "class_table": tables.classes(comparison),
        "pictures": shown,
        "commands": list(dict.fromkeys([*commands, *(str(r.run["command"]) for r in records if r.run.get("command"))])),
        "caveats": [*notes, *caveats(comparison), *failures],
        "environment": tables.environment(records),
    }
    beside = [replace(p, source=relative(p.path, folder)) for p in shown]
    written = {
        "html": page(data, content, comparison).encode("utf-8", "replace"),
        "markdown": render("report.md.jinja", content | {"pictures": beside}).encode("utf-8", "replace"),
        "csv": as_csv(data).encode("utf-8", "replace"),
        "json": (json.dumps(machine_readable(content, data, comparison, advice), indent=2) + "\n").encode(),
    }
    paths = {kind: folder / f"report.{ENDINGS.get(kind, kind)}" for kind in written}
    for kind, path in paths.items():
        write_atomically(path, written[kind])
    for chart in [*drawn, *by_class]:
        write_atomically(folder / chart.file, charts.standalone(chart.svg))
    return paths


def page(data: Mapping[str, Any], content: Mapping[str, Any], comparison: Comparison) -> str:
    """The report as a page that draws itself."""
    made = tables.runs(comparison)
    parts = {key: content[key] for key in ("pictures", "commands", "caveats", "environment")}
    return render_page(data, tables=[] if made is None else [made], **parts)


def relative(path: Path, folder: Path) -> str:
    """`path` as `report.md` in `folder` names it."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def render(template: str, content: Mapping[str, Any]) -> str:
    """A template of this package filled in; everything that is not Markup is escaped in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    environment.filters["fenced"] = fenced
    return environment.get_template(template).render(content).rstrip() + "\n"


def machine_readable(
    content: Mapping[str, Any], data: Mapping[str, Any], comparison: Comparison, advice: Advice
) -> dict[str, Any]:
    """The report for programs: every model as it is, and what was computed from them all."""
    models = [
        as_json(record)
        | {
            "retained_share": comparison.retained(record),
            "macs_ratio": comparison.fewer_macs(record),
            "params_ratio": comparison.fewer_params(record),
            "speedup": comparison.speedup(record),
        }
        for record in comparison.records
    ]
    best = advice.record
    costs: list[Cost] = ["flops", "latency", "size", "energy"]
    return {
        "schema": SCHEMA,
        "title": content["title"],
        "summary": content["summary"],
        "best": None if best is None else tables.form(best),
        "budget": data["budget"],
        "metric": comparison.metric,
        "latency_setting": None if comparison.setting is None else str(comparison.setting),
        "pareto": {cost: [tables.form(record) for record in comparison.front(cost)] for cost in costs},
        "records": finite(models),
        "commands": content["commands"],
        "caveats": content["caveats"],
    }
