"""Compare all methods on the embedded classification data with the same training time.

    python -m benchmarks.compare [--only kd mosaic] [--seeds 3] [--time-limit 240s] [--out runs/methods] [--write]

Runs `compress compare` with settings for short runs. Run the first seed alone on the machine, because its budget is
time; the other seeds take the same number of steps. Finished runs, and runs stored in results/compare, are not repeated
(--restart repeats the latter). With --only, finished runs of other methods stay in the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from compress.methods import METHODS
from profiles.records import FILE, has_records

RESULTS = Path(__file__).parent / "results"
TASK = [
    "--teacher", "embedded/fashion_wrn16_2", "--student", "wrn16_1", "--ood", "embedded/photos", "--val",
    "embedded/fashion", "--data", "embedded/fashion",  # only supervised training uses the labels
]  # fmt: skip
#: the same for all methods; small enough for some hundred steps of the slowest one on two cores
BATCH_SIZE = 64
#: the demo's width; sufficient for small grayscale images
NARROW: dict[str, Any] = {"width_G": 32}
#: method -> settings for short runs; the defaults are meant for hours on a GPU
SETTINGS: dict[str, dict[str, Any]] = {
    # The demo's settings, which were tuned on this task, unlike those of the other methods. The loss bn is from
    # DeepInversion and not in the paper: the teacher's BatchNorm statistics compensate for the small number of steps.
    "mosaic": NARROW | {
        "width_D": 64, "bn": 10.0, "adv": 3.0, "temperature": 4.0, "ood_fraction": 0.1, "lr_G": 0.003,
    },
    # Fourteen photographs give few crops: 16384 negatives would be repetitions and take most of the step.
    "crd": {"negatives": 1024},
    # The accuracy of this teacher, which the paper assumes to be known.
    "dfnd": {"teacher_accuracy": 0.91},
    # The paper's weights for MNIST, its data set most similar to these images. Its 1000 noise dimensions are for more
    # varied images. In so few steps, a final sigmoid is better for dafl and dfad than the published output layer
    # (results/variants.md). With the sigmoid, dafl's learning rate of 0.02 is too large.
    "dafl": NARROW | {"one_hot": 1.0, "activation": 0.1, "z_dim": 100, "standardize_output": False, "lr_G": 0.001},
    "zskt": NARROW,
    "dfad": NARROW | {"standardize_output": False},
    # bn, lr_G and temperature as for mosaic, for the same reason. Five student steps instead of ten allow more steps of
    # the generator. Its running statistics then lag behind its weights, so it is not in eval mode.
    "dfq": NARROW | {"student_steps": 5, "bn": 10.0, "lr_G": 0.003, "temperature": 4.0, "eval_mode_G": False},
    # A synthesis with the defaults takes longer than the whole run, so this one is short and has fewer images.
    "deepinversion": {"images_per_synthesis": 64, "iterations": 100, "student_steps": 60, "temperature": 4.0},
    # As for deepinversion; bn and lr_G as for mosaic; a memory bank for the number of images of this run.
    "cmi": NARROW | {
        "images_per_synthesis": 64, "iterations": 40, "student_steps": 40, "temperature": 4.0, "bn": 10.0,
        "lr_G": 0.003, "bank_size": 4096, "negatives": 512,
    },
    # The paper's Fast-5 with a short warm-up, which would take half of the run; the better of two settings.
    "fastdfkd": {
        "images_per_synthesis": 64, "iterations": 5, "student_steps": 20, "warmup": 5, "reset": 0, "lr": 0.1,
        "temperature": 4.0,
    },
}  # fmt: skip


def format_settings(methods: list[str]) -> list[str]:
    """Return `--set` options for the settings of these methods."""
    named = [(name, key, value) for name in methods for key, value in SETTINGS.get(name, {}).items()]
    return [word for name, key, value in named for word in ("--set", f"{name}.{key}={json.dumps(value)}")]


def has_finished(name: str, seeds: int, out: Path) -> bool:
    """Return whether all runs of a method have finished."""
    return all(has_records(out / f"{name}-{seed}") for seed in range(seeds))


def restore_records(out: Path) -> None:
    """Copy the records in results/compare to the run directories of `compress compare`."""
    for stored in (RESULTS / "compare").glob("*.jsonl"):
        record = out / stored.stem / FILE
        if not record.exists():
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_bytes(stored.read_bytes())


def copy_to_results(out: Path) -> None:
    """Copy the table, the chart, the numbers and the records of all runs to results."""
    (RESULTS / "compare").mkdir(parents=True, exist_ok=True)
    for record in out.glob(f"*-[0-9]*/{FILE}"):
        (RESULTS / "compare" / f"{record.parent.name}.jsonl").write_bytes(record.read_bytes())
    for ending in ("json", "png"):
        (RESULTS / f"compare.{ending}").write_bytes((out / f"compare.{ending}").read_bytes())
    table = (out / "compare.md").read_text().replace("(compare.svg)", "(compare.png)")
    source = (
        "Made by `python -m benchmarks.compare --write`: the first seed by time and alone on the machine, the others "
        "with the same number of steps. docs/compare.md explains the table, and benchmarks/compare.py the settings. "
        "MosaicKD's settings were tuned on this task, which is the demo's; those of the others were adapted to the "
        "time. For dafl, dfad and fastdfkd they are the best of two or three, for dfq of five.\n"
    )
    (RESULTS / "compare.md").write_text(f"{table}\n{source}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(METHODS), nargs="+", help="run these methods only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time-limit", default="240s", help="training time of each run; default: that of the demo")
    parser.add_argument("--steps", type=int, help="number of steps instead of a time limit, for a trial")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--write", action="store_true", help="write results/compare.json, .md and .png")
    parser.add_argument("--restart", action="store_true", help="ignore the runs stored in results")
    parser.add_argument("--dry-run", action="store_true", help="print the planned runs and their time")
    options = parser.parse_args()
    if not options.restart:
        restore_records(options.out)
    selected = options.only or list(METHODS)
    methods = [name for name in METHODS if name in selected or has_finished(name, options.seeds, options.out)]
    budget = ["--steps", options.steps] if options.steps else ["--time-limit", options.time_limit, "--same-steps"]
    words = [
        *TASK, "--methods", ",".join(methods), *budget, "--seeds", options.seeds, "--batch-size", BATCH_SIZE,
        *format_settings(methods), "--out", options.out, *(["--dry-run"] if options.dry_run else []),
    ]  # fmt: skip
    code = subprocess.run([sys.executable, "-m", "compress", "compare", *map(str, words)]).returncode
    if options.write and not options.dry_run and code in (0, 1) and (options.out / "compare.png").exists():
        copy_to_results(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
