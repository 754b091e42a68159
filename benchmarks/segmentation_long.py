"""Distill segmentation students for 2000 steps: MosaicKD with garments, and without images.

    python -m benchmarks.segmentation_long [--seeds 0] [--out runs] [--write]

A student takes 45 minutes on one core. The budget is steps, so other work on the machine does not matter. Stopped runs
continue, and finished runs are not repeated.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.segmentation import STUDENTS, TEACHER
from benchmarks.students import Row, create_row, run_benchmark, run_command

STEPS = ["--steps", "2000", "--set", "training.evaluate_every=200"]
LONG = ("MosaicKD, garments", "MosaicKD, data-free")
HEAD = """# Segmentation students of 2000 steps

deeplab_wrn16_2 -> deeplab_wrn16_1, mIoU on 1,000 embedded scenes, on which the teacher reaches 60.6 %: the students of
[segmentation.md](segmentation.md) with more steps. Garments: the out-of-domain images are single garments on black
(embedded/fashion), without their labels; data-free: none, and no discriminator."""


def train_students(seed: int, folder: Path) -> list[Row]:
    """Return one row per student."""
    rows = []
    for name in LONG:
        out = folder / name.replace(", ", "-").lower()
        arguments = ["distill", "--teacher", TEACHER, *STUDENTS[name], *STEPS, "--seed", str(seed), "--out", out]
        result, _ = run_command(*arguments)
        rows.append(create_row(name, seed, result, "miou"))
    return rows


if __name__ == "__main__":
    run_benchmark("segmentation_long", __doc__ or "", "miou", train_students, head=HEAD, timed=False)
