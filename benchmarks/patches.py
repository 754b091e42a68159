"""The paper's Table 4 on embedded data: MosaicKD's accuracy by the side of its patches, beside how alike patches are.

    python -m benchmarks.patches [--seeds 0 1 2] [--only L ...] [--weights raw normalised] [--steps 300] [--write]

Distils the embedded teacher (WRN-16-2) into WRN-16-1 from the embedded photographs with the demo's settings, for every
side L of the patches with `local` as it is, and with `local` such that it weighs all patches of an image together as
much as at L = 8. Other work on the machine does not matter. With --write, rows go to results/patches.json, patches.md
and patches.svg; what is there already is kept, so that a run that was stopped goes on, and two may share the work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.kept import RESULTS, Kept, Row
from benchmarks.students import trained
from compress import config
from compress.cli.options import find_recipe
from compress.discrepancy import Features, discrepancy
from compress.methods.mosaic import MosaicKD
from compress.models.discriminators import discriminator
from compress.models.loading import load_model
from compress.sources import DataPlan, cache_folder, training_images, validation_images
from profiles import charts, machine

TEACHER, OOD, OWN = "embedded/fashion_wrn16_2", "embedded/photos", "embedded/fashion"
SIDES = (1, 2, 4, 8, 18, 22, 32)
WEIGHTS = ("raw", "normalised")
SIZE, REFERENCE = 32, 8


def patches_of(side: int) -> int:
    """How many patches of an image D judges: what the built network answers."""
    with torch.no_grad():
        return discriminator(side, SIZE, width=8).eval()(torch.zeros(1, 3, SIZE, SIZE)).numel()


def local_of(side: int, weights: str) -> float:
    """`local`: the method's default, or such that `local` times the patches is what it is at L = 8."""
    return MosaicKD.local if weights == "raw" else MosaicKD.local * patches_of(REFERENCE) / patches_of(side)


def row_of(side: int, local: float, seed: int, steps: int, batch_size: int, bn: float) -> Row:
    """One row: the accuracy at the end of a run."""
    settings = config.read_yaml(find_recipe(Path("demo-mosaic"))).get("method")
    method = settings | {"patch": side, "local": local, "bn": bn}
    made = trained({"model": TEACHER}, method, seed=seed, steps=steps, batch_size=batch_size)
    return {"patch": side, "local": local, "seed": seed, "steps": steps, "batch_size": batch_size, "bn": bn} | made


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("patch", "local", "seed", "steps", "batch_size", "bn"))


def sweep(kept: Kept, options: argparse.Namespace) -> None:
    """The rows that are not there yet, each kept as soon as it is made. Equal weights are one row, not two."""
    for seed in options.seeds:
        for side in options.only:
            for local in dict.fromkeys(local_of(side, weights) for weights in options.weights):
                wanted = (side, local, seed, options.steps, options.batch_size, options.bn)
                if wanted in map(key, kept.rows()):
                    continue
                row = row_of(*wanted)
                print(row, file=sys.stderr, flush=True)
                kept.put(rows=[*kept.rows(), row], machine=machine.describe(), torch=torch.__version__)


def patch_fids(sides: list[int]) -> dict[str, Any]:
    """How far the photographs, as the run crops them, are from garments: patch FID by L, in the teacher's features."""
    net, card = load_model(TEACHER)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    ood = training_images(DataPlan(unlabelled=OOD), card, "unlabelled", seed=0, say=say)
    own = validation_images(OWN, card, root=None, folder=cache_folder(), max_bad=0.01, say=say)
    found = discrepancy(Features(net, card, TEACHER), ood, own, sides)
    return {
        "features": found.features, "images": found.images, "fid": found.fid,
        "patch_fid": {str(side): round(apart, 4) for side, apart in found.patch_fid.items()},
    }  # fmt: skip


def distances(kept: Kept, sides: list[int]) -> None:
    """The distances that are not there yet, beside those that are."""
    old = kept.content.get("distances", {}).get("patch_fid", {})
    if missing := [side for side in sides if str(side) not in old]:
        new = patch_fids(missing)
        kept.put(distances=new | {"patch_fid": old | new["patch_fid"]}, torch=torch.__version__)


def about(content: dict[str, Any]) -> list[str]:
    far = content.get("distances")
    lines = [
        "Accuracy on Fashion-MNIST test images, WRN-16-2 -> WRN-16-1, MosaicKD from the embedded photographs with the "
        "settings of the recipe `demo-mosaic` but those named (`width_D` is the same for every L, at L = 32 halved): "
        "the paper's Table 4 on small data. `raw`: `local` "
        f"{MosaicKD.local:g}, summed over an image's patches; `normalised`: `local` such that all patches of an image "
        f"weigh as much as those of L = {REFERENCE}. Made by `python -m benchmarks.patches --write` with the steps, "
        "batch size and `bn` named.",
        "",
    ]
    if far:
        lines += [
            f"Patch FID: between {far['images']:,} crops of the photographs and as many test images, one random patch "
            f"of each, enlarged; features: {far['features']}, not Inception's. Below 8 pixels a patch is nearly one "
            "colour to the network; read these with care.",
            "",
        ]
    return lines


def setting(row: Row) -> tuple[int, int, float]:
    return row["steps"], row["batch_size"], row["bn"]


def accuracies(rows: list[Row], side: int, weights: str) -> list[float]:
    """In percent, by seed."""
    mine = [row for row in rows if row["patch"] == side and row["local"] == local_of(side, weights)]
    return [100 * row["accuracy"] for row in sorted(mine, key=lambda row: row["seed"])]


def table(content: dict[str, Any]) -> list[str]:
    lines = [
        "| steps x batch, bn | L | patches | patch FID | raw | local, normalised | normalised |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows, far = content.get("rows", []), content.get("distances", {}).get("patch_fid", {})
    for one in sorted({setting(row) for row in rows}):
        same = [row for row in rows if setting(row) == one]
        for side in SIDES:
            both = [cell(accuracies(same, side, weights)) for weights in WEIGHTS]
            apart = f"{far[str(side)]:.4g}" if str(side) in far else ""
            name, scaled = f"{one[0]} x {one[1]}, {one[2]:g}", f"{local_of(side, 'normalised'):.4g}"
            if any(both):
                lines.append(f"| {name} | {side} | {patches_of(side)} | {apart} | {both[0]} | {scaled} | {both[1]} |")
    return lines


def cell(scores: list[float]) -> str:
    """Mean ± standard deviation, and each score."""
    if len(scores) < 2:
        return "".join(f"{score:.1f} %" for score in scores)
    each = ", ".join(f"{score:.1f}" for score in scores)
    return f"{statistics.mean(scores):.1f} % ± {statistics.stdev(scores):.1f} ({each})"


def chart(content: dict[str, Any]) -> bytes:
    """Accuracy by L, of the setting with most rows, and patch FID on an axis of its own."""
    counts = [setting(row) for row in content["rows"]]
    most = max(sorted(set(counts)), key=counts.count)
    rows = [row for row in content["rows"] if setting(row) == most]
    far = content.get("distances", {}).get("patch_fid", {})
    with charts.drawing("patches"):
        named = f"side of the patches, pixels ({most[0]} steps of {most[1]}, bn {most[2]:g})"
        figure, axes = charts.canvas(named, "accuracy")
        for i, weights in enumerate(WEIGHTS):
            known = [(side, scores) for side in SIDES if (scores := accuracies(rows, side, weights))]
            spread = [statistics.stdev(scores) / 100 if len(scores) > 1 else 0.0 for _, scores in known]
            means = [statistics.mean(scores) / 100 for _, scores in known]
            axes.errorbar(
                [side for side, _ in known], means, spread, color=charts.SERIES[i][0], marker=charts.MARKERS[i],
                capsize=3, label=f"accuracy, {weights} weights",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.set_xticks(SIDES, [str(side) for side in SIDES])
        known = [side for side in SIDES if str(side) in far]
        axes.plot([], [], color=charts.FAINT[0], linestyle=charts.DASHES, label="patch FID (right)")
        right = axes.twinx()
        right.plot(known, [far[str(side)] for side in known], color=charts.FAINT[0], linestyle=charts.DASHES)
        right.set(ylim=(0, None), ylabel="patch FID")
        right.spines[["top", "left"]].set_visible(False)
        charts.legend(figure, axes)
        return charts.standalone(charts.as_svg(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", type=int, choices=SIDES, nargs="+", default=list(SIDES), help="these sides only")
    parser.add_argument("--weights", choices=WEIGHTS, nargs="+", default=list(WEIGHTS), help="these weights only")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--bn", type=float, default=10.0, help="weight of the BatchNorm statistics; the paper has none")
    parser.add_argument("--write", action="store_true", help="write results/patches.json, .md and .svg")
    options = parser.parse_args()
    kept = Kept("patches", write=options.write)
    distances(kept, options.only)
    sweep(kept, options)
    kept.page("\n".join(["# Patch size", "", *about(kept.content), *table(kept.content)]) + "\n")
    if options.write and kept.rows():
        (RESULTS / "patches.svg").write_bytes(chart(kept.content))


if __name__ == "__main__":
    main()
