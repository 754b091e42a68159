"""The demo's two students over several seeds: MosaicKD and plain KD for the same wall-clock time, one after the other.

    python -m benchmarks.demo [--seeds 3] [--time-limit SECONDS] [--write]

Run it alone on the machine: the budget is time. Results go to results/demo.json and results/demo.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from profiles import machine

RESULTS = Path(__file__).parent / "results"
TEACHER = "embedded/fashion_wrn16_2"
RECIPES = {"KD": "demo-kd", "MosaicKD": "demo-mosaic"}


def distilled(recipe: str, seed: int, seconds: float | None, folder: Path) -> dict[str, Any]:
    """The JSON of one `compress distill`."""
    command = [
        sys.executable,
        "-m",
        "compress",
        "distill",
        "--recipe",
        recipe,
        "--teacher",
        TEACHER,
        "--seed",
        str(seed),
    ]
    command += ["--out", str(folder), "--json"] + (["--time-limit", f"{seconds:g}s"] if seconds else [])
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time-limit", type=float, help="seconds a student; default: the recipes'")
    parser.add_argument("--write", action="store_true", help="write results/demo.json and .md")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name, recipe in RECIPES.items():
                found = distilled(recipe, seed, options.time_limit, Path(folder) / f"{recipe}-{seed}")
                row = {
                    "method": name,
                    "seed": seed,
                    "accuracy": found["last"]["accuracy"],
                    "best": found["metrics"]["accuracy"],
                }
                rows.append({**row, "steps": found["steps"], "seconds": found["seconds"]})
                print(rows[-1], file=sys.stderr, flush=True)
    report(rows, options)


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    lines = [
        "| student | accuracy, mean ± standard deviation | seeds | steps | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in RECIPES:
        mine = [row for row in rows if row["method"] == name]
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
        head = f"# The demo's students over {options.seeds} seeds\n\nWRN-16-2 -> WRN-16-1, Fashion-MNIST test images, "
        head += "accuracy at the end of the run (not the best of it). "
        head += "Made by `python -m benchmarks.demo --write` on two cores with AMX; the machine is in demo.json.\n\n"
        (RESULTS / "demo.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
