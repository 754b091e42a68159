"""Measure two options that reduce teacher evaluations: seconds per step, and accuracy after the same number of steps.

    python -m benchmarks.options --accuracy [--seeds 0 1 2] [--only NAME ...] [--steps 300] [--write]
    python -m benchmarks.options --time [--rounds 9] [--write]

--accuracy distills the embedded teacher (WRN-16-2) into WRN-16-1 from the embedded photographs; other work on the
machine does not matter. --time measures WRN-40-2 -> WRN-16-1, interleaved in one process: run it alone. --write writes
results/options.json and options.md. Existing rows stay, so a stopped benchmark continues.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.result_files import ResultFile
from benchmarks.step_speed import CARD, create_our_loop, measure_interleaved
from benchmarks.students import train_student
from compress.data import open_images
from compress.data.cache import build_cache
from compress.engine.accelerator import create_accelerator
from compress.training.data import CachedDataset, image_cache_dir
from profiles.latency import machine

CACHED = {"augment": False, "cache_teacher_logits": True}
#: name in results/options.json -> (settings of the method, whether BatchNorm is folded)
OPTIONS: dict[str, tuple[dict[str, bool], bool]] = {
    "plain": ({}, False),
    "augment off": ({"augment": False}, False),
    "augment off, answers kept": (CACHED, False),
    "teacher folded": ({}, True),
    "both": (CACHED, True),
}
#: the demo's settings, but half of the student's images are photographs, as in the paper; otherwise little is cached
DEMO: dict[str, Any] = {
    "name": "mosaic", "adv": 3.0, "temperature": 4.0, "ood_fraction": 0.5, "lr_G": 0.003, "width_G": 32, "width_D": 64,
}  # fmt: skip
#: name in results/options.json -> (settings of the method, options); folding and `bn` exclude each other
TRIALS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bn 10": (DEMO | {"bn": 10.0}, ["plain", "augment off", "augment off, answers kept"]),
    "bn 0": (DEMO, ["plain", "teacher folded", "both"]),
    "kd": ({"name": "kd"}, list(OPTIONS)),
}


def train_row(trial: str, option: str, seed: int, steps: int, batch_size: int) -> dict[str, Any]:
    """Return a row with the accuracy at the end of a run."""
    settings, is_folded = OPTIONS[option]
    teacher = {"model": "embedded/fashion_wrn16_2", "fold_batchnorm": is_folded}
    outcome = train_student(teacher, TRIALS[trial][0] | settings, seed=seed, steps=steps, batch_size=batch_size)
    return {"settings": trial, "option": option, "seed": seed, "steps": steps, "batch_size": batch_size} | outcome


def measure_accuracy(results: ResultFile, options: argparse.Namespace) -> None:
    """Add the missing rows. Two processes may share the work with --only."""
    for seed in options.seeds:
        for trial in options.only or TRIALS:
            for option in TRIALS[trial][1]:
                key = (trial, option, seed, options.steps, options.batch_size)
                if key in map(row_key, results.rows("accuracy")):
                    continue
                row = train_row(*key)
                print(row, file=sys.stderr, flush=True)
                rows = [*results.rows("accuracy"), row]
                results.update(accuracy=rows, accuracy_machine=machine.describe_machine(), torch=torch.__version__)


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("settings", "option", "seed", "steps", "batch_size"))


def measure_time(rounds: int, batch_size: int, folder: Path) -> list[dict[str, Any]]:
    """Measure the seconds per step of each option, interleaved, when the cache of logits is complete."""
    accelerator = create_accelerator("cpu", "auto")
    photographs = open_images("embedded/photos", root=None, split="train", labeled=False).without_labels()
    cache = build_cache(
        photographs, image_size=CARD.image_size,
        folder=image_cache_dir(), views=1 + 5 * batch_size // 14, progress=lambda _: None,
    )  # fmt: skip
    # the images of one step, so all logits are cached
    source = CachedDataset(cache.subset(torch.arange(5 * batch_size).numpy()))
    loops: dict[str, Callable[[], object]] = {
        name: create_our_loop(batch_size, folder / name, accelerator, source=source, fold=fold, **settings)
        for name, (settings, fold) in OPTIONS.items()
    }
    seconds = measure_interleaved(loops, rounds)
    base = statistics.median(seconds["plain"])
    return [
        {
            "option": name, "seconds_median": round(statistics.median(taken), 4), "seconds_min": round(min(taken), 4),
            "seconds_max": round(max(taken), 4), "share_of_plain": round(statistics.median(taken) / base, 3),
            "batch_size": batch_size, "rounds": rounds, "threads": torch.get_num_threads(),
            "precision": accelerator.precision,
        }
        for name, taken in seconds.items()
    ]  # fmt: skip


def render_page(content: dict[str, Any]) -> str:
    cpu = content.get("time_machine", {}).get("cpu", "")
    tables = [*format_time_table(content.get("time", []), cpu), *format_accuracy_table(content.get("accuracy", []))]
    return "\n".join(["# Fewer teacher evaluations", "", *tables]) + "\n"


def format_time_table(rows: list[dict[str, Any]], cpu: str) -> list[str]:
    if not rows:
        return ["Seconds per step: not measured yet (`python -m benchmarks.options --time --write`).", ""]
    first = rows[0]
    settings = (
        f"batch size {first['batch_size']}, {first['threads']} threads, {first['precision']}, {first['rounds']} rounds"
    )
    lines = [
        f"One MosaicKD iteration, WRN-40-2 -> WRN-16-1, {settings}, {cpu}; the cache of logits is complete. Made by "
        f"`python -m benchmarks.options --time --rounds {first['rounds']} --write`.",
        "",
        "| option | s/iteration (min-max) | share of plain |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        spread = f"{row['seconds_median']:.3f} ({row['seconds_min']:.3f}-{row['seconds_max']:.3f})"
        lines.append(f"| {row['option']} | {spread} | {100 * row['share_of_plain']:.0f} % |")
    return [*lines, ""]


def format_accuracy_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Accuracy on Fashion-MNIST test images after the same number of steps, WRN-16-2 -> WRN-16-1, from the embedded "
        "photographs. `bn 10` and `bn 0`: MosaicKD with the demo's settings but `ood_fraction` 0.5; `kd`: plain KD. "
        "Made by `python -m benchmarks.options --accuracy --write` with these steps and batch size.",
        "",
        "| settings | option | steps x batch | accuracy, mean ± standard deviation | seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        name = (row["settings"], row["option"], f"{row['steps']} x {row['batch_size']}")
        groups.setdefault(name, []).append(100 * row["accuracy"])
    order = [(trial, option) for trial, (_, names) in TRIALS.items() for option in names]
    for name, scores in sorted(groups.items(), key=lambda item: order.index((item[0][0], item[0][1]))):
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        each = ", ".join(f"{score:.1f}" for score in scores)
        lines.append(f"| {' | '.join(name)} | {statistics.mean(scores):.1f} %{spread} | {each} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--accuracy", action="store_true", help="train a student with each option")
    parser.add_argument("--time", action="store_true", help="measure a step with each option; needs an idle machine")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=list(TRIALS), nargs="+", help="only these settings")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="write results/options.json and .md")
    options = parser.parse_args()
    results = ResultFile("options", write=options.write)
    if options.accuracy:
        measure_accuracy(results, options)
    if options.time:
        with TemporaryDirectory() as folder:
            rows = measure_time(options.rounds, options.batch_size, Path(folder))
        results.update(time=rows, time_machine=machine.describe_machine(), torch=torch.__version__)
    results.write_page(render_page(results.content))


if __name__ == "__main__":
    main()
