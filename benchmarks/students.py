"""Train students with several seeds, store one row per student, and print a table."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.result_files import ResultFile, Row
from compress import config
from compress.config import Document
from compress.engine.trainer import train
from compress.training.setup import create_run, load_config, prepare_training
from profiles.latency import machine


def run_command(*arguments: object) -> tuple[dict[str, Any], float]:
    """Run `compress ARGUMENTS --json`; return its result and its run time in seconds."""
    begin = time.monotonic()
    line = [sys.executable, "-m", "compress", *map(str, arguments), "--json"]
    result = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
    return result, round(time.monotonic() - begin, 1)


def create_row(student: str, seed: int, result: dict[str, Any], metric: str) -> Row:
    """Return the row of a run: its score at the end, and its best score."""
    scores = {metric: result["last_metrics"][metric], "best": result["metrics"][metric]}
    return {"student": student, "seed": seed, **scores, "steps": result["steps"], "seconds": result["seconds"]}


def create_recipe(
    teacher: dict[str, Any], method: dict[str, Any], *, seed: int, steps: int, batch_size: int
) -> Document:
    """Return the recipe of a WRN-16-1 that learns from the embedded photographs and is evaluated at the end only."""
    return config.document_from_mapping({
        "teachers": [teacher],
        "student": {"model": "wrn16_1"},
        "data": {"unlabeled": "embedded/photos", "validation": "embedded/fashion"},
        "method": method,
        "training": {
            "steps": steps, "batch_size": batch_size, "seed": seed, "evaluate_every": steps, "save_every": steps,
        },
    })  # fmt: skip


def train_student(teacher: dict[str, Any], method: dict[str, Any], *, seed: int, steps: int, batch_size: int) -> Row:
    """Train a student in this process; return its final `accuracy` and the `seconds`."""
    recipe = create_recipe(teacher, method, seed=seed, steps=steps, batch_size=batch_size)
    setup = prepare_training(*load_config(recipe))
    begin = time.monotonic()
    with TemporaryDirectory() as folder:
        run = create_run(setup, Path(folder) / "run", quiet=True)
        train(setup.method, run)
    return {"accuracy": run.metrics["accuracy"], "seconds": round(time.monotonic() - begin, 1)}


def run_benchmark(
    name: str,
    description: str,
    metric: str,
    train_seed: Callable[[int, Path], list[Row]],
    *,
    head: str,
    timed: bool = True,
) -> None:
    """Parse the options, call `train_seed` for each seed, and print the table; --write stores it in results."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"), help=f"runs of seed n are in OUT/{name}-n")
    parser.add_argument("--write", action="store_true", help=f"write results/{name}.*; rows of other seeds stay")
    options = parser.parse_args()
    results = ResultFile(name, write=options.write)
    for seed in options.seeds:
        rows = train_seed(seed, options.out / f"{name}-{seed}")
        print(*rows, sep="\n", file=sys.stderr, flush=True)
        others = [row for row in results.rows() if row["seed"] != seed]
        results.update(rows=[*others, *rows], machine=machine.describe_machine())
        results.write_page(render_page(results, metric, head, timed=timed))  # after every seed, so that none is lost


def render_page(results: ResultFile, metric: str, head: str, *, timed: bool) -> str:
    """Return the table with its source; `timed`: the budget was time, so the machine was otherwise idle."""
    seeds = len({row["seed"] for row in results.rows()})
    cpu = results.content["machine"]
    cores = f"{cpu['cores']} cores{' with AMX' if any('amx' in one for one in cpu['instructions']) else ''}"
    cores += ", alone on the machine" if timed else ""
    source = f"{head} Over {seeds} seed{'s' if seeds > 1 else ''}; at the end of the run, not the best of it.\n"
    source += f"Made by `python -m benchmarks.{results.name} --write` on {cores}, "
    return f"{source}which {results.name}.json names.\n\n" + "\n".join(format_table(results.rows(), metric)) + "\n"


def format_table(rows: list[Row], metric: str) -> list[str]:
    """Return a Markdown table of the mean and standard deviation of each student, in percent."""
    lines = [
        f"| student | {metric}, mean ± standard deviation | seeds | steps | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["student"] for row in rows):
        mine = [row for row in rows if row["student"] == name]
        scores = [row[metric] for row in mine]
        spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        seeds = ", ".join(f"{100 * score:.1f}" for score in scores)
        steps, seconds = statistics.mean(r["steps"] for r in mine), statistics.mean(r["seconds"] for r in mine)
        lines.append(
            f"| {name} | {100 * statistics.mean(scores):.1f} %{spread} | {seeds} | {steps:.0f} | {seconds:.0f} |"
        )
    return lines
