"""Segmentation over several seeds: KD, MosaicKD, its data-free variant and nearer images, for the same wall-clock time.

    python -m benchmarks.segmentation [--seeds 0 1 2] [--out runs] [--write]

Run it alone on the machine: the budget is time.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.students import Row, command, gather, row

TEACHER = "embedded/scenes_deeplab"
MOSAIC = ["--recipe", "demo-segmentation-mosaic"]
#: student -> what `compress distill` is told of it
STUDENTS = {
    "KD": ["--recipe", "demo-segmentation-kd"],
    "MosaicKD": MOSAIC,
    "MosaicKD, data-free": [*MOSAIC, "--set", "method.local=0", "--set", "method.ood_share=0"],
    "MosaicKD, garments": [*MOSAIC, "--ood", "embedded/fashion"],
}
HEAD = """# Segmentation students

deeplab_wrn16_2 -> deeplab_wrn16_1, mIoU on 1,000 embedded scenes; out-of-domain images: embedded photographs.
Data-free: MosaicKD without discriminator and without out-of-domain images. Garments: MosaicKD with images that are
nearer to the scenes in place of the photographs, single garments on black (embedded/fashion), without their labels."""


def students(seed: int, folder: Path) -> list[Row]:
    """One row a student."""
    rows = []
    for name, given in STUDENTS.items():
        out = folder / name.replace(", ", "-").lower()
        found, _ = command("distill", "--teacher", TEACHER, *given, "--seed", str(seed), "--out", out)
        rows.append(row(name, seed, found, "miou"))
    return rows


if __name__ == "__main__":
    gather("segmentation", __doc__ or "", "miou", students, head=HEAD)
