"""Images that runs leave in their directories, with captions for a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from compress.own_files import STEP_IMAGES
from profiles.records import read_records
from profiles.report.overlays import ARRAYS

#: images of one kind that are shown of a run, from its start to its end
MAX_STEPS = 4
#: stems of the grids that methods draw
GRIDS = ("mosaics", "synthetic")
#: images that reports draw themselves
OVERLAYS = re.compile(r"compress-overlays(-\d+)?\.png")
#: beginning of the names of images that runs write
PREFIX = "compress-"


def find_run_images(run_dirs: Sequence[Path], task: str) -> dict[str, Path]:
    """Return caption -> file of the images in runs; of the best run also those drawn during training."""
    images = {}
    for run_dir in run_dirs:
        for file in sorted([*run_dir.glob("*.png"), *run_dir.glob(f"*/{PREFIX}mosaics.png")]):
            if not OVERLAYS.fullmatch(file.name):
                name = file.relative_to(run_dir).with_name(file.name.removeprefix(PREFIX))
                images[image_caption(name if len(run_dirs) == 1 else Path(run_dir.name) / name, task)] = file
    drawn = [
        run_dir for run_dir in run_dirs
        if any(run_dir.glob(f"{STEP_IMAGES}/*")) or any(run_dir.glob(f"*/{STEP_IMAGES}/*"))
    ]  # fmt: skip
    return images | (find_step_images(max(drawn, key=best_score), named=len(run_dirs) > 1) if drawn else {})


def best_score(run_dir: Path) -> float:
    """Return the best first metric of the records in a directory."""
    return max((next(iter(record.metrics.values()), 0.0) for record in read_records(run_dir)), default=0.0)


def find_step_images(run_dir: Path, *, named: bool) -> dict[str, Path]:
    """Return images drawn during training, evenly spaced: caption -> file. `named`: with the directory's name."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted([*run_dir.glob(f"{STEP_IMAGES}/*-*.png"), *run_dir.glob(f"*/{STEP_IMAGES}/*-*.png")]):
        if not file.stem.rpartition("-")[2].isdecimal():
            continue
        kind = file.parent.parent.relative_to(run_dir) / file.stem.rpartition("-")[0]
        kinds.setdefault(str(kind), []).append(file)
    images = {}
    for kind, files in kinds.items():
        last = len(files) - 1
        for i in dict.fromkeys(round(i * last / (MAX_STEPS - 1)) for i in range(MAX_STEPS)):
            step = int(files[i].stem.rpartition("-")[2])
            images[f"{run_dir.name + ': ' if named else ''}{kind} after {step} steps"] = files[i]
    return images


def image_caption(image: Path, task: str) -> str:
    """Return the caption of a grid that a run drew."""
    if image.stem == "pool":
        return f"{image.with_suffix('')}: synthetic images, one class per row"
    if image.stem not in GRIDS:
        return image.stem if image.parent == Path() else f"{image.stem} ({image.parent})"
    content = "with their predicted classes" if task == "segmentation" else "by predicted class"
    beside = ", beside out-of-domain images" if image.stem == "mosaics" else ""
    return f"{image.with_suffix('')} {content}{beside}"


def find_overlay_dirs(run_dirs: Sequence[Path]) -> list[Path]:
    """Return the directories and their subdirectories that have overlays, as in a demo."""
    files = [file for run_dir in run_dirs for file in sorted([*run_dir.glob(ARRAYS), *run_dir.glob(f"*/{ARRAYS}")])]
    return list(dict.fromkeys(file.parent for file in files))
