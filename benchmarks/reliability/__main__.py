"""Cause faults on purpose and count what happens: kills, power losses, full disks, damaged and hostile files.

    python -m benchmarks.reliability [--only R1,R4] [--scale 0.1] [--kills 240] [--hours 8] [--write] [--again]

Needs the packages of the extra `dev` and no GPU. --scale multiplies the tries of all rows, --hours repeats the rows
with other seeds. --write stores results/reliability.json after every row, and reliability.md; a stopped benchmark
continues with the rows that are missing, --again repeats them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.isolated import BENCHMARKS, share_tests
from benchmarks.result_files import ResultFile
from profiles.latency import machine

#: row -> (fault, module, function)
ROWS: dict[str, tuple[str, str, str]] = {
    "R1": ("kill -9", "runs", "run_kills"),
    "R2": ("SIGINT, SIGTERM", "runs", "run_signals"),
    "R3": ("power loss", "runs", "run_power_losses"),
    "R4": ("truncated or flipped files", "damaged", "run_damaged_files"),
    "R5": ("disk full, quota, read-only, I/O error", "runs", "run_disk_errors"),
    "R6": ("corrupt images", "images", "run_corrupt_images"),
    "R7": ("hostile weights", "hostile", "run_hostile_weights"),
    "R8": ("hostile ONNX, YAML, names", "hostile", "run_hostile_documents"),
    "R9": ("NaN and Inf", "runs", "run_nan"),
    "R10": ("too little memory", "processes", "run_memory_limits"),
    "R11": ("killed decoders", "images", "run_killed_decoders"),
    "R12": ("killed ranks and sweep workers", "processes", "run_killed_workers"),
    "R13": ("concurrent runs", "processes", "run_concurrent"),
    "R14": ("clock, locale, umask, HOME, paths", "runs", "run_environments"),
    "R15": ("determinism", "runs", "run_repetitions"),
    "R16": ("fuzzers", "fuzzing", "run_fuzzers"),
    "R17": ("engines of another GPU or version", "damaged", "run_damaged_engines"),
    "R18": ("runs of earlier releases", "damaged", "run_upgrades"),
}


def find_row(name: str) -> Callable[[Scale, Counts], None]:
    _, module, function = ROWS[name]
    return getattr(import_module(f"benchmarks.reliability.{module}"), function)


def measure_row(name: str, scale: Scale) -> Counts:
    """Run a row once."""
    counts, begin = Counts(), time.monotonic()
    try:
        find_row(name)(scale, counts)
    except Exception as error:  # a row that fails must not hide the others
        counts.add("row", "internal", f"the row itself failed: {type(error).__name__}: {error}")
    counts.seconds = time.monotonic() - begin
    return counts


def run_rows(results: ResultFile, options: argparse.Namespace) -> None:
    """Run the missing rows, then repeat all with other seeds until the time is over."""
    deadline = time.monotonic() + 3600 * options.hours
    names = options.only or list(ROWS)
    passes = 0
    while passes == 0 or time.monotonic() < deadline:
        for name in names:
            done = next((row for row in results.rows() if row["row"] == name), None)
            if done is not None and done["scale"] == options.scale and done["passes"] > passes and not options.again:
                continue
            if passes and time.monotonic() > deadline:
                break
            is_continued = done is not None and done["scale"] == options.scale and done["passes"] == passes > 0
            counts = measure_row(name, Scale(options.scale, seed=passes, kills=options.kills))
            if is_continued and done is not None:
                counts.merge(done)
            row = {"row": name, "fault": ROWS[name][0], "scale": options.scale, "passes": passes + 1}
            row |= {"commit": read_commit(), **counts.as_row()}
            print(format_row(row), *row["examples"], *row["notes"], sep="\n    ", file=sys.stderr, flush=True)
            rows = {one["row"]: one for one in results.rows()} | {name: row}
            results.update(rows=[rows[one] for one in ROWS if one in rows], machine=machine.describe_machine())
        passes += 1


def read_commit() -> str:
    """The commit that is measured, or nothing."""
    git = ["git", "-C", str(BENCHMARKS.resolve().parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


COLUMNS = ("tried", "as_expected", "silent_uses", "code_runs", "internal_errors", "others", "seconds")


def format_row(row: dict[str, Any]) -> str:
    return f"| {row['row']} | {row['fault']} | " + " | ".join(f"{round(row[name]):,}" for name in COLUMNS) + " |"


def render_page(content: dict[str, Any]) -> str:
    rows, cpu = content.get("rows", []), content.get("machine", {})
    total = {name: sum(row[name] for row in rows) for name in COLUMNS} | {"row": "", "fault": "all"}
    lines = [
        "# Faults on purpose",
        "",
        f"Made by `python -m benchmarks.reliability --write --only ROW --scale SCALE` on {cpu.get('cpu')}, "
        f"{cpu.get('cores')} cores, no GPU; rows and commits below, first seed 0. Rows that are missing were not run. "
        "[docs/reliability.md](../../docs/reliability.md) describes the rows. A silent use is damaged input that was "
        "used, or a result that differs, without a word. An internal error is an exception that is no error of this "
        "package, or a crash. Other: a hang, a wrong exit code, too much memory.",
        "",
        "| row | fault | tried | as expected | silent uses | code runs | internal errors | other | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(format_row, rows),
        format_row(total),
        "",
        "## Parts",
        "",
        "| row | commit | scale | tries by part | notes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        parts = ", ".join(f"{name} {n:,}" for name, n in row["parts"].items())
        notes = "; ".join(row["notes"]).replace("|", "/")
        lines.append(f"| {row['row']} | {row['commit']} | {row['scale']:g} | {parts or '-'} | {notes or '-'} |")
    unexpected = [f"- {row['row']}, {example}" for row in rows for example in row["examples"]]
    if unexpected:
        lines += ["", "## Not as expected", "", *unexpected]
    return "\n".join(lines) + "\n"


def parse_rows(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(unknown)}; known: {', '.join(ROWS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=parse_rows, help="rows, such as R1,R4")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the tries of all rows")
    parser.add_argument("--kills", type=int, default=240, help="kills of R1")
    parser.add_argument("--hours", type=float, default=0.0, help="repeat the rows with other seeds for so long")
    parser.add_argument("--again", action="store_true", help="repeat finished rows")
    parser.add_argument("--write", action="store_true", help="write results/reliability.json and .md")
    options = parser.parse_args()
    prepare_process()
    results = ResultFile("reliability", write=options.write)
    run_rows(results, options)
    results.write_page(render_page(results.content))


def prepare_process() -> None:
    """One thread, no GPU, a cache of its own, and everything imported before the first fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    share_tests()
    import_module("benchmarks.reliability.preload")


if __name__ == "__main__":
    main()
