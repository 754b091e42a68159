"""Segmentation over several seeds: plain KD, MosaicKD and its data-free variant for the same wall-clock time.

    python -m benchmarks.segmentation [--seeds 0 1 2] [--out runs] [--write]

Run it alone on the machine: the budget is time.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.students import Row, command, gather, row

TEACHER = "embedded/scenes_deeplab"
RECIPES = {
    "KD": "demo-segmentation-kd",
    "MosaicKD": "demo-segmentation-mosaic",
    "MosaicKD, data-free": "demo-segmentation-datafree",
}
HEAD = """# Segmentation students

deeplab_wrn16_2 -> deeplab_wrn16_1, mIoU on 1,000 embedded scenes; out-of-domain images: embedded photographs.
Data-free: MosaicKD without discriminator and without out-of-domain images."""


def students(seed: int, folder: Path) -> list[Row]:
    """One row a recipe."""
    rows = []
    for name, recipe in RECIPES.items():
        out = folder / recipe
        found, _ = command("distill", "--teacher", TEACHER, "--recipe", recipe, "--seed", str(seed), "--out", out)
        rows.append(row(name, seed, found, "miou"))
    return rows


if __name__ == "__main__":
    gather("segmentation", __doc__ or "", "miou", students, head=HEAD)
