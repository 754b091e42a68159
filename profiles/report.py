"""Records -> one report: `report.html` (one file, needs nothing else), `report.md`, `report.json`. Runs no model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from profiles import charts, tables
from profiles.comparison import Comparison, heading
from profiles.pictures import embed
from profiles.record import Record, as_json, finite, write_atomically
from profiles.wording import caveats, cell, change, count, fenced, share, summary

SCHEMA = 1
MOST_MODELS = 6  #: in the charts of classes
MOST_BARS = 30  #: in one of them
TITLE = "Compression report"


@dataclass(frozen=True)
class Chart:
    """One chart of the report."""

    file: str  #: its name beside `report.md`
    title: str
    description: str  #: the same in words
    svg: bytes

    @property
    def inline(self) -> Markup:
        return Markup(charts.inline(self.svg, self.description))


def write_report(
    folder: Path,
    records: Sequence[Record],
    *,
    title: str = TITLE,
    pictures: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> dict[str, Path]:
    """Write the report of `records` into `folder`, each file in the place of the one before; return its three files.

    `pictures` (caption -> image file) are embedded; one that cannot be read becomes a caveat. `notes` are caveats of
    the caller's. `commands` reproduce the results; those that the records' runs remember are added. The keys of the
    result are html, markdown and json. Raises RecordError where the folder cannot be written.
    """
    folder = Path(folder)
    comparison = Comparison(records)
    shown, failures = embed(pictures or {})
    drawn, by_class = draw(comparison), draw_classes(comparison)
    content = {
        "title": title,
        "summary": summary(comparison),
        "tiles": tiles(comparison),
        "tables": tables.all_tables(comparison),
        "charts": drawn,
        "class_charts": by_class,
        "class_table": tables.classes(comparison),
        "pictures": shown,
        "commands": list(dict.fromkeys([*commands, *(str(r.run["command"]) for r in records if r.run.get("command"))])),
        "caveats": [*notes, *caveats(comparison), *failures],
        "environment": tables.environment(records),
    }
    paths = {"html": folder / "report.html", "markdown": folder / "report.md", "json": folder / "report.json"}
    write_atomically(paths["html"], render("report.html.jinja", content).encode("utf-8", "replace"))
    for chart in [*drawn, *by_class]:
        write_atomically(folder / chart.file, charts.standalone(chart.svg))
    beside = [replace(p, source=relative(p.path, folder)) for p in shown]
    markdown = render("report.md.jinja", content | {"pictures": beside})
    write_atomically(paths["markdown"], markdown.encode("utf-8", "replace"))
    write_atomically(paths["json"], (json.dumps(machine_readable(content, comparison), indent=2) + "\n").encode())
    return paths


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


def tiles(comparison: Comparison) -> list[tuple[str, str]]:
    """The best model in a few large numbers: (number, what it is)."""
    best = comparison.best()
    if best is None:
        return []
    found = [
        (share(comparison.score(best), 1), comparison.metric_name),
        (share(comparison.retained(best), 1), "of its teacher's"),
        change(comparison.fewer_macs(best), "fewer MACs", "more MACs"),
        change(comparison.fewer_params(best), "fewer parameters", "more parameters"),
        change(comparison.speedup(best), "faster", "slower"),
        (count(best.params) if comparison.teacher(best) is None else "", "parameters"),
    ]
    return [(value, name) for value, name in found if value]


def draw(comparison: Comparison) -> list[Chart]:
    """The charts that the records have something for."""
    metric = comparison.metric_name
    drawn = []
    for cost, label in (("flops", "GFLOP per image"), ("latency", f"median latency in ms: {comparison.setting}")):
        points = points_of(comparison, cost)
        if len(points) < 2:
            continue
        best = ", ".join(point.name for point in sorted(points, key=lambda p: p.cost) if point.optimal)
        unit = "GFLOP" if cost == "flops" else "ms"
        words = "; ".join(f"{p.name}: {share(p.score, 1)} at {p.cost:.3g} {unit}" for p in points)
        name = f"{heading(metric)} against {'GFLOP' if cost == 'flops' else 'latency'}"
        svg = charts.scatter(points, x_label=label, y_label=metric, salt=cost)
        description = f"{name}. {words}. Pareto-optimal: {best}."
        drawn.append(Chart(f"report_{cost}.svg", name, description, svg))
    lines = [curve for record in comparison.records if (curve := curve_of(record, comparison.metric)) is not None]
    if lines:
        teacher = comparison.teachers[0] if len(comparison.teachers) == 1 else None
        score = None if teacher is None else comparison.score(teacher)
        level = None if teacher is None or score is None else (teacher.name, score)
        svg = charts.curves(lines, level=level, y_label=metric, salt="learning")
        words = "; ".join(f"{c.name} ends at {share(c.scores[-1], 1)} after {c.seconds[-1]:.0f} s" for c in lines)
        description = f"{heading(metric)} over training time. {words}."
        drawn.append(Chart("report_learning.svg", "Learning curves", description, svg))
    return drawn


def draw_classes(comparison: Comparison) -> list[Chart]:
    """IoU of each class, teacher and best students side by side, in as many charts as keep the names readable."""
    names = comparison.classes
    scored = [r for r in comparison.records if any(comparison.class_iou(r, name) is not None for name in names)]
    best = sorted(scored, key=lambda r: (r.role != "teacher", -(comparison.score(r) or 0.0)))[:MOST_MODELS]
    models = [record for record in scored if any(record is one for one in best)]
    if not models:
        return []
    parts = -(-len(names) // max(4, MOST_BARS // len(models)))
    drawn = []
    for i in range(parts):
        part = names[i * len(names) // parts : (i + 1) * len(names) // parts]
        rows = [
            charts.Bars(r.name, [comparison.class_iou(r, name) for name in part], r.role == "teacher") for r in models
        ]
        title = "IoU of each class" + (f", {i + 1} of {parts}" if parts > 1 else "")
        file = "report_classes.svg" if i == 0 else f"report_classes_{i + 1}.svg"
        svg = charts.bars(part, rows, x_label="intersection over union", salt=f"classes {i}")
        drawn.append(Chart(file, title, f"{title}. {' '.join(map(extremes, rows, [part] * len(rows)))}", svg))
    return drawn


def extremes(row: charts.Bars, names: Sequence[str]) -> str:
    """A row of bars in words: its lowest and its highest."""
    known = sorted((value, name) for value, name in zip(row.values, names, strict=True) if value is not None)
    if not known:
        return f"{row.name}: not known."
    (low, worst), (high, best) = known[0], known[-1]
    return f"{row.name}: from {share(low, 1)} ({worst}) to {share(high, 1)} ({best})."


def points_of(comparison: Comparison, cost: str) -> list[charts.Point]:
    front = comparison.front(cost)
    points = []
    for record in comparison.records:
        price, score = comparison.cost(record, cost), comparison.score(record)
        if price is not None and score is not None:
            series = record.method or record.role
            optimal = any(record is one for one in front)
            points.append(charts.Point(record.name, price, score, series, record.role == "teacher", optimal))
    return points


def curve_of(record: Record, metric: str) -> charts.Curve | None:
    """Quality over time from a run's history, or None where it has none."""
    history = record.run.get("history")
    pairs = [
        (float(entry["seconds"]), float(entry[metric]))
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict) and entry.get("seconds") is not None and entry.get(metric) is not None
    ]
    return charts.Curve(record.name, [s for s, _ in pairs], [m for _, m in pairs]) if pairs else None


def machine_readable(content: Mapping[str, Any], comparison: Comparison) -> dict[str, Any]:
    """The report for programs: every record as it is, and what was computed from them all."""
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
    best = comparison.best()
    return {
        "schema": SCHEMA,
        "title": content["title"],
        "summary": content["summary"],
        "best": None if best is None else best.name,
        "metric": comparison.metric,
        "latency_setting": None if comparison.setting is None else str(comparison.setting),
        "pareto": {cost: [record.name for record in comparison.front(cost)] for cost in ("flops", "latency")},
        "records": finite(models),
        "commands": content["commands"],
        "caveats": content["caveats"],
    }
