"""Segmentation over several seeds: KD, MosaicKD, its data-free variant and nearer images, for the same wall-clock time.

    python -m benchmarks.segmentation [--seeds 0 1 2] [--out runs] [--write]

Run it alone on the machine: the budget is time.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.students import Row, command, gather, row

TEACHER = "embedded/scenes_deeplab"
#: student -> (recipe, what it learns from in place of the recipe's photographs)
STUDENTS = {
    "KD": ("demo-segmentation-kd", None),
    "MosaicKD": ("demo-segmentation-mosaic", None),
    "MosaicKD, data-free": ("demo-segmentation-datafree", None),
    "MosaicKD, garments": ("demo-segmentation-mosaic", "embedded/fashion"),
}
HEAD = """# Segmentation students

deeplab_wrn16_2 -> deeplab_wrn16_1, mIoU on 1,000 embedded scenes; out-of-domain images: embedded photographs.
Data-free: MosaicKD without discriminator and without out-of-domain images. Garments: MosaicKD with images that are
nearer to the scenes in place of the photographs, single garments on black (embedded/fashion), without their labels."""


def students(seed: int, folder: Path) -> list[Row]:
    """One row a student."""
    rows = []
    for name, (recipe, images) in STUDENTS.items():
        out = folder / name.replace(", ", "-").lower()
        given = ["--recipe", recipe, *(["--ood", images] if images else [])]
        found, _ = command("distill", "--teacher", TEACHER, *given, "--seed", str(seed), "--out", out)
        rows.append(row(name, seed, found, "miou"))
    return rows


if __name__ == "__main__":
    gather("segmentation", __doc__ or "", "miou", students, head=HEAD)
