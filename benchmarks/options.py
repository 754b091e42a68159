"""Two ways to ask the teacher for less, and what they cost: seconds a step, and accuracy after as many steps.

    python -m benchmarks.options --accuracy [--seeds 0 1 2] [--only NAME ...] [--steps 300] [--write]
    python -m benchmarks.options --time [--rounds 9] [--write]

--accuracy distils the embedded teacher (WRN-16-2) into WRN-16-1 from the embedded photographs; other work on the
machine does not matter to it. --time measures WRN-40-2 -> WRN-16-1, alternated in one process: run it alone. With
--write, results go to results/options.json and options.md; what is there already of other runs is kept, so that a
run that was stopped goes on.
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

from benchmarks.kept import Kept
from benchmarks.step_speed import CARD, alternate, our_loop
from benchmarks.students import trained
from compress.data import open_images
from compress.data.cache import build_cache
from compress.engine.place import open_place
from compress.sources import CachedSource, cache_folder
from profiles import machine

KEPT = {"augment": False, "keep_answers": True}
#: option -> (settings of the method, whether the teacher is folded)
OPTIONS: dict[str, tuple[dict[str, bool], bool]] = {
    "plain": ({}, False),
    "augment off": ({"augment": False}, False),
    "augment off, answers kept": (KEPT, False),
    "teacher folded": ({}, True),
    "both": (KEPT, True),
}
#: the demo's settings, but half of the student's images are photographs, as in the paper: else there is little to keep
DEMO: dict[str, Any] = {
    "name": "mosaic", "adv": 3.0, "temperature": 4.0, "ood_share": 0.5, "lr_G": 0.003, "width_G": 32, "width_D": 64,
}  # fmt: skip
#: set of settings -> (settings of the method, what is tried with them); folding and `bn` exclude each other
TRIALS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bn 10": (DEMO | {"bn": 10.0}, ["plain", "augment off", "augment off, answers kept"]),
    "bn 0": (DEMO, ["plain", "teacher folded", "both"]),
    "kd": ({"name": "kd"}, list(OPTIONS)),
}


def row_of(trial: str, option: str, seed: int, steps: int, batch_size: int) -> dict[str, Any]:
    """One row: the accuracy at the end of a run."""
    settings, folded = OPTIONS[option]
    teacher = {"model": "embedded/fashion_wrn16_2", "fold": folded}
    made = trained(teacher, TRIALS[trial][0] | settings, seed=seed, steps=steps, batch_size=batch_size)
    return {"settings": trial, "option": option, "seed": seed, "steps": steps, "batch_size": batch_size} | made


def accuracies(kept: Kept, options: argparse.Namespace) -> None:
    """All rows, those that are there already and new ones. Two of these processes may share the work by --only."""
    for seed in options.seeds:
        for trial in options.only or TRIALS:
            for option in TRIALS[trial][1]:
                wanted = (trial, option, seed, options.steps, options.batch_size)
                if wanted in map(key, kept.rows("accuracy")):
                    continue
                made = row_of(*wanted)
                print(made, file=sys.stderr, flush=True)
                rows = [*kept.rows("accuracy"), made]
                kept.put(accuracy=rows, accuracy_machine=machine.describe(), torch=torch.__version__)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("settings", "option", "seed", "steps", "batch_size"))


def times(rounds: int, batch_size: int, folder: Path) -> list[dict[str, Any]]:
    """Seconds of a step with each option, in turns, once every answer that can be kept is known."""
    place = open_place("cpu", "auto")
    photos = build_cache(
        open_images("embedded/photos", root=None, split="train", labelled=False).bare(), image_size=CARD.image_size,
        folder=cache_folder(), views=1 + 5 * batch_size // 14, say=lambda _: None,
    )  # fmt: skip
    source = CachedSource(photos.subset(torch.arange(5 * batch_size).numpy()))  # one step's images: then all are known
    loops: dict[str, Callable[[], object]] = {
        name: our_loop(batch_size, folder / name, place, source=source, fold=fold, **settings)
        for name, (settings, fold) in OPTIONS.items()
    }
    seconds = alternate(loops, rounds)
    base = statistics.median(seconds["plain"])
    return [
        {
            "option": name, "seconds_median": round(statistics.median(taken), 4), "seconds_min": round(min(taken), 4),
            "seconds_max": round(max(taken), 4), "share_of_plain": round(statistics.median(taken) / base, 3),
            "batch_size": batch_size, "rounds": rounds, "threads": torch.get_num_threads(),
            "precision": place.precision,
        }
        for name, taken in seconds.items()
    ]  # fmt: skip


def page(content: dict[str, Any]) -> str:
    cpu = content.get("time_machine", {}).get("cpu", "")
    tables = [*time_table(content.get("time", []), cpu), *accuracy_table(content.get("accuracy", []))]
    return "\n".join(["# Asking the teacher for less", "", *tables]) + "\n"


def time_table(rows: list[dict[str, Any]], cpu: str) -> list[str]:
    if not rows:
        return ["Seconds a step: not measured yet (`python -m benchmarks.options --time --write`).", ""]
    one = rows[0]
    facts = f"batch {one['batch_size']}, {one['threads']} threads, {one['precision']}, {one['rounds']} rounds, {cpu}"
    lines = [
        f"One MosaicKD iteration, WRN-40-2 -> WRN-16-1, {facts}; every kept answer is known already. Made by "
        f"`python -m benchmarks.options --time --rounds {one['rounds']} --write`.",
        "",
        "| option | s/iteration (min-max) | share of plain |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        spread = f"{row['seconds_median']:.3f} ({row['seconds_min']:.3f}-{row['seconds_max']:.3f})"
        lines.append(f"| {row['option']} | {spread} | {100 * row['share_of_plain']:.0f} % |")
    return [*lines, ""]


def accuracy_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Accuracy on Fashion-MNIST test images after as many steps, WRN-16-2 -> WRN-16-1, from the embedded "
        "photographs. `bn 10` and `bn 0`: MosaicKD with the demo's settings but `ood_share` 0.5; `kd`: plain KD. Made "
        "by `python -m benchmarks.options --accuracy --write` with the steps and batch size named.",
        "",
        "| settings | option | steps x batch | accuracy, mean ± standard deviation | seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        name = (row["settings"], row["option"], f"{row['steps']} x {row['batch_size']}")
        groups.setdefault(name, []).append(100 * row["accuracy"])
    order = [(trial, option) for trial, (_, names) in TRIALS.items() for option in names]
    for name, scores in sorted(groups.items(), key=lambda item: order.index(item[0][:2])):
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        each = ", ".join(f"{score:.1f}" for score in scores)
        lines.append(f"| {' | '.join(name)} | {statistics.mean(scores):.1f} %{spread} | {each} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--accuracy", action="store_true", help="train a student with each option")
    parser.add_argument("--time", action="store_true", help="measure a step with each option: alone on the machine")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=list(TRIALS), nargs="+", help="these settings only")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="write results/options.json and .md")
    options = parser.parse_args()
    kept = Kept("options", write=options.write)
    if options.accuracy:
        accuracies(kept, options)
    if options.time:
        with TemporaryDirectory() as folder:
            rows = times(options.rounds, options.batch_size, Path(folder))
        kept.put(time=rows, time_machine=machine.describe(), torch=torch.__version__)
    kept.page(page(kept.content))


if __name__ == "__main__":
    main()
