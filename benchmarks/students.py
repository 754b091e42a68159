"""Rows of students over several seeds: gathered, kept from run to run, and made a table."""

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

from benchmarks.kept import Kept, Row
from compress import config
from compress.config import Document
from compress.engine.play import play
from compress.plan import open_run, prepare, read_plan
from profiles import machine


def command(*words: str | Path) -> tuple[dict[str, Any], float]:
    """What `compress WORDS --json` prints, and how many seconds the whole command took."""
    begin = time.monotonic()
    line = [sys.executable, "-m", "compress", *map(str, words), "--json"]
    found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
    return found, round(time.monotonic() - begin, 1)


def row(student: str, seed: int, facts: dict[str, Any], metric: str) -> Row:
    """One student of one seed: its score at the end of the run, and the best on the way."""
    scores = {metric: facts["last"][metric], "best": facts["metrics"][metric]}
    return {"student": student, "seed": seed, **scores, "steps": facts["steps"], "seconds": facts["seconds"]}


def recipe(teacher: dict[str, Any], method: dict[str, Any], *, seed: int, steps: int, batch_size: int) -> Document:
    """A WRN-16-1 from the embedded photographs, measured at the end only."""
    return config.from_mapping({
        "teachers": [teacher],
        "student": {"model": "wrn16_1"},
        "data": {"unlabelled": "embedded/photos", "validation": "embedded/fashion"},
        "method": method,
        "pace": {"steps": steps, "batch_size": batch_size, "seed": seed, "evaluate": steps, "save": steps},
    })  # fmt: skip


def trained(teacher: dict[str, Any], method: dict[str, Any], *, seed: int, steps: int, batch_size: int) -> Row:
    """`accuracy` of the student of `recipe` at the end, and the `seconds` it took."""
    ready = prepare(*read_plan(recipe(teacher, method, seed=seed, steps=steps, batch_size=batch_size)))
    begin = time.monotonic()
    with TemporaryDirectory() as folder:
        run = open_run(ready, Path(folder) / "run", quiet=True)
        play(ready.method, run)
    return {"accuracy": run.metrics["accuracy"], "seconds": round(time.monotonic() - begin, 1)}


def gather(
    name: str, about: str, metric: str, of_seed: Callable[[int, Path], list[Row]], *, head: str, timed: bool = True
) -> None:
    """Parse the options, run `of_seed` for each seed, print the table; with --write into results/NAME.json and .md."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"), help=f"the runs of seed n go to OUT/{name}-n")
    parser.add_argument("--write", action="store_true", help=f"write results/{name}.*, keeping other seeds")
    options = parser.parse_args()
    kept = Kept(name, write=options.write)
    for seed in options.seeds:
        made = of_seed(seed, options.out / f"{name}-{seed}")
        print(*made, sep="\n", file=sys.stderr, flush=True)
        others = [row for row in kept.rows() if row["seed"] != seed]
        kept.put(rows=[*others, *made], machine=machine.describe())
        kept.page(
            page(kept, metric, head, timed=timed)
        )  # after every seed: an hour's work is not lost with the last of them


def page(kept: Kept, metric: str, head: str, *, timed: bool) -> str:
    """The table of results/NAME.json, and how it was made; `timed`: with a budget of time, so alone on the machine."""
    seeds = len({row["seed"] for row in kept.rows()})
    where = kept.content["machine"]
    cores = f"{where['cores']} cores{' with AMX' if any('amx' in one for one in where['instructions']) else ''}"
    cores += ", alone on the machine" if timed else ""
    about = f"{head} Over {seeds} seed{'s' if seeds > 1 else ''}; at the end of the run, not the best of it.\n"
    about += f"Made by `python -m benchmarks.{kept.name} --write` on {cores}, "
    return f"{about}which {kept.name}.json names.\n\n" + "\n".join(table(kept.rows(), metric)) + "\n"


def table(rows: list[Row], metric: str) -> list[str]:
    """Mean and standard deviation of each student, in percent."""
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
