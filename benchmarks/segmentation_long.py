"""Segmentation with time enough: MosaicKD and its data-free variant for 2000 steps, by steps and not by the clock.

    python -m benchmarks.segmentation_long [--seeds 0] [--out runs] [--write]

Three quarters of an hour a student on one core. Other work on the machine does not matter; a run that was stopped goes
on, and one that has finished is only read.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.segmentation import STUDENTS, TEACHER
from benchmarks.students import Row, command, gather, row

STEPS = ["--steps", "2000", "--set", "pace.evaluate=200"]
LONG = ("MosaicKD, garments", "MosaicKD, data-free")
HEAD = """# Segmentation students of 2000 steps

deeplab_wrn16_2 -> deeplab_wrn16_1, mIoU on 1,000 embedded scenes, of which the teacher has 60.6 %: the students of
[segmentation.md](segmentation.md) with more steps. Garments: the out-of-domain images are single garments on black
(embedded/fashion), without their labels; data-free: none, and no discriminator."""


def students(seed: int, folder: Path) -> list[Row]:
    """One row a student."""
    rows = []
    for name in LONG:
        out = folder / name.replace(", ", "-").lower()
        words = ["distill", "--teacher", TEACHER, *STUDENTS[name], *STEPS, "--seed", str(seed), "--out", out]
        found, _ = command(*words)
        rows.append(row(name, seed, found, "miou"))
    return rows


if __name__ == "__main__":
    gather("segmentation_long", __doc__ or "", "miou", students, head=HEAD, timed=False)
