"""Distill segmentation students with several seeds: KD, MosaicKD, without images, and with images closer to the domain.

    python -m benchmarks.segmentation [--seeds 0 1 2] [--out runs] [--write]

Run it alone on the machine, because the budget is time.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.students import Row, create_row, run_benchmark, run_command

TEACHER = "embedded/scenes_deeplab"
MOSAIC = ["--recipe", "demo-segmentation-mosaic"]
#: student -> options of `compress distill`
STUDENTS = {
    "KD": ["--recipe", "demo-segmentation-kd"],
    "MosaicKD": MOSAIC,
    "MosaicKD, data-free": [*MOSAIC, "--set", "method.local=0", "--set", "method.ood_fraction=0"],
    "MosaicKD, garments": [*MOSAIC, "--ood", "embedded/fashion"],
}
HEAD = """# Segmentation students

deeplab_wrn16_2 -> deeplab_wrn16_1, mIoU on 1,000 embedded scenes; out-of-domain images: embedded photographs.
Data-free: MosaicKD without discriminator and without out-of-domain images. Garments: MosaicKD with images closer to the
scenes than the photographs, single garments on black (embedded/fashion), without their labels."""


def train_students(seed: int, folder: Path) -> list[Row]:
    """Return one row per student."""
    rows = []
    for name, arguments in STUDENTS.items():
        out = folder / name.replace(", ", "-").lower()
        result, _ = run_command("distill", "--teacher", TEACHER, *arguments, "--seed", str(seed), "--out", out)
        rows.append(create_row(name, seed, result, "miou"))
    return rows


if __name__ == "__main__":
    run_benchmark("segmentation", __doc__ or "", "miou", train_students, head=HEAD)
