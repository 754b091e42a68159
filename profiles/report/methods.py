"""A contest -> compare.html (one file, needs nothing else), .md, .csv, .json, and its picture as .svg and .png."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from profiles.formatting import (
    capitalize_name,
    format_count,
    format_duration,
    format_percent,
    format_significant,
    to_json_safe,
)
from profiles.records import Record, write_file
from profiles.report import tables
from profiles.report.build import render_template
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
SUFFIXES = {"markdown": "md"}  #: of the kinds of file that are not called after theirs
#: keys of a method in compare.json that are columns of compare.csv
COLUMNS = (
    "method", "name", "is_reference", "mean", "std", "best_mean", "best_std", "seeds", "steps", "batch_size", "seconds",
    "images_per_s", "peak_bytes",
)  # fmt: skip


def write_method_report(folder: Path, contest: MethodComparison) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the contest into `folder`, each file in the place of the one before.

    Returns the files by kind (html, markdown, csv, json, and svg and png where a run was scored) and what the JSON
    file holds. Raises RecordError where the folder cannot be written.
    """
    drawn = draw_chart(contest)
    found = {
        "title": contest.title, "summary": summarize_comparison(contest), "tables": method_tables(contest),
        "charts": [drawn] if drawn else [], "class_charts": [], "class_table": None, "images": [],
        "commands": list(contest.commands), "caveats": list_method_caveats(contest),
        "environment": tables.environment_tables(contest.records),
    }  # fmt: skip
    numbers = method_report_data(contest)
    content = {
        "html": render_template("methods.html.jinja", found).encode("utf-8", "replace"),
        "markdown": render_template("report.md.jinja", found).encode("utf-8", "replace"),
        "csv": methods_to_csv(numbers["methods"]).encode("utf-8", "replace"),
        "json": (json.dumps(numbers, indent=2) + "\n").encode(),
    }
    if drawn is not None:
        content |= {"svg": standalone_svg(drawn.svg), "png": render_chart(contest, "png")}
    paths = {kind: Path(folder) / f"{STEM}.{SUFFIXES.get(kind, kind)}" for kind in content}
    for kind, path in paths.items():
        write_file(path, content[kind])
    return paths, numbers


def method_tables(contest: MethodComparison) -> list[tables.Table]:
    """The standings; then which settings were given, which methods cannot run here, and which runs broke."""
    given = [[e.name, ", ".join(f"{k} = {v}" for k, v in e.settings.items())] for e in contest.ranked if e.settings]
    broken = [[f"{name}, seed {seed}", words] for name, seed, words in contest.failed]
    made = [
        method_table(contest),
        tables.Table("Settings that were given; all others are the methods' own.", ["Method", "Settings"], given),
        tables.Table("Not compared.", ["Method", "Why"], [list(pair) for pair in contest.skipped]),
        tables.Table("Runs that failed.", ["Run", "Its last words"], broken),
    ]
    return [table for table in made if table is not None and table.rows]


def method_table(contest: MethodComparison) -> tables.Table | None:
    """One row a method, the best first."""
    columns: dict[str, Callable[[MethodResult], str]] = {
        "Method": lambda e: e.name,
        capitalize_name(contest.metric_name): lambda e: format_mean_std(contest.scores(e)),
        "Each seed": lambda e: ", ".join(f"{100 * s:.1f}" for s in contest.scores(e)) if len(e.records) > 1 else "",
        "Best on the way": lambda e: format_mean_std(contest.best_scores(e)),
        "Steps": lambda e: average_of_runs(e, "steps", "{:.0f}".format),
        "Batch": lambda e: average_of_runs(e, "batch_size", "{:.0f}".format),
        "Time": lambda e: average_of_runs(e, "wall_s", format_duration),
        "Images/s": lambda e: average_of_runs(e, "images_per_s", format_significant),
        "Peak memory": lambda e: f"{format_count(max(e.values('peak_bytes')))}B" if e.values("peak_bytes") else "",
        "Learns from": lambda e: ", ".join(e.learns_from),
    }
    caption = (
        f"{capitalize_name(contest.metric_name)} at the end of the run: mean ± sample standard deviation over the seeds. "
        "Steps, time and images a second are means; memory is the most that any run took."
    )
    ranked = contest.ranked
    best = next((entry for entry in ranked if not entry.is_reference), None)
    return tables.build_table(caption, columns, ranked, best)


def average_of_runs(entry: MethodResult, key: str, text: Callable[[float], str]) -> str:
    """The mean of a number over the runs, in words; empty where none knows it."""
    values = entry.values(key)
    return text(mean(values)) if values else ""


def draw_chart(contest: MethodComparison) -> Chart | None:
    """The picture for a page, and the same in words; None where no run was scored on its way."""
    svg = render_chart(contest, "svg")
    if not svg:
        return None
    words = "; ".join(
        f"{entry.name} ends at {format_percent(mean(contest.scores(entry)), 1)}" for entry in contest.ranked
    )
    band = " The bands span the seeds." if any(len(entry.records) > 1 for entry in contest.results) else ""
    title = f"{capitalize_name(contest.metric_name)} over training time"
    return Chart(f"{STEM}.svg", title, f"{title}, the mean over the seeds.{band} {words}.", svg)


def render_chart(contest: MethodComparison, form: Literal["svg", "png"]) -> bytes:
    """The picture as a file; empty where no run was scored on its way."""
    lines = []
    for entry in contest.ranked:
        curves = [create_learning_curve(record, contest.metric) for record in entry.records]
        scored = [curve for curve in curves if curve is not None]
        lines += [MethodCurves(entry.name, scored)] if scored else []
    level = None if contest.teacher_score is None else ("teacher", contest.teacher_score)
    return draw_method_curves(lines, level=level, y_label=contest.metric_name, salt=STEM, form=form) if lines else b""


def method_report_data(contest: MethodComparison) -> dict[str, Any]:
    """The contest for programs: unrounded, every run by itself too."""
    teacher = contest.teacher
    return to_json_safe({
        "schema": SCHEMA,
        "title": contest.title,
        "summary": summarize_comparison(contest),
        "metric": contest.metric,
        "budget_s": contest.budget_s,
        "budget_steps": contest.steps,
        "teacher": None if teacher is None else {"name": teacher.name, "score": contest.teacher_score},
        "methods": [method_data(contest, entry) for entry in contest.ranked],
        "skipped": [{"name": name, "reason": reason} for name, reason in contest.skipped],
        "failed": [{"name": name, "seed": seed, "error": words} for name, seed, words in contest.failed],
        "commands": contest.commands,
        "caveats": list_method_caveats(contest),
    })  # fmt: skip


def method_data(contest: MethodComparison, entry: MethodResult) -> dict[str, Any]:
    """One method: its means, and its runs."""
    scores, bests = contest.scores(entry), contest.best_scores(entry)
    means = {
        name: mean(values) if (values := entry.values(key)) else None
        for name, key in (
            ("steps", "steps"), ("batch_size", "batch_size"), ("seconds", "wall_s"), ("images_per_s", "images_per_s"),
        )
    }  # fmt: skip
    each = zip(entry.records, scores, bests, strict=True)
    return {
        "method": entry.key, "name": entry.name, "is_reference": entry.is_reference,
        "learns_from": entry.learns_from, "settings": entry.settings,
        "mean": mean(scores), "std": sample_std(scores), "best_mean": mean(bests), "best_std": sample_std(bests),
        "seeds": len(scores), **means, "peak_bytes": maximum(entry.values("peak_bytes")),
        "runs": [run_data(contest.metric, *one) for one in each],
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
    """The standings with their numbers unrounded, one row a method; what is not known is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, "learns_from", "settings"])
    for one in methods:
        settings = "; ".join(f"{key}={value}" for key, value in one["settings"].items())
        writer.writerow([*(one[name] for name in COLUMNS), "; ".join(one["learns_from"]), settings])
    return file.getvalue()
