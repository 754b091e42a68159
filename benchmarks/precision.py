"""Export teacher and student in every precision; measure accuracy by calibration data, file size and latency.

    python -m benchmarks.precision [--seeds 0 1 2] [--steps 170] [--out runs/precision] [--write]   # accuracy
    python -m benchmarks.precision --time [--rounds 5] [--out runs/precision] [--write]             # size and latency

For each seed, a student is distilled with the demo's recipe (a finished run is not repeated). It is exported as fp32,
fp16 and int8. int8 is calibrated on garments (in-domain), on photographs (the student's training images) and on images
of the run's own generator. The files are evaluated on the embedded test images in ONNX Runtime; other work on the
machine does not matter. --time measures files of the teacher and of the first seed's student in ONNX Runtime and
OpenVINO, interleaved in one process with one thread; run it alone. --write writes results/precision.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result_files import ResultFile, Row
from benchmarks.students import run_command
from profiles.latency import machine

TEACHER, DATA = "embedded/fashion_wrn16_2", "embedded/fashion"
#: calibration images -> argument of `--calibration`
CALIBRATIONS = {"in-domain": DATA, "photographs": "embedded/photos", "synthetic": "synthetic"}
FORMATS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "bf16", "int8")}


def distill_student(seed: int, options: argparse.Namespace) -> Path:
    """Distill the student of a seed; return its run directory."""
    folder = options.out / f"student-{seed}"
    run_command(
        "distill", "--recipe", "demo-mosaic", "--teacher", TEACHER, "--seed", seed, "--steps", options.steps, "--out",
        folder,
    )  # fmt: skip
    return folder


def export_model(model: str | Path, out: Path, *arguments: str) -> list[Row]:
    """Export a model; return its artifacts."""
    if not out.exists():
        result, _ = run_command("export", model, "--allow-slower", "--images", DATA, *arguments, "--out", out)
        (out.parent / f"{out.name}.json").write_text(json.dumps(result))
    return json.loads((out.parent / f"{out.name}.json").read_text())["artifacts"]


def measure_accuracy(path: str) -> float:
    return run_command("eval", path, "--data", DATA)[0]["metrics"]["accuracy"]


def iter_accuracy_rows(seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """Yield one row per file with its accuracy in ONNX Runtime."""
    run = distill_student(seed, options)
    for precisions, calibration in [("fp32,fp16", None), *(("int8", name) for name in CALIBRATIONS)]:
        out = options.out / f"files-{seed}-{calibration or 'whole'}"
        arguments = ["--precision", precisions]
        if calibration is not None:
            # two formats, so that --out is a directory here as well
            arguments = ["--precision", "int8", "--format", "onnx,openvino", "--calibration", CALIBRATIONS[calibration]]
        for artifact in export_model(run, out, *arguments):
            if artifact["format"] == "onnx":
                settings = {"seed": seed, "precision": artifact["precision"], "calibration": calibration}
                yield {
                    **settings,
                    "accuracy": measure_accuracy(artifact["path"]),
                    "agreement": artifact["parity"]["top1_agreement"],
                }


def measure_files(options: argparse.Namespace) -> list[Row]:
    """Return one row per file of teacher and student: size, median latency and accuracy."""
    models = {"teacher WRN-16-2": TEACHER, "student WRN-16-1": distill_student(options.seeds[0], options)}
    rows: list[Row] = []
    for name, model in models.items():
        for format, precisions in FORMATS.items():
            out = options.out / f"files-{'student' if 'student' in name else 'teacher'}-{format}"
            arguments = ["--format", format, "--precision", ",".join(precisions), "--calibration", DATA]
            for artifact in export_model(model, out, *arguments):
                columns = {key: artifact[key] for key in ("format", "precision", "bytes", "path", "verified_in")}
                rows.append({"model": name, **columns, "accuracy": measure_accuracy(artifact["path"])})
    bench, _ = run_command(
        "bench", *(row["path"] for row in rows), "--threads", "1", "--duration", f"{options.rounds}s"
    )
    for row, latency in zip(rows, bench["results"], strict=True):
        row |= {
            "latency_ms_p50": latency["latency_ms_p50"],
            "latency_ms_p90": latency["latency_ms_p90"],
            "ran": latency["precision"],
        }
        del row["path"]
    return rows


def format_calibration_table(rows: list[Row]) -> list[str]:
    lines = [
        "| precision | calibrated on | accuracy, mean ± standard deviation | seeds | loss against fp32 |",
        "| --- | --- | --- | --- | --- |",
    ]
    fp32 = {row["seed"]: row["accuracy"] for row in rows if row["precision"] == "fp32"}
    for kind in dict.fromkeys((row["precision"], row["calibration"]) for row in rows):
        mine = [row for row in rows if (row["precision"], row["calibration"]) == kind]
        scores = [row["accuracy"] for row in mine]
        losses = [fp32[row["seed"]] - row["accuracy"] for row in mine]
        spread = f" ± {statistics.stdev(scores):.1%}" if len(scores) > 1 else ""
        each = ", ".join(f"{100 * loss:+.2f}" for loss in losses)
        lines.append(
            f"| {kind[0]} | {kind[1] or '-'} | {statistics.mean(scores):.1%}{spread} | {len(scores)} | "
            f"{100 * statistics.mean(losses):.2f} points ({each}) |"
        )
    return lines


def format_file_table(rows: list[Row]) -> list[str]:
    lines = [
        "| model | file | precision | computed in | MB | p50 ms | speed relative to fp32 in ONNX Runtime | accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        fp32 = next(r for r in rows if (r["model"], r["format"], r["precision"]) == (row["model"], "onnx", "fp32"))
        ratio = fp32["latency_ms_p50"] / row["latency_ms_p50"]
        lines.append(
            f"| {row['model']} | {row['format']} | {row['precision']} | {row['ran']} | {row['bytes'] / 1e6:.2f} | "
            f"{row['latency_ms_p50']:.3f} | {ratio:.2f} times as fast | {row['accuracy']:.1%} |"
        )
    return lines


def render_page(content: Row) -> str:
    text = [
        "# Files of every precision",
        "",
        "Made by `python -m benchmarks.precision --write`, and with `--time`.",
        "",
    ]
    if "accuracy" in content:
        text += [
            "## int8 by calibration images",
            "",
            f"Students WRN-16-1, distilled with the demo's recipe in {content['steps']} steps; accuracy on the 2,000 "
            "embedded test images in ONNX Runtime; 256 calibration images.",
            "",
            *format_calibration_table(content["accuracy"]),
            "",
        ]
    if "files" in content:
        cpu = content["machine"]
        text += [
            "## Size, latency and accuracy",
            "",
            f"Batch 1, one thread, interleaved in one process on {cpu['cpu']} ({', '.join(cpu['instructions'])}); "
            'int8 calibrated on garments. "Computed in" is the precision that the runtime reports.',
            "",
            *format_file_table(content["files"]),
            "",
        ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=170)
    parser.add_argument("--time", action="store_true", help="size and latency of teacher and first student")
    parser.add_argument("--rounds", type=int, default=5, help="seconds per file")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    results = ResultFile("precision", write=options.write)
    if options.time:
        results.update(files=measure_files(options), machine=machine.describe_machine())
    else:
        rows = [row for row in results.rows("accuracy") if row["seed"] not in options.seeds]
        results.update(
            accuracy=rows + [row for seed in options.seeds for row in iter_accuracy_rows(seed, options)],
            steps=options.steps,
        )
    results.write_page(render_page(results.content))


if __name__ == "__main__":
    main()
