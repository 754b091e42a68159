"""A contest -> compare.html (one file, needs nothing else), .md, .csv, .json, and its picture as .svg and .png."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from profiles import tables
from profiles.charts import standalone
from profiles.comparison import heading
from profiles.contest import Contest, Entry, caveats, deviation, spread, summary
from profiles.courses import Course, courses
from profiles.illustrations import Chart, curve_of
from profiles.plain import finite
from profiles.record import Record, write_atomically
from profiles.report import render
from profiles.wording import count, seconds, share, three

SCHEMA = 1
STEM = "compare"
ENDINGS = {"markdown": "md"}  #: of the kinds of file that are not called after theirs
#: keys of a method in compare.json that are columns of compare.csv
COLUMNS = (
    "method", "name", "yardstick", "mean", "std", "best_mean", "best_std", "seeds", "steps", "batch_size", "seconds",
    "images_per_s", "peak_bytes",
)  # fmt: skip


def write_contest(folder: Path, contest: Contest) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the contest into `folder`, each file in the place of the one before.

    Returns the files by kind (html, markdown, csv, json, and svg and png where a run was scored) and what the JSON
    file holds. Raises RecordError where the folder cannot be written.
    """
    drawn = draw(contest)
    found = {
        "title": contest.title, "summary": summary(contest), "tables": all_tables(contest),
        "charts": [drawn] if drawn else [], "class_charts": [], "class_table": None, "pictures": [],
        "commands": list(contest.commands), "caveats": caveats(contest),
        "environment": tables.environment(contest.records),
    }  # fmt: skip
    numbers = machine_readable(contest)
    content = {
        "html": render("contest.html.jinja", found).encode("utf-8", "replace"),
        "markdown": render("report.md.jinja", found).encode("utf-8", "replace"),
        "csv": as_csv(numbers["methods"]).encode("utf-8", "replace"),
        "json": (json.dumps(numbers, indent=2) + "\n").encode(),
    }
    if drawn is not None:
        content |= {"svg": standalone(drawn.svg), "png": picture(contest, "png")}
    paths = {kind: Path(folder) / f"{STEM}.{ENDINGS.get(kind, kind)}" for kind in content}
    for kind, path in paths.items():
        write_atomically(path, content[kind])
    return paths, numbers


def all_tables(contest: Contest) -> list[tables.Table]:
    """The standings; then which settings were given, which methods cannot run here, and which runs broke."""
    given = [[e.name, ", ".join(f"{k} = {v}" for k, v in e.settings.items())] for e in contest.ranked if e.settings]
    broken = [[f"{name}, seed {seed}", words] for name, seed, words in contest.failed]
    made = [
        standings(contest),
        tables.Table("Settings that were given; all others are the methods' own.", ["Method", "Settings"], given),
        tables.Table("Not compared.", ["Method", "Why"], [list(pair) for pair in contest.left_out]),
        tables.Table("Runs that failed.", ["Run", "Its last words"], broken),
    ]
    return [table for table in made if table is not None and table.rows]


def standings(contest: Contest) -> tables.Table | None:
    """One row a method, the best first."""
    columns: dict[str, Callable[[Entry], str]] = {
        "Method": lambda e: e.name,
        heading(contest.metric_name): lambda e: spread(contest.scores(e)),
        "Each seed": lambda e: ", ".join(f"{100 * s:.1f}" for s in contest.scores(e)) if len(e.records) > 1 else "",
        "Best on the way": lambda e: spread(contest.bests(e)),
        "Steps": lambda e: average(e, "steps", "{:.0f}".format),
        "Batch": lambda e: average(e, "batch_size", "{:.0f}".format),
        "Time": lambda e: average(e, "wall_s", seconds),
        "Images/s": lambda e: average(e, "images_per_s", three),
        "Peak memory": lambda e: f"{count(max(e.told('peak_bytes')))}B" if e.told("peak_bytes") else "",
        "Learns from": lambda e: ", ".join(e.learns_from),
    }
    caption = (
        f"{heading(contest.metric_name)} at the end of the run: mean ± sample standard deviation over the seeds. "
        "Steps, time and images a second are means; memory is the most that any run took."
    )
    ranked = contest.ranked
    best = next((entry for entry in ranked if not entry.yardstick), None)
    return tables.tabulate(caption, columns, ranked, best)


def average(entry: Entry, key: str, text: Callable[[float], str]) -> str:
    """The mean of a number over the runs, in words; empty where none knows it."""
    values = entry.told(key)
    return text(mean(values)) if values else ""


def draw(contest: Contest) -> Chart | None:
    """The picture for a page, and the same in words; None where no run was scored on its way."""
    svg = picture(contest, "svg")
    if not svg:
        return None
    words = "; ".join(f"{entry.name} ends at {share(mean(contest.scores(entry)), 1)}" for entry in contest.ranked)
    band = " The bands span the seeds." if any(len(entry.records) > 1 for entry in contest.entries) else ""
    title = f"{heading(contest.metric_name)} over training time"
    return Chart(f"{STEM}.svg", title, f"{title}, the mean over the seeds.{band} {words}.", svg)


def picture(contest: Contest, form: Literal["svg", "png"]) -> bytes:
    """The picture as a file; empty where no run was scored on its way."""
    lines = []
    for entry in contest.ranked:
        curves = [curve_of(record, contest.metric) for record in entry.records]
        scored = [curve for curve in curves if curve is not None]
        lines += [Course(entry.name, scored)] if scored else []
    level = None if contest.height is None else ("teacher", contest.height)
    return courses(lines, level=level, y_label=contest.metric_name, salt=STEM, form=form) if lines else b""


def machine_readable(contest: Contest) -> dict[str, Any]:
    """The contest for programs: unrounded, every run by itself too."""
    teacher = contest.teacher
    return finite({
        "schema": SCHEMA,
        "title": contest.title,
        "summary": summary(contest),
        "metric": contest.metric,
        "budget_s": contest.budget_s,
        "budget_steps": contest.steps,
        "teacher": None if teacher is None else {"name": teacher.name, "score": contest.height},
        "methods": [facts(contest, entry) for entry in contest.ranked],
        "left_out": [{"name": name, "reason": reason} for name, reason in contest.left_out],
        "failed": [{"name": name, "seed": seed, "error": words} for name, seed, words in contest.failed],
        "commands": contest.commands,
        "caveats": caveats(contest),
    })  # fmt: skip


def facts(contest: Contest, entry: Entry) -> dict[str, Any]:
    """One method: its means, and its runs."""
    scores, bests = contest.scores(entry), contest.bests(entry)
    means = {
        name: mean(values) if (values := entry.told(key)) else None
        for name, key in (
            ("steps", "steps"), ("batch_size", "batch_size"), ("seconds", "wall_s"), ("images_per_s", "images_per_s"),
        )
    }  # fmt: skip
    each = zip(entry.records, scores, bests, strict=True)
    return {
        "method": entry.key, "name": entry.name, "yardstick": entry.yardstick,
        "learns_from": entry.learns_from, "settings": entry.settings,
        "mean": mean(scores), "std": deviation(scores), "best_mean": mean(bests), "best_std": deviation(bests),
        "seeds": len(scores), **means, "peak_bytes": most(entry.told("peak_bytes")),
        "runs": [run_facts(contest.metric, *one) for one in each],
    }  # fmt: skip


def most(values: Sequence[float]) -> int | None:
    return round(max(values)) if values else None


def run_facts(metric: str, record: Record, score: float, best: float) -> dict[str, Any]:
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


def as_csv(methods: Sequence[Mapping[str, Any]]) -> str:
    """The standings with their numbers unrounded, one row a method; what is not known is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, "learns_from", "settings"])
    for one in methods:
        settings = "; ".join(f"{key}={value}" for key, value in one["settings"].items())
        writer.writerow([*(one[name] for name in COLUMNS), "; ".join(one["learns_from"]), settings])
    return file.getvalue()
