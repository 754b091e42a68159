"""The demo over several seeds: MosaicKD and plain KD for the same wall-clock time, one after the other.

    python -m benchmarks.demo [--seeds 0 1 2] [--out runs] [--write]

Run it alone on the machine: the budget is time. With --write, results go to results/demo.json
and results/demo.md; rows of other seeds that are there already are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from profiles import machine

RESULTS = Path(__file__).parent / "results"


def students(seed: int, folder: Path) -> list[dict[str, Any]]:
    """One row a student of `compress demo` with this seed."""
    command = [sys.executable, "-m", "compress", "demo", "--seed", str(seed), "--out", str(folder), "--json"]
    begin = time.monotonic()
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    whole = round(time.monotonic() - begin, 1)
    rows = []
    for name, facts in found["models"].items():
        if facts["steps"] is not None:
            scores = {"accuracy": facts["last"]["accuracy"], "best": facts["metrics"]["accuracy"]}
            rows.append({"student": name, "seed": seed, **scores, "steps": facts["steps"], "seconds": facts["seconds"]})
            rows[-1]["demo_seconds"] = whole
    return rows


def earlier() -> list[dict[str, Any]]:
    """The rows that an earlier run has written."""
    path = RESULTS / "demo.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the demo of seed n goes to OUT/demo-n")
    parser.add_argument("--write", action="store_true", help="write results/demo.json and .md")
    options = parser.parse_args()
    rows = [row for row in earlier() if options.write and row["seed"] not in options.seeds]
    for seed in options.seeds:
        rows += students(seed, options.out / f"demo-{seed}")
        print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
    report(rows, options)


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    lines = [
        "| student | accuracy, mean ± standard deviation | seeds | steps | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["student"] for row in rows):
        mine = [row for row in rows if row["student"] == name]
        scores = [row["accuracy"] for row in mine]
        spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        seeds = ", ".join(f"{100 * score:.1f}" for score in scores)
        steps, seconds = statistics.mean(r["steps"] for r in mine), statistics.mean(r["seconds"] for r in mine)
        lines.append(
            f"| {name} | {100 * statistics.mean(scores):.1f} %{spread} | {seeds} | {steps:.0f} | {seconds:.0f} |"
        )
    print("\n".join(lines))
    if options.write:
        facts = machine.describe()
        RESULTS.mkdir(exist_ok=True)
        content = {"benchmark": "demo", "rows": rows, "machine": facts}
        (RESULTS / "demo.json").write_text(json.dumps(content, indent=2) + "\n")
        seeds = len({row["seed"] for row in rows})
        head = f"# The demo's students over {seeds} seeds\n\nWRN-16-2 -> WRN-16-1, Fashion-MNIST test images, "
        head += "accuracy at the end of the run (not the best of it). "
        head += "Made by `python -m benchmarks.demo --write` on two cores with AMX; the machine is in demo.json.\n\n"
        (RESULTS / "demo.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
