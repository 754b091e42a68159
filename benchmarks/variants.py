"""What each thing that MosaicKD can do beyond its paper is worth: the same recipe with and without, for the same time.

    python -m benchmarks.variants [--only plain ema_G] [--seeds 3] [--time-limit 240s] [--out runs/variants] [--write]

Each variant is a `compress compare` of its own with one method, in its own folder; what has finished is not made again.
Run it alone on the machine: the budget is time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.compare import BATCH_SIZE, SETTINGS, TASK
from profiles import machine
from profiles.record import read_records

RESULTS = Path(__file__).parent / "results"
#: variant -> method, and what it changes in its settings of `benchmarks.compare`
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mosaic", {}),
    "bn 0 (as the paper)": ("mosaic", {"bn": 0.0}),
    "ema_G 0.95": ("mosaic", {"ema_G": 0.95}),
    "meta_steps 2": ("mosaic", {"meta_steps": 2}),
    "meta_steps 2, moves 10": ("mosaic", {"meta_steps": 2, "moves": 10}),
    # how much of its lead over MosaicKD is the teacher's BatchNorm statistics
    "FastDFKD, bn 0": ("fastdfkd", {"bn": 0.0}),
}


def made(variant: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a variant, one a seed: accuracy at the end, steps, seconds."""
    out = options.out / variant.replace(" ", "-").replace(",", "")
    method, changes = VARIANTS[variant]
    settings = SETTINGS[method] | changes
    sets = [word for key, value in settings.items() for word in ("--set", f"{method}.{key}={json.dumps(value)}")]
    words = [
        *TASK, "--methods", method, "--time-limit", options.time_limit, "--seeds", options.seeds, "--batch-size",
        BATCH_SIZE, *sets, "--out", out,
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "compress", "compare", *map(str, words)], check=True)
    runs = [read_records(out / f"{method}-{seed}")[-1].run for seed in range(options.seeds)]
    return [
        {"variant": variant, "seed": run["seed"], "accuracy": run["last"]["accuracy"], "steps": run["steps"],
         "seconds": run["wall_s"], "settings": changes}
        for run in runs
    ]  # fmt: skip


def table(rows: list[dict[str, Any]], time_limit: str) -> str:
    lines = [
        "# MosaicKD with more than its paper has",
        "",
        f"WRN-16-2 -> WRN-16-1, Fashion-MNIST from the embedded photographs, {time_limit} each, with the demo's "
        "settings but for what is named; accuracy at the end of the run. Made by `python -m benchmarks.variants "
        "--write`.",
        "",
        "| variant | accuracy, mean ± standard deviation | seeds | steps |",
        "| --- | --- | --- | --- |",
    ]
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]
        if mine:
            scores = [100 * row["accuracy"] for row in mine]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            each = ", ".join(f"{score:.1f}" for score in scores)
            steps = round(statistics.mean(row["steps"] for row in mine))
            lines.append(f"| {variant} | {statistics.mean(scores):.1f} %{spread} | {each} | {steps} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(VARIANTS), nargs="+", help="these variants only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time-limit", default="240s", help="of each run; the default is the demo's")
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    parser.add_argument("--write", action="store_true", help="write results/variants.json and .md")
    options = parser.parse_args()
    rows = [row for variant in options.only or VARIANTS for row in made(variant, options)]
    text = table(rows, options.time_limit)
    print(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        content = {"benchmark": "variants", "time_limit": options.time_limit, "rows": rows}
        content |= {"machine": machine.describe()}
        (RESULTS / "variants.json").write_text(json.dumps(content, indent=2) + "\n")
        (RESULTS / "variants.md").write_text(text)


if __name__ == "__main__":
    main()
