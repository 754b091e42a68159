"""What a part of a method is worth: the comparison's runs made again with one thing changed, in as many steps.

    python -m benchmarks.variants [--only "ema_G 0.95" ...] [--seeds 0 1 2] [--write]

Settings, batch size and steps are those of `benchmarks.compare` but for what a row names; the rows it starts from are
that comparison's own. Steps and not time are the budget, so other work on the machine does not matter; what a run costs
is told by its FLOPs. With --write, rows go to results/variants.json and variants.md; what is there already is kept, so
that a run that was stopped goes on, and two may share the work.
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
from benchmarks.kept import RESULTS, Kept, Row
from benchmarks.students import recipe, trained
from compress.plan import prepare, read_plan
from compress.rehearsal import Seconds, estimate
from profiles import machine
from profiles.record import read_records

TEACHER = {"model": "embedded/fashion_wrn16_2"}


@dataclass(frozen=True)
class Variant:
    """A method of the comparison with some settings changed; none: the comparison's own rows."""

    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None  #: None: as many as in the comparison

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.method} | SETTINGS.get(self.method, {}) | self.changes

    @property
    def many(self) -> int:
        return self.steps or compared(self.method)[0]["steps"]


#: question -> name of a row -> what it is; the first of each is what the others change
GROUPS: dict[str, dict[str, Variant]] = {
    "What MosaicKD can do beyond its paper": {
        "MosaicKD": Variant("mosaic"),
        "ema_G 0.95": Variant("mosaic", {"ema_G": 0.95}),
        "meta_steps 2": Variant("mosaic", {"meta_steps": 2}),
        "meta_steps 2, fewer steps": Variant("mosaic", {"meta_steps": 2}, 134),
    },
    "What MosaicKD's parts are worth": {
        "MosaicKD": Variant("mosaic"),
        "no D": Variant("mosaic", {"local": 0.0}),
        "no D and no photographs": Variant("mosaic", {"local": 0.0, "ood_share": 0.0}),
        "no adversarial term": Variant("mosaic", {"adv": 0.0}),
        "bn 0": Variant("mosaic", {"bn": 0.0}),
        "bn 0, no D and no photographs": Variant("mosaic", {"bn": 0.0, "local": 0.0, "ood_share": 0.0}),
    },
    "Why FastDFKD is ahead": {
        "MosaicKD": Variant("mosaic"),
        "MosaicKD, moves 3": Variant("mosaic", {"moves": 3}, 258),
        "MosaicKD, moves 2": Variant("mosaic", {"moves": 2}, 334),
        "MosaicKD, FastDFKD's generator": Variant("mosaic", {"generator": "small", "width_G": 64}),
        "MosaicKD, FastDFKD's lr_G": Variant("mosaic", {"lr_G": 0.01}),
        "MosaicKD, meta_steps 5, moves 20": Variant("mosaic", {"meta_steps": 5, "moves": 20}, 47),
        "FastDFKD": Variant("fastdfkd"),
        "FastDFKD, bn 0": Variant("fastdfkd", {"bn": 0.0}),
        "FastDFKD, statistics of the batch alone": Variant("fastdfkd", {"bn_momentum": 0.0}),
        "FastDFKD, no adversarial term": Variant("fastdfkd", {"adv": 0.0}),
        "FastDFKD, no classes asked for": Variant("fastdfkd", {"cross_entropy": 0.0}),
        "FastDFKD, noise left as drawn": Variant("fastdfkd", {"lr_z": 0.0}),
    },
    "What DFQ's settings are worth": {
        "DFQ": Variant("dfq"),
        "DFQ, temperature 1": Variant("dfq", {"temperature": 1.0}, 212),
        "DFQ, G at rest": Variant("dfq", {"rest_G": True}, 212),
        "DFQ, both (as its code)": Variant("dfq", {"rest_G": True, "temperature": 1.0}, 212),
    },
    "What the published end of a generator is worth": {
        "DAFL": Variant("dafl"),
        "DAFL, end as published": Variant("dafl", {"standardised": True}),
        "DAFL, end and lr_G as published": Variant("dafl", {"standardised": True, "lr_G": 0.02}),
        "DFAD": Variant("dfad"),
        "DFAD, end as published": Variant("dfad", {"standardised": True}),
        "ZSKT": Variant("zskt"),
        "ZSKT, a sigmoid": Variant("zskt", {"standardised": False}),
    },
    "Why DFND stays near chance": {
        "DFND": Variant("dfnd"),
        "DFND, all images kept": Variant("dfnd", {"keep": 1.0}, 1000),
        "DFND, no noisy labels": Variant("dfnd", {"noisy": 0.0}, 1000),
        "DFND, neither": Variant("dfnd", {"keep": 1.0, "noisy": 0.0}, 1000),
    },
    "Why SSKD stays near chance": {
        "SSKD": Variant("sskd"),
        "SSKD, plain images only": Variant("sskd", {"turned": 0.0, "alike": 0.0}),
        "KD, as many steps as SSKD's student": Variant("kd", {}, 425),
    },
}
#: the rows that are made here
MADE = {name: one for group in GROUPS.values() for name, one in group.items() if one.changes or one.steps}


@cache
def compared(method: str) -> list[Row]:
    """The comparison's own rows of a method."""
    runs = [read_records(path)[-1].run for path in sorted((RESULTS / "compare").glob(f"{method}-[0-9]*.jsonl"))]
    return [{"seed": run["seed"], "steps": run["steps"], "accuracy": run["last"]["accuracy"]} for run in runs]


def row_of(name: str, variant: Variant, seed: int) -> Row:
    """One row: the accuracy at the end of a run."""
    made = trained(TEACHER, variant.settings, seed=seed, steps=variant.many, batch_size=BATCH_SIZE)
    return {"variant": name, "seed": seed, "steps": variant.many, "settings": variant.changes} | made


@cache
def compute(method: str, changes: str, steps: int) -> float:
    """FLOPs of a run, forward and backward, all players."""
    settings = Variant(method, json.loads(changes)).settings
    ready = prepare(*read_plan(recipe(TEACHER, settings, seed=0, steps=steps, batch_size=BATCH_SIZE)))
    found = estimate(ready, clock=lambda method, run: Seconds(1.0, 1.0))  # nobody asks for the time
    return found.flops_per_step * found.steps + found.flops_per_synthesis * found.syntheses


def sweep(kept: Kept, options: argparse.Namespace) -> None:
    """The rows that are not there yet, each kept as soon as it is made."""
    for seed in options.seeds:
        for name in options.only or MADE:
            if any((row["variant"], row["seed"]) == (name, seed) for row in kept.rows()):
                continue
            row = row_of(name, MADE[name], seed)
            print(row, file=sys.stderr, flush=True)
            kept.put(rows=[*kept.rows(), row], batch_size=BATCH_SIZE, machine=machine.describe())


def table(rows: list[Row]) -> str:
    lines = [
        "# One thing changed",
        "",
        f"WRN-16-2 -> WRN-16-1, Fashion-MNIST from the embedded photographs, batch {BATCH_SIZE}: the runs of "
        "[the comparison](compare.md), with its settings but for what is named; accuracy at the end of the run. "
        "Compute is a run's FLOPs, all players, as a share of the first row's. Made by `python -m benchmarks.variants "
        "--write`.",
    ]
    for question, variants in GROUPS.items():
        lines += [
            "", f"## {question}", "", "| | accuracy, mean ± standard deviation | seeds | steps | compute |",
            "| --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        base = 0.0
        for name, variant in variants.items():
            plain = not (variant.changes or variant.steps)
            mine = compared(variant.method) if plain else [row for row in rows if row["variant"] == name]
            if not mine:
                continue
            mine.sort(key=lambda row: row["seed"])
            scores = [100 * row["accuracy"] for row in mine]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            each = ", ".join(f"{score:.1f}" for score in scores)
            cost = compute(variant.method, json.dumps(variant.changes), variant.many)
            base = base or cost
            steps = round(statistics.mean(row["steps"] for row in mine))
            lines.append(
                f"| {name} | {statistics.mean(scores):.1f} %{spread} | {each} | {steps} | {100 * cost / base:.0f} % |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(MADE), nargs="+", help="these rows only")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="write results/variants.json and .md")
    options = parser.parse_args()
    kept = Kept("variants", write=options.write)
    sweep(kept, options)
    kept.page(table(kept.rows()))


if __name__ == "__main__":
    main()
