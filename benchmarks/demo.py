"""Run the demo with several seeds: MosaicKD and plain KD with the same training time, one after the other.

    python -m benchmarks.demo [--seeds 0 1 2] [--out runs] [--write]

Run it alone on the machine, because the budget is time.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.students import Row, create_row, run_benchmark, run_command

HEAD = """# The demo's students

WRN-16-2 -> WRN-16-1, accuracy on Fashion-MNIST's test images."""


def train_students(seed: int, folder: Path) -> list[Row]:
    """Return one row per student of `compress demo` with this seed."""
    demo, seconds = run_command("demo", "--seed", str(seed), "--out", folder)
    students = {name: result for name, result in demo["models"].items() if result["steps"] is not None}
    return [create_row(name, seed, result, "accuracy") | {"demo_seconds": seconds} for name, result in students.items()]


if __name__ == "__main__":
    run_benchmark("demo", __doc__ or "", "accuracy", train_students, head=HEAD)
