"""Teacher and student in every precision: what int8 costs by what it is calibrated on, and what each file is worth.

    python -m benchmarks.precision [--seeds 0 1 2] [--steps 170] [--out runs/precision] [--write]   # accuracy
    python -m benchmarks.precision --time [--rounds 5] [--out runs/precision] [--write]             # size and latency

For each seed a student is distilled by the demo's recipe for so many steps (a finished run is taken as it is), exported
as fp32, fp16 and int8, the last calibrated on garments (in-domain), on photographs (what the student learned from) and
on images of the run's own generator, and measured on the embedded test images in ONNX Runtime, whatever else the
machine does. `--time`: files of the teacher and of the first seed's student in ONNX Runtime and OpenVINO, in one
process, in turns, one thread; alone on the machine. With --write the rows go to results/precision.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.kept import Kept, Row
from benchmarks.students import command
from profiles import machine

TEACHER, DATA = "embedded/fashion_wrn16_2", "embedded/fashion"
#: images that int8 is calibrated on -> what `--calibration` says
CALIBRATIONS = {"in-domain": DATA, "photographs": "embedded/photos", "synthetic": "synthetic"}
FORMATS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "bf16", "int8")}


def distilled(seed: int, options: argparse.Namespace) -> Path:
    """The folder of a seed's run."""
    folder = options.out / f"student-{seed}"
    command(
        "distill", "--recipe", "demo-mosaic", "--teacher", TEACHER, "--seed", seed, "--steps", options.steps, "--out",
        folder,
    )  # fmt: skip
    return folder


def exported(model: str | Path, out: Path, *words: str) -> list[Row]:
    """The artefacts that `compress export` made."""
    if not out.exists():
        found, _ = command("export", model, "--allow-slower", "--images", DATA, *words, "--out", out)
        (out.parent / f"{out.name}.json").write_text(json.dumps(found))
    return json.loads((out.parent / f"{out.name}.json").read_text())["artefacts"]


def accuracy(path: str) -> float:
    return command("eval", path, "--data", DATA)[0]["metrics"]["accuracy"]


def of_seed(seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """A row a file: accuracy in ONNX Runtime."""
    run = distilled(seed, options)
    named = [("fp32,fp16", None), *(("int8", name) for name in CALIBRATIONS)]
    for precisions, calibration in named:
        out = options.out / f"files-{seed}-{calibration or 'whole'}"
        words = ["--precision", precisions]
        if calibration is not None:
            # more than one artefact, so that --out is a folder here as well
            words = ["--precision", "int8", "--format", "onnx,openvino", "--calibration", CALIBRATIONS[calibration]]
        for one in exported(run, out, *words):
            if one["format"] == "onnx":
                facts = {"seed": seed, "precision": one["precision"], "calibration": calibration}
                yield {**facts, "accuracy": accuracy(one["path"]), "agreement": one["parity"]["top1_agreement"]}


def timed(options: argparse.Namespace) -> list[Row]:
    """A row a file of the teacher and the student: size, median latency and accuracy."""
    models = {"teacher WRN-16-2": TEACHER, "student WRN-16-1": distilled(options.seeds[0], options)}
    rows: list[Row] = []
    for name, model in models.items():
        for format, precisions in FORMATS.items():
            out = options.out / f"files-{'student' if 'student' in name else 'teacher'}-{format}"
            words = ["--format", format, "--precision", ",".join(precisions), "--calibration", DATA]
            for one in exported(model, out, *words):
                found = {key: one[key] for key in ("format", "precision", "bytes", "path", "verified_in")}
                rows.append({"model": name, **found, "accuracy": accuracy(one["path"])})
    bench, _ = command("bench", *(row["path"] for row in rows), "--threads", "1", "--duration", f"{options.rounds}s")
    for row, one in zip(rows, bench["results"], strict=True):
        row |= {
            "latency_ms_p50": one["latency_ms_p50"],
            "latency_ms_p90": one["latency_ms_p90"],
            "ran": one["precision"],
        }
        del row["path"]
    return rows


def by_calibration(rows: list[Row]) -> list[str]:
    lines = [
        "| precision | calibrated on | accuracy, mean ± standard deviation | seeds | loss against fp32 |",
        "| --- | --- | --- | --- | --- |",
    ]
    whole = {row["seed"]: row["accuracy"] for row in rows if row["precision"] == "fp32"}
    for kind in dict.fromkeys((row["precision"], row["calibration"]) for row in rows):
        mine = [row for row in rows if (row["precision"], row["calibration"]) == kind]
        scores = [row["accuracy"] for row in mine]
        losses = [whole[row["seed"]] - row["accuracy"] for row in mine]
        spread = f" ± {statistics.stdev(scores):.1%}" if len(scores) > 1 else ""
        each = ", ".join(f"{100 * loss:+.2f}" for loss in losses)
        lines.append(
            f"| {kind[0]} | {kind[1] or '-'} | {statistics.mean(scores):.1%}{spread} | {len(scores)} | "
            f"{100 * statistics.mean(losses):.2f} points ({each}) |"
        )
    return lines


def by_file(rows: list[Row]) -> list[str]:
    lines = [
        "| model | file | precision | computed in | MB | p50 ms | against its fp32 in ONNX Runtime | accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        whole = next(r for r in rows if (r["model"], r["format"], r["precision"]) == (row["model"], "onnx", "fp32"))
        ratio = whole["latency_ms_p50"] / row["latency_ms_p50"]
        lines.append(
            f"| {row['model']} | {row['format']} | {row['precision']} | {row['ran']} | {row['bytes'] / 1e6:.2f} | "
            f"{row['latency_ms_p50']:.3f} | {ratio:.2f} times as fast | {row['accuracy']:.1%} |"
        )
    return lines


def page(content: Row) -> str:
    text = [
        "# Files of every precision",
        "",
        "Made by `python -m benchmarks.precision --write`, and with `--time`.",
        "",
    ]
    if "accuracy" in content:
        text += [
            "## int8 by the images it is calibrated on",
            "",
            f"Students WRN-16-1, distilled by the demo's recipe in {content['steps']} steps; accuracy on the 2,000 "
            "embedded test images in ONNX Runtime; 256 images to calibrate on.",
            "",
            *by_calibration(content["accuracy"]),
            "",
        ]
    if "files" in content:
        cpu = content["machine"]
        text += [
            "## Size, latency and accuracy",
            "",
            f"Batch 1, one thread, all in turns in one process on {cpu['cpu']} ({', '.join(cpu['instructions'])}); "
            'int8 calibrated on garments. "Computed in" is what the runtime says of the file\'s own precision.',
            "",
            *by_file(content["files"]),
            "",
        ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=170)
    parser.add_argument("--time", action="store_true", help="size and latency, of the first seed's student")
    parser.add_argument("--rounds", type=int, default=5, help="seconds of each file")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    kept = Kept("precision", write=options.write)
    if options.time:
        kept.put(files=timed(options), machine=machine.describe())
    else:
        rows = [row for row in kept.rows("accuracy") if row["seed"] not in options.seeds]
        kept.put(accuracy=rows + [row for seed in options.seeds for row in of_seed(seed, options)], steps=options.steps)
    kept.page(page(kept.content))


if __name__ == "__main__":
    main()
