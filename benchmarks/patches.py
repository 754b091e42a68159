"""Repeat the paper's Table 4 on embedded data: accuracy of MosaicKD by patch size, and patch FID.

    python -m benchmarks.patches [--seeds 0 1 2] [--only L ...] [--weights raw normalized] [--steps 300] [--write]

Distills the embedded teacher (WRN-16-2) into WRN-16-1 from the embedded photographs with the demo's settings, for every
patch side L. `raw` keeps `local` constant; `normalized` scales it so that all patches of an image weigh as much as at
L = 8. Other work on the machine does not matter. --write writes results/patches.json, patches.md and patches.svg.
Existing rows stay, so a stopped benchmark continues and two processes may share the work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.result_files import RESULTS, ResultFile, Row
from benchmarks.students import train_student
from compress import config
from compress.analysis.fid import FeatureExtractor, compare_image_sets
from compress.methods.mosaic import MosaicKD
from compress.models.discriminators import build_discriminator
from compress.models.loading import load_model
from compress.training.config import DataConfig
from compress.training.data import load_training_images, load_validation_images
from compress.training.recipes import find_recipe
from profiles.latency import machine
from profiles.report import charts

TEACHER, OOD, OWN = "embedded/fashion_wrn16_2", "embedded/photos", "embedded/fashion"
SIDES = (1, 2, 4, 8, 18, 22, 32)
WEIGHTS = ("raw", "normalized")
SIZE, REFERENCE = 32, 8


def count_patches(side: int) -> int:
    """Return the number of patches of an image that D classifies."""
    with torch.no_grad():
        return build_discriminator(side, SIZE, width=8).eval()(torch.zeros(1, 3, SIZE, SIZE)).numel()


def choose_local(side: int, weights: str) -> float:
    """Return `local`: the default, or scaled so that `local` times the number of patches is constant."""
    return MosaicKD.local if weights == "raw" else MosaicKD.local * count_patches(REFERENCE) / count_patches(side)


def train_row(side: int, local: float, seed: int, steps: int, batch_size: int, bn: float) -> Row:
    """Return a row with the accuracy at the end of a run."""
    settings = config.load_yaml(find_recipe(Path("demo-mosaic"))).get("method")
    method = settings | {"patch_size": side, "local": local, "bn": bn}
    outcome = train_student({"model": TEACHER}, method, seed=seed, steps=steps, batch_size=batch_size)
    return {"patch": side, "local": local, "seed": seed, "steps": steps, "batch_size": batch_size, "bn": bn} | outcome


def row_key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("patch", "local", "seed", "steps", "batch_size", "bn"))


def train_missing(results: ResultFile, options: argparse.Namespace) -> None:
    """Add the missing rows one by one. Equal weights share a row."""
    for seed in options.seeds:
        for side in options.only:
            for local in dict.fromkeys(choose_local(side, weights) for weights in options.weights):
                key = (side, local, seed, options.steps, options.batch_size, options.bn)
                if key in map(row_key, results.rows()):
                    continue
                row = train_row(*key)
                print(row, file=sys.stderr, flush=True)
                results.update(rows=[*results.rows(), row], machine=machine.describe_machine(), torch=torch.__version__)


def measure_patch_fid(sides: list[int]) -> dict[str, Any]:
    """Measure FID and patch FID between the cropped photographs and garments, in the teacher's features."""
    net, card = load_model(TEACHER)

    progress = partial(print, file=sys.stderr)
    ood = load_training_images(DataConfig(unlabeled=OOD), card, "unlabeled", seed=0, progress=progress)
    own = load_validation_images(DataConfig(validation=OWN), card, progress=progress)
    comparison = compare_image_sets(FeatureExtractor(net, card, TEACHER), ood, own, sides)
    return {
        "features": comparison.features, "images": comparison.images, "fid": comparison.fid,
        "patch_fid": {str(side): round(fid, 4) for side, fid in comparison.patch_fid.items()},
    }  # fmt: skip


def measure_missing_distances(results: ResultFile, sides: list[int]) -> None:
    """Add the missing distances."""
    old = results.content.get("distances", {}).get("patch_fid", {})
    if missing := [side for side in sides if str(side) not in old]:
        new = measure_patch_fid(missing)
        results.update(distances=new | {"patch_fid": old | new["patch_fid"]}, torch=torch.__version__)


def describe_benchmark(content: dict[str, Any]) -> list[str]:
    distances = content.get("distances")
    lines = [
        "Accuracy on Fashion-MNIST test images, WRN-16-2 -> WRN-16-1, MosaicKD from the embedded photographs with the "
        "settings of the recipe `demo-mosaic` except those listed (`width_D` is constant, and halved at L = 32): "
        "the paper's Table 4 on small data. `raw`: `local` "
        f"{MosaicKD.local:g}, summed over an image's patches; `normalized`: `local` such that all patches of an image "
        f"weigh as much as those of L = {REFERENCE}. Made by `python -m benchmarks.patches --write` with these steps, "
        "batch size and `bn`.",
        "",
    ]
    if distances:
        lines += [
            f"Patch FID: between {distances['images']:,} crops of the photographs and as many test images, one random "
            f"patch of each, enlarged; features: {distances['features']}, not Inception's. Below 8 pixels a patch has "
            "nearly one color, and its distance means little.",
            "",
        ]
    return lines


def row_setting(row: Row) -> tuple[int, int, float]:
    return row["steps"], row["batch_size"], row["bn"]


def collect_accuracies(rows: list[Row], side: int, weights: str) -> list[float]:
    """Return the accuracies in percent, by seed."""
    mine = [row for row in rows if row["patch"] == side and row["local"] == choose_local(side, weights)]
    return [100 * row["accuracy"] for row in sorted(mine, key=lambda row: row["seed"])]


def format_table(content: dict[str, Any]) -> list[str]:
    lines = [
        "| steps x batch, bn | L | patches | patch FID | raw | local, normalized | normalized |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows, patch_fid = content.get("rows", []), content.get("distances", {}).get("patch_fid", {})
    for one in sorted({row_setting(row) for row in rows}):
        same = [row for row in rows if row_setting(row) == one]
        for side in SIDES:
            both = [format_scores(collect_accuracies(same, side, weights)) for weights in WEIGHTS]
            distance = f"{patch_fid[str(side)]:.4g}" if str(side) in patch_fid else ""
            name, scaled = f"{one[0]} x {one[1]}, {one[2]:g}", f"{choose_local(side, 'normalized'):.4g}"
            if any(both):
                lines.append(
                    f"| {name} | {side} | {count_patches(side)} | {distance} | {both[0]} | {scaled} | {both[1]} |"
                )
    return lines


def format_scores(scores: list[float]) -> str:
    """Return mean ± standard deviation, and each score."""
    if len(scores) < 2:
        return "".join(f"{score:.1f} %" for score in scores)
    each = ", ".join(f"{score:.1f}" for score in scores)
    return f"{statistics.mean(scores):.1f} % ± {statistics.stdev(scores):.1f} ({each})"


def draw_chart(content: dict[str, Any]) -> bytes:
    """Draw accuracy by L for the setting with most rows, and patch FID on a second axis."""
    counts = [row_setting(row) for row in content["rows"]]
    most = max(sorted(set(counts)), key=counts.count)
    rows = [row for row in content["rows"] if row_setting(row) == most]
    patch_fid = content.get("distances", {}).get("patch_fid", {})
    with charts.chart_style("patches"):
        label = f"side of the patches, pixels ({most[0]} steps of {most[1]}, bn {most[2]:g})"
        figure, axes = charts.create_axes(label, "accuracy")
        for i, weights in enumerate(WEIGHTS):
            known = [(side, scores) for side in SIDES if (scores := collect_accuracies(rows, side, weights))]
            spread = [statistics.stdev(scores) / 100 if len(scores) > 1 else 0.0 for _, scores in known]
            means = [statistics.mean(scores) / 100 for _, scores in known]
            axes.errorbar(
                [side for side, _ in known], means, spread, color=charts.SERIES[i][0], marker=charts.MARKERS[i],
                capsize=3, label=f"accuracy, {weights} weights",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.set_xticks(SIDES, [str(side) for side in SIDES])
        known = [side for side in SIDES if str(side) in patch_fid]
        axes.plot([], [], color=charts.FAINT[0], linestyle=charts.DASHES, label="patch FID (right)")
        right = axes.twinx()
        right.plot(known, [patch_fid[str(side)] for side in known], color=charts.FAINT[0], linestyle=charts.DASHES)
        right.set(ylim=(0, None), ylabel="patch FID")
        right.spines[["top", "left"]].set_visible(False)
        charts.add_legend(figure, axes)
        return charts.standalone_svg(charts.figure_to_svg(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", type=int, choices=SIDES, nargs="+", default=list(SIDES), help="only these sides")
    parser.add_argument("--weights", choices=WEIGHTS, nargs="+", default=list(WEIGHTS), help="only these weights")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--bn", type=float, default=10.0, help="weight of the BatchNorm statistics; 0 in the paper")
    parser.add_argument("--write", action="store_true", help="write results/patches.json, .md and .svg")
    options = parser.parse_args()
    results = ResultFile("patches", write=options.write)
    measure_missing_distances(results, options.only)
    train_missing(results, options)
    results.write_page(
        "\n".join(["# Patch size", "", *describe_benchmark(results.content), *format_table(results.content)]) + "\n"
    )
    if options.write and results.rows():
        (RESULTS / "patches.svg").write_bytes(draw_chart(results.content))


if __name__ == "__main__":
    main()
