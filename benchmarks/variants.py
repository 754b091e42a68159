"""Repeat runs of the comparison with one setting changed and the same number of steps.

    python -m benchmarks.variants [--only "ema_G 0.95" ...] [--seeds 0 1 2] [--write]

Settings, batch size and steps are those of `benchmarks.compare`, except for the change that a row names. Unchanged rows
are from that comparison. The budget is steps, so other work on the machine does not matter; FLOPs measure the cost of a
run. --write writes results/variants.json and variants.md. Existing rows stay, so a stopped benchmark continues and two
processes may share the work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from benchmarks.compare import BATCH_SIZE, SETTINGS
from benchmarks.result_files import RESULTS, ResultFile, Row
from benchmarks.students import create_recipe, train_student
from compress.training.estimate import StepSeconds, estimate_cost
from compress.training.setup import load_config, prepare_training
from profiles.latency import machine
from profiles.records import read_records

TEACHER = {"model": "embedded/fashion_wrn16_2"}


@dataclass(frozen=True)
class Variant:
    """A method of the comparison with changed settings; without changes, the comparison's own rows."""

    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None  #: None: as in the comparison

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.method} | SETTINGS.get(self.method, {}) | self.changes

    @property
    def step_count(self) -> int:
        return self.steps or read_comparison(self.method)[0]["steps"]


#: heading -> row name in results/variants.json -> variant; the first row is the reference of the others
GROUPS: dict[str, dict[str, Variant]] = {
    "MosaicKD beyond its paper": {
        "MosaicKD": Variant("mosaic"),
        "ema_G 0.95": Variant("mosaic", {"ema_G": 0.95}),
        "meta_steps 2": Variant("mosaic", {"meta_steps": 2}),
        "meta_steps 2, fewer steps": Variant("mosaic", {"meta_steps": 2}, 134),
    },
    "Contribution of MosaicKD's parts": {
        "MosaicKD": Variant("mosaic"),
        "no D": Variant("mosaic", {"local": 0.0}),
        "no D and no photographs": Variant("mosaic", {"local": 0.0, "ood_fraction": 0.0}),
        "no adversarial term": Variant("mosaic", {"adv": 0.0}),
        "bn 0": Variant("mosaic", {"bn": 0.0}),
        "bn 0, no D and no photographs": Variant("mosaic", {"bn": 0.0, "local": 0.0, "ood_fraction": 0.0}),
    },
    "Why FastDFKD is better": {
        "MosaicKD": Variant("mosaic"),
        "MosaicKD, moves 3": Variant("mosaic", {"student_steps": 3}, 258),
        "MosaicKD, moves 2": Variant("mosaic", {"student_steps": 2}, 334),
        "MosaicKD, FastDFKD's generator": Variant("mosaic", {"generator": "small", "width_G": 64}),
        "MosaicKD, FastDFKD's lr_G": Variant("mosaic", {"lr_G": 0.01}),
        "MosaicKD, meta_steps 5, moves 20": Variant("mosaic", {"meta_steps": 5, "student_steps": 20}, 47),
        "FastDFKD": Variant("fastdfkd"),
        "FastDFKD, bn 0": Variant("fastdfkd", {"bn": 0.0}),
        "FastDFKD, statistics of the batch alone": Variant("fastdfkd", {"bn_momentum": 0.0}),
        "FastDFKD, no adversarial term": Variant("fastdfkd", {"adv": 0.0}),
        "FastDFKD, no classes asked for": Variant("fastdfkd", {"cross_entropy": 0.0}),
        "FastDFKD, noise left as drawn": Variant("fastdfkd", {"lr_z": 0.0}),
    },
    "Effect of DFQ's settings": {
        "DFQ": Variant("dfq"),
        "DFQ, temperature 1": Variant("dfq", {"temperature": 1.0}, 212),
        "DFQ, G at rest": Variant("dfq", {"eval_mode_G": True}, 212),
        "DFQ, both (as its code)": Variant("dfq", {"eval_mode_G": True, "temperature": 1.0}, 212),
    },
    "Effect of the generator's published output layer": {
        "DAFL": Variant("dafl"),
        "DAFL, end as published": Variant("dafl", {"standardize_output": True}),
        "DAFL, end and lr_G as published": Variant("dafl", {"standardize_output": True, "lr_G": 0.02}),
        "DFAD": Variant("dfad"),
        "DFAD, end as published": Variant("dfad", {"standardize_output": True}),
        "ZSKT": Variant("zskt"),
        "ZSKT, a sigmoid": Variant("zskt", {"standardize_output": False}),
    },
    "Why DFND stays near chance": {
        "DFND": Variant("dfnd"),
        "DFND, all images kept": Variant("dfnd", {"keep_images": 1.0}, 1000),
        "DFND, no noisy labels": Variant("dfnd", {"noisy_labels": 0.0}, 1000),
        "DFND, neither": Variant("dfnd", {"keep_images": 1.0, "noisy_labels": 0.0}, 1000),
    },
    "Why SSKD stays near chance": {
        "SSKD": Variant("sskd"),
        "SSKD, plain images only": Variant("sskd", {"rotated": 0.0, "similarity": 0.0}),
        "KD, as many steps as SSKD's student": Variant("kd", {}, 425),
    },
}
#: rows that this benchmark trains
CHANGED = {
    name: variant for group in GROUPS.values() for name, variant in group.items() if variant.changes or variant.steps
}


@cache
def read_comparison(method: str) -> list[Row]:
    """Read the comparison's rows of a method."""
    runs = [read_records(path)[-1].run for path in sorted((RESULTS / "compare").glob(f"{method}-[0-9]*.jsonl"))]
    return [{"seed": run["seed"], "steps": run["steps"], "accuracy": run["last"]["accuracy"]} for run in runs]


def train_row(name: str, variant: Variant, seed: int) -> Row:
    """Return a row with the accuracy at the end of a run."""
    outcome = train_student(TEACHER, variant.settings, seed=seed, steps=variant.step_count, batch_size=BATCH_SIZE)
    return {"variant": name, "seed": seed, "steps": variant.step_count, "settings": variant.changes} | outcome


@cache
def estimate_flops(method: str, changes: str, steps: int) -> float:
    """Estimate the FLOPs of a run, forward and backward, all networks."""
    settings = Variant(method, json.loads(changes)).settings
    recipe = create_recipe(TEACHER, settings, seed=0, steps=steps, batch_size=BATCH_SIZE)
    setup = prepare_training(*load_config(recipe))
    estimate = estimate_cost(setup, time_method=lambda method, run: StepSeconds(1.0, 1.0))  # times are not used
    return estimate.flops_per_step * estimate.steps + estimate.flops_per_synthesis * estimate.syntheses


def train_missing(results: ResultFile, options: argparse.Namespace) -> None:
    """Add the missing rows one by one."""
    for seed in options.seeds:
        for name in options.only or CHANGED:
            if any((row["variant"], row["seed"]) == (name, seed) for row in results.rows()):
                continue
            row = train_row(name, CHANGED[name], seed)
            print(row, file=sys.stderr, flush=True)
            results.update(rows=[*results.rows(), row], batch_size=BATCH_SIZE, machine=machine.describe_machine())


def render_page(rows: list[Row]) -> str:
    lines = [
        "# One change at a time",
        "",
        f"WRN-16-2 -> WRN-16-1, Fashion-MNIST from the embedded photographs, batch size {BATCH_SIZE}: the runs of "
        "[the comparison](compare.md) with its settings, except for the named change; accuracy at the end of the run. "
        "Compute is the FLOPs of a run, all networks, relative to the first row. Made by "
        "`python -m benchmarks.variants --write`.",
    ]
    for heading, variants in GROUPS.items():
        lines += [
            "", f"## {heading}", "", "| | accuracy, mean ± standard deviation | seeds | steps | compute |",
            "| --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        base = 0.0
        for name, variant in variants.items():
            is_unchanged = not (variant.changes or variant.steps)
            mine = read_comparison(variant.method) if is_unchanged else [row for row in rows if row["variant"] == name]
            if not mine:
                continue
            mine.sort(key=lambda row: row["seed"])
            scores = [100 * row["accuracy"] for row in mine]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            each = ", ".join(f"{score:.1f}" for score in scores)
            cost = estimate_flops(variant.method, json.dumps(variant.changes), variant.step_count)
            base = base or cost
            steps = round(statistics.mean(row["steps"] for row in mine))
            lines.append(
                f"| {name} | {statistics.mean(scores):.1f} %{spread} | {each} | {steps} | {100 * cost / base:.0f} % |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(CHANGED), nargs="+", help="only these rows")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="write results/variants.json and .md")
    options = parser.parse_args()
    results = ResultFile("variants", write=options.write)
    train_missing(results, options)
    results.write_page(render_page(results.rows()))


if __name__ == "__main__":
    main()
