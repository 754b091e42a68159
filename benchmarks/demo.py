"""The demo over several seeds: MosaicKD and plain KD for the same wall-clock time, one after the other.

    python -m benchmarks.demo [--seeds 0 1 2] [--out runs] [--write]

Run it alone on the machine: the budget is time.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.students import Row, command, gather, row

HEAD = """# The demo's students

WRN-16-2 -> WRN-16-1, accuracy on Fashion-MNIST's test images."""


def students(seed: int, folder: Path) -> list[Row]:
    """One row a student of `compress demo` with this seed."""
    found, whole = command("demo", "--seed", str(seed), "--out", folder)
    made = [(name, facts) for name, facts in found["models"].items() if facts["steps"] is not None]
    return [row(name, seed, facts, "accuracy") | {"demo_seconds": whole} for name, facts in made]


if __name__ == "__main__":
    gather("demo", __doc__ or "", "accuracy", students, head=HEAD)
