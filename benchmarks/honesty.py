"""The same file timed twice in one call: how far its two medians are apart is what a ratio of two files is worth.

    python -m benchmarks.honesty [--repetitions 10] [--duration 3s] [--threads 1] [--write]

Alone on the machine. The embedded teacher's ONNX file is given to `compress bench` twice, as if it were two models, in
ONNX Runtime and in OpenVINO at batch 1 and 8. With --write the rows go to results/honesty.json and .md. Nothing is
asserted: on a busy machine the numbers say that it was one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.students import command

RESULTS = Path(__file__).parent / "results"
TEACHER, BATCHES = "embedded/fashion_wrn16_2", "1,8"
#: by which the two may differ on a quiet machine
ALLOWED = 0.03
Row = dict[str, Any]


def measured(file: Path, runtime: str, options: argparse.Namespace) -> tuple[list[Row], Row]:
    """One call: a row a batch size, and the machine."""
    settings = ["--batch-size", BATCHES, "--duration", options.duration, "--threads", str(options.threads)]
    found, _ = command("bench", file, file, "--runtimes", runtime, *settings)
    return [row_of(ratio, found["results"]) for ratio in found["ratios"]], found["machine"]


def row_of(ratio: Row, results: list[Row]) -> Row:
    """The second of the two against the first: of all calls together, and of the median round with its range."""
    first, second = results[ratio["against"]], results[ratio["result"]]
    return {
        "runtime": second["runtime"],
        "batch_size": second["batch_size"],
        "first_ms": first["latency_ms_p50"],
        "second_ms": second["latency_ms_p50"],
        "ratio": second["latency_ms_p50"] / first["latency_ms_p50"],
        "by_round": {key: ratio[key] for key in ("p50", "low", "high")},
        "busy": first["busy"] or second["busy"],
    }


def gathered(options: argparse.Namespace) -> Row:
    rows: list[Row] = []
    machine: Row = {}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "teacher.onnx"
        command("export", TEACHER, "--out", file)
        for _ in range(options.repetitions):
            for runtime in options.runtimes:
                more, machine = measured(file, runtime, options)
                rows += more
    asked = {key: getattr(options, key) for key in ("repetitions", "duration", "threads")}
    return {"benchmark": "honesty", **asked, "rows": rows, "machine": machine}


def page(content: Row) -> str:
    rows, cpu, calls = content["rows"], content["machine"], content["repetitions"]
    settings = f"{content['duration']} each, {content['threads']} thread(s), {cpu['cpu']} with {cpu['cores']} cores"
    lines = [
        "# The same file against itself",
        "",
        f"Made by `python -m benchmarks.honesty --write`: {calls} calls of `compress bench FILE FILE`, {settings}. The "
        f"ratio of the two medians should be 1; within {ALLOWED:.0%} it is taken for good.",
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
    content = gathered(options)
    print(page(content))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "honesty.json").write_text(json.dumps(content, indent=2) + "\n")
        (RESULTS / "honesty.md").write_text(page(content))


if __name__ == "__main__":
    main()
