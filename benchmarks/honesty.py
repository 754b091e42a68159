"""Time the same file twice in one call; the difference of its medians is the resolution of a ratio.

    python -m benchmarks.honesty [--repetitions 10] [--duration 3s] [--threads 1] [--write]

Run it alone on the machine. `compress bench` receives the embedded teacher's ONNX file twice, as if it were two models,
in ONNX Runtime and in OpenVINO at batch sizes 1 and 8. --write writes results/honesty.json and .md. Nothing is
asserted; on a busy machine, the numbers show it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.students import run_command

RESULTS = Path(__file__).parent / "results"
TEACHER, BATCHES = "embedded/fashion_wrn16_2", "1,8"
#: maximum difference on an idle machine
ALLOWED = 0.03
Row = dict[str, Any]


def benchmark_twice(file: Path, runtime: str, options: argparse.Namespace) -> tuple[list[Row], Row]:
    """Run one call; return one row per batch size, and the machine."""
    settings = ["--batch-size", BATCHES, "--duration", options.duration, "--threads", str(options.threads)]
    result, _ = run_command("bench", file, file, "--runtimes", runtime, *settings)
    return [create_row(ratio, result["results"]) for ratio in result["ratios"]], result["machine"]


def create_row(ratio: Row, results: list[Row]) -> Row:
    """Return the ratio of the two: of all calls, and of the median round with its range."""
    first, second = results[ratio["against"]], results[ratio["result"]]
    return {
        "runtime": second["runtime"],
        "batch_size": second["batch_size"],
        "first_ms": first["latency_ms_p50"],
        "second_ms": second["latency_ms_p50"],
        "ratio": second["latency_ms_p50"] / first["latency_ms_p50"],
        "by_round": {key: ratio[key] for key in ("p50", "low", "high")},
        "busy": first["load_warning"] or second["load_warning"],
    }


def run_repetitions(options: argparse.Namespace) -> Row:
    rows: list[Row] = []
    machine: Row = {}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "teacher.onnx"
        run_command("export", TEACHER, "--out", file)
        for _ in range(options.repetitions):
            for runtime in options.runtimes:
                new_rows, machine = benchmark_twice(file, runtime, options)
                rows += new_rows
    settings = {key: getattr(options, key) for key in ("repetitions", "duration", "threads")}
    return {"benchmark": "honesty", **settings, "rows": rows, "machine": machine}


def render_page(content: Row) -> str:
    rows, cpu, calls = content["rows"], content["machine"], content["repetitions"]
    settings = f"{content['duration']} each, {content['threads']} thread(s), {cpu['cpu']} with {cpu['cores']} cores"
    lines = [
        "# The same file against itself",
        "",
        f"Made by `python -m benchmarks.honesty --write`: {calls} calls of `compress bench FILE FILE`, {settings}. The "
        f"ratio of the two medians should be 1; a difference within {ALLOWED:.0%} is accepted.",
        "",
        f"| runtime | batch | p50 ms | ratio, from … to | within {ALLOWED:.0%} | of a median round | machine |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for runtime, size in dict.fromkeys((row["runtime"], row["batch_size"]) for row in rows):
        mine = [row for row in rows if (row["runtime"], row["batch_size"]) == (runtime, size)]
        ratios, by_round = [row["ratio"] for row in mine], [row["by_round"]["p50"] for row in mine]
        near = sum(abs(ratio - 1) <= ALLOWED for ratio in ratios)
        busy = sum(bool(row["busy"]) for row in mine)
        fastest, state = min(row["first_ms"] for row in mine), f"busy in {busy} of {len(mine)}" if busy else "quiet"
        lines.append(
            f"| {runtime} | {size} | {fastest:.3f} | {min(ratios):.3f} to {max(ratios):.3f} | {near} of {len(mine)} | "
            f"{min(by_round):.3f} to {max(by_round):.3f} | {state} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--duration", default="3s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    content = run_repetitions(options)
    print(render_page(content))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "honesty.json").write_text(json.dumps(content, indent=2) + "\n")
        (RESULTS / "honesty.md").write_text(render_page(content))


if __name__ == "__main__":
    main()
