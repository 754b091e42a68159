"""Report of compared methods: compare.html (self-contained), .md, .csv, .json, and a chart as .svg and .png."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from compress.files import sanitize
from compress.own_files import require_own_report
from profiles.formatting import (
    capitalize_name,
    format_count,
    format_csv,
    format_duration,
    format_percent,
    format_significant,
    to_json_safe,
)
from profiles.records import Record, write_file
from profiles.report import tables
from profiles.report.build import clean_record, clean_text, clean_texts, render_template
from profiles.report.charts import standalone_svg
from profiles.report.figures import Chart, create_learning_curve
from profiles.report.method_comparison import (
    MethodComparison,
    MethodResult,
    format_mean_std,
    list_method_caveats,
    sample_std,
    summarize_comparison,
)
from profiles.report.method_curves import MethodCurves, draw_method_curves

SCHEMA = 1
STEM = "compare"
KINDS = ("html", "markdown", "csv", "json", "svg", "png")
SUFFIXES = {"markdown": "md"}  #: file suffixes that differ from the kind
#: keys of a method in compare.json that are columns in compare.csv
COLUMNS = (
    "method", "name", "is_reference", "mean", "std", "best_mean", "best_std", "seeds", "steps", "batch_size", "seconds",
    "images_per_s", "peak_bytes",
)  # fmt: skip


def write_method_report(folder: Path, comparison: MethodComparison) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the report of a comparison into `folder`, replacing an earlier one.

    Returns:
        The files by kind (html, markdown, csv, json; svg and png if a run has a history), and the JSON content.

    Raises:
        RecordError: `folder` cannot be written.
        UsageError: `folder` contains a file that would be replaced, but that no report wrote.
    """
    comparison = clean_comparison(comparison)
    chart = draw_chart(comparison)
    content = {
        "title": comparison.title, "summary": summarize_comparison(comparison), "tables": method_tables(comparison),
        "charts": [chart] if chart else [], "class_charts": [], "class_table": None, "images": [],
        "commands": list(comparison.commands), "caveats": list_method_caveats(comparison),
        "environment": tables.environment_tables(comparison.records),
    }  # fmt: skip
    data = method_report_data(comparison)
    files = {
        "html": render_template("methods.html.jinja", content).encode("utf-8", "replace"),
        "markdown": render_template("report.md.jinja", content).encode("utf-8", "replace"),
        "csv": methods_to_csv(data["methods"]).encode("utf-8", "replace"),
        "json": (json.dumps(data, indent=2) + "\n").encode(),
    }
    if chart is not None:
        files |= {"svg": standalone_svg(chart.svg), "png": render_chart(comparison, "png")}
    paths = {kind: Path(folder) / f"{STEM}.{SUFFIXES.get(kind, kind)}" for kind in files}
    require_own_report(paths["json"], list(paths.values()))
    # the JSON file is the first: it says that the others are ours, also if this process is killed between two files
    for kind, path in sorted(paths.items(), key=lambda item: item[0] != "json"):
        write_file(path, files[kind])
    return paths, data


def check_comparison_dir(folder: Path) -> None:
    """Raise UsageError if a report of a comparison would replace a file in `folder` that no report wrote."""
    names = [f"{STEM}.{SUFFIXES.get(kind, kind)}" for kind in KINDS]
    require_own_report(folder / f"{STEM}.json", [folder / name for name in names])


def clean_comparison(comparison: MethodComparison) -> MethodComparison:
    """Return a comparison whose texts are harmless. Raises RecordError for impossible numbers."""
    results = [
        replace(
            one, name=clean_text(one.name), records=list(map(clean_record, one.records)),
            learns_from=list(map(clean_text, one.learns_from)), settings=clean_texts(one.settings),
        )
        for one in comparison.results
    ]  # fmt: skip
    return replace(
        comparison, title=clean_text(comparison.title), results=results,
        teacher=None if comparison.teacher is None else clean_record(comparison.teacher),
        skipped=clean_texts(list(comparison.skipped)), failed=clean_texts(list(comparison.failed)),
        commands=list(map(sanitize, comparison.commands)), notes=list(map(clean_text, comparison.notes)),
    )  # fmt: skip


def method_tables(comparison: MethodComparison) -> list[tables.Table]:
    """Build the ranking, and the tables of settings, skipped methods and failed runs."""
    settings = [
        [r.name, ", ".join(f"{k} = {v}" for k, v in r.settings.items())] for r in comparison.ranked if r.settings
    ]
    failed = [[f"{name}, seed {seed}", error] for name, seed, error in comparison.failed]
    all_tables = [
        method_table(comparison),
        tables.Table("Given settings; all others are the methods' defaults.", ["Method", "Settings"], settings),
        tables.Table("Not compared.", ["Method", "Why"], [list(pair) for pair in comparison.skipped]),
        tables.Table("Runs that failed.", ["Run", "Error"], failed),
    ]
    return [table for table in all_tables if table is not None and table.rows]


def method_table(comparison: MethodComparison) -> tables.Table | None:
    """Build one row per method, the best first."""
    columns: dict[str, Callable[[MethodResult], str]] = {
        "Method": lambda r: r.name,
        capitalize_name(comparison.metric_name): lambda r: format_mean_std(comparison.scores(r)),
        "Each seed": lambda r: ", ".join(f"{100 * s:.1f}" for s in comparison.scores(r)) if len(r.records) > 1 else "",
        "Best during training": lambda r: format_mean_std(comparison.best_scores(r)),
        "Steps": lambda r: average_of_runs(r, "steps", "{:.0f}".format),
        "Batch": lambda r: average_of_runs(r, "batch_size", "{:.0f}".format),
        "Time": lambda r: average_of_runs(r, "wall_s", format_duration),
        "Images/s": lambda r: average_of_runs(r, "images_per_s", format_significant),
        "Peak memory": lambda r: f"{format_count(max(r.values('peak_bytes')))}B" if r.values("peak_bytes") else "",
        "Learns from": lambda r: ", ".join(r.learns_from),
    }
    caption = (
        f"{capitalize_name(comparison.metric_name)} at the end of the run: mean ± sample standard deviation. Steps, "
        "time and images per second are means; memory is the maximum over the runs."
    )
    ranked = comparison.ranked
    best = next((result for result in ranked if not result.is_reference), None)
    return tables.build_table(caption, columns, ranked, best)


def average_of_runs(result: MethodResult, key: str, text: Callable[[float], str]) -> str:
    """Format the mean of a number over the runs; empty if no run has it."""
    values = result.values(key)
    return text(mean(values)) if values else ""


def draw_chart(comparison: MethodComparison) -> Chart | None:
    """Draw the learning curves for the page, with a description; None if no run has a history."""
    svg = render_chart(comparison, "svg")
    if not svg:
        return None
    words = "; ".join(
        f"{result.name} ends at {format_percent(mean(comparison.scores(result)), 1)}" for result in comparison.ranked
    )
    band = " The bands span the seeds." if any(len(result.records) > 1 for result in comparison.results) else ""
    title = f"{capitalize_name(comparison.metric_name)} over training time"
    return Chart(f"{STEM}.svg", title, f"{title}, the mean over the seeds.{band} {words}.", svg)


def render_chart(comparison: MethodComparison, form: Literal["svg", "png"]) -> bytes:
    """Render the learning curves as a file; empty if no run has a history."""
    lines = []
    for result in comparison.ranked:
        curves = [create_learning_curve(record, comparison.metric) for record in result.records]
        scored = [curve for curve in curves if curve is not None and curve.seconds[-1] > 0]
        lines += [MethodCurves(result.name, scored)] if scored else []
    level = None if comparison.teacher_score is None else ("teacher", comparison.teacher_score)
    return (
        draw_method_curves(lines, level=level, y_label=comparison.metric_name, salt=STEM, form=form) if lines else b""
    )


def method_report_data(comparison: MethodComparison) -> dict[str, Any]:
    """Return the comparison as JSON values, unrounded, with every run."""
    teacher = comparison.teacher
    return to_json_safe({
        "schema": SCHEMA,
        "title": comparison.title,
        "summary": summarize_comparison(comparison),
        "metric": comparison.metric,
        "budget_s": comparison.budget_s,
        "budget_steps": comparison.steps,
        "teacher": None if teacher is None else {"name": teacher.name, "score": comparison.teacher_score},
        "methods": [method_data(comparison, result) for result in comparison.ranked],
        "skipped": [{"name": name, "reason": reason} for name, reason in comparison.skipped],
        "failed": [{"name": name, "seed": seed, "error": error} for name, seed, error in comparison.failed],
        "commands": comparison.commands,
        "caveats": list_method_caveats(comparison),
    })  # fmt: skip


def method_data(comparison: MethodComparison, result: MethodResult) -> dict[str, Any]:
    """Return one method: its means, and its runs."""
    scores, bests = comparison.scores(result), comparison.best_scores(result)
    means = {
        name: mean(values) if (values := result.values(key)) else None
        for name, key in (
            ("steps", "steps"), ("batch_size", "batch_size"), ("seconds", "wall_s"), ("images_per_s", "images_per_s"),
        )
    }  # fmt: skip
    each = zip(result.records, scores, bests, strict=True)
    return {
        "method": result.key, "name": result.name, "is_reference": result.is_reference,
        "learns_from": result.learns_from, "settings": result.settings,
        "mean": mean(scores), "std": sample_std(scores), "best_mean": mean(bests), "best_std": sample_std(bests),
        "seeds": len(scores), **means, "peak_bytes": maximum(result.values("peak_bytes")),
        "runs": [run_data(comparison.metric, *one) for one in each],
    }  # fmt: skip


def maximum(values: Sequence[float]) -> int | None:
    return round(max(values)) if values else None


def run_data(metric: str, record: Record, score: float, best: float) -> dict[str, Any]:
    run, history = record.run, record.run.get("history")
    return {
        "seed": run.get("seed"), "last": score, "best": best, "best_step": run.get("best_step"),
        "steps": run.get("steps"), "seconds": run.get("wall_s"), "images_per_s": run.get("images_per_s"),
        "peak_bytes": run.get("peak_bytes"), "command": run.get("command"),
        "history": [
            {"step": one.get("step"), "seconds": one.get("seconds"), "score": one.get(metric)}
            for one in (history if isinstance(history, list) else []) if isinstance(one, dict)
        ],
    }  # fmt: skip


def methods_to_csv(methods: Sequence[Mapping[str, Any]]) -> str:
    """Convert the ranking to CSV with unrounded numbers, one row per method."""
    lines: list[list[Any]] = [[*COLUMNS, "learns_from", "settings"]]
    for one in methods:
        settings = "; ".join(f"{key}={value}" for key, value in one["settings"].items())
        lines.append([*(one[name] for name in COLUMNS), "; ".join(one["learns_from"]), settings])
    return format_csv(lines)
