"""Measure the size of a report page with 10,000 models, and the time that a browser takes to open it.

    python -m benchmarks.report_size [--models 10000] [--rounds 5] [--keep FILE] [--write]

The models are synthetic, from one seed. Each round, a new headless Chromium opens the file from disk. Measured are the
seconds from the start of the navigation until the first page of the table and the first chart are visible, and the
memory of the scripts then. Run it alone on the machine. --write writes results/report_size.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from profiles.latency import machine
from profiles.latency.benchmark import Latency
from profiles.records import Record
from profiles.report.comparison import Comparison
from profiles.report.html import render_page
from profiles.report.recommendation import Limits, recommend
from profiles.report.rows import build_page_data

RESULTS = Path(__file__).parent / "results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--enable-precise-memory-info"]
#: network -> millions of MACs, thousands of parameters, maximum accuracy
NETWORKS = {
    "wrn40_2": (328, 2_250, 0.934), "wrn40_1": (84, 566, 0.905), "wrn16_2": (101, 700, 0.915),
    "wrn16_1": (27, 176, 0.872), "resnet18": (557, 11_170, 0.941), "resnet8x4": (178, 1_230, 0.912),
    "mobilenet_v2": (96, 2_240, 0.899), "shufflenet_v2": (46, 1_260, 0.886), "vgg8": (97, 3_940, 0.893),
    "vgg11": (153, 9_230, 0.92),
}  # fmt: skip
METHODS = {"MosaicKD": 0.0, "DFQ": -0.05, "KD": -0.14}
#: (format, precision) -> relative time, bytes per parameter, relative energy, lost accuracy
FORMS = {
    ("", "fp32"): (1.6, 4.0, 1.4, 0.0), ("onnx", "fp32"): (1.0, 4.02, 1.0, 0.0),
    ("onnx", "fp16"): (0.95, 2.03, 0.8, 0.0004), ("onnx", "int8"): (0.52, 1.06, 0.5, 0.006),
    ("openvino", "fp32"): (0.9, 4.05, 0.95, 0.0), ("openvino", "int8"): (0.48, 1.1, 0.47, 0.007),
}  # fmt: skip
CPU = "Synthetic CPU, 2 cores"


def create_records(n: int, seed: int = 0, energy: bool = True) -> list[Record]:
    """Create a teacher and `n - 1` students with realistic correlations."""
    rng = random.Random(seed)
    records = [
        create_record(rng, "Teacher", "teacher", "Supervised", "resnet34", (1_160, 21_280, 0.952), ("", "fp32"), energy)
    ]
    kinds = [(method, network, form) for network in NETWORKS for method in METHODS for form in FORMS]
    for i in range(n - 1):
        method, network, form = kinds[i % len(kinds)]
        turn = i // len(kinds)
        name = f"{method} {network}" + (f" #{turn}" if turn else "")
        records.append(create_record(rng, name, "student", method, network, NETWORKS[network], form, energy))
    return records


def create_record(
    rng: random.Random, name: str, role: Any, method: str, network: str, facts: tuple[float, ...],
    form: tuple[str, str], energy: bool,
) -> Record:  # fmt: skip
    """Create a synthetic record: three seeds, two latency settings, and parity if it is a file."""
    mega, kilo, reach = facts
    slower, a_parameter, hungrier, lost = FORMS[form]
    centre = reach + METHODS.get(method, 0.0) - lost + rng.gauss(0, 0.012)
    scores = [min(0.99, max(0.05, centre + rng.gauss(0, 0.006))) for _ in range(3)]
    ms = slower * (0.08 + mega / 420) * math.exp(rng.gauss(0, 0.12))
    runtime = {"": "torch", "openvino": "openvino"}.get(form[0], "onnxruntime")
    latencies = [
        create_latency(
            runtime, form[1], ms * share * rng.uniform(0.97, 1.03), threads, hungrier * ms * 11 if energy else None
        )
        for threads, share in ((1, 1.0), (2, 0.58))
    ]
    parity = {
        "images": 512, "top1_agreement": 1 - 20 * lost * rng.random() / 10, "max_abs": 3e-6 + lost * rng.random() * 60,
        "max_rel": 2e-7 + lost, "mean_abs": 4e-7 + lost * 2, "cosine": 1 - lost / 30,
    }  # fmt: skip
    return Record(
        name, role, method, network, image_size=(32, 32), format=form[0], precision=form[1],
        metrics={"accuracy": statistics.mean(scores), "f1": statistics.mean(scores) - 0.002}, macs=int(1e6 * mega),
        flops=int(2e6 * mega), params=int(1e3 * kilo), activations=int(2e4 * mega**0.5),
        size_bytes=int(1e3 * kilo * a_parameter), latencies=latencies,
        export={"path": "model.onnx", "parity": parity} if form[0] else None,
        run={
            "seed": 0, "steps": 400, "wall_s": 240.0, "budget_s": 240.0, "scores": {"accuracy": scores},
            "command": f"compress distill --recipe mosaic --student {network} --out runs/{network}",
        },
    )  # fmt: skip


def create_latency(runtime: str, precision: str, ms: float, threads: int, mj: float | None) -> Latency:
    return Latency(
        latency_ms_p50=ms, latency_ms_p90=1.06 * ms, latency_ms_p99=1.21 * ms, latency_ms_mean=1.02 * ms,
        latency_ms_std=0.04 * ms, throughput_ips=1e3 / ms, batch_size=1, runs=3000, threads=threads, runtime=runtime,
        device="cpu", precision=precision, load_before=0.1, load_after=1.0, machine=CPU, first_call_ms=4 * ms,
        load_ms=30 + ms, peak_bytes=90_000_000, energy_mj=mj,
    )  # fmt: skip


def create_page_data(
    records: list[Record], title: str = "Compression report", limits: Limits | None = None
) -> dict[str, Any]:
    """Return the page data of these records."""
    comparison = Comparison(records)
    limits = limits or Limits()
    return build_page_data(comparison, records, recommend(comparison, limits), limits, title=title)


def find_browser() -> str | None:
    """Return the path of Chromium: the environment variable CHROMIUM, or the first installed one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def measure_page(page: Path, rounds: int, chromium: str) -> dict[str, Any]:
    """Return median and maximum of the times until table and chart are visible, and of the scripts' memory."""
    from playwright.sync_api import sync_playwright

    samples: dict[str, list[float]] = {"table_s": [], "chart_s": [], "heap_mb": []}
    with sync_playwright() as play:
        for _ in range(rounds):
            browser = play.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_function("performance.getEntriesByName('compress-chart').length")
            for key, mark in (("table_s", "compress-table"), ("chart_s", "compress-chart")):
                samples[key].append(tab.evaluate(f"performance.getEntriesByName('{mark}')[0].startTime") / 1e3)
            samples["heap_mb"].append(tab.evaluate("performance.memory.usedJSHeapSize") / 1e6)
            browser.close()
    return {
        f"{key}_{kind}": round(of(values), 2)
        for key, values in samples.items()
        for kind, of in (("median", statistics.median), ("max", max))
    }


def render_page_results(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    return (
        f"# The report's page with {result['models']:,} models\n\n"
        f"{result['file_mb']} MB, including {result['library_mb']} MB of the chart library; most of the rest is data. "
        f"Opened from disk by Chromium {result['rounds']} times, median (largest), seconds from the start of the "
        f"navigation; {result['machine'].get('cpu', '')}. Made by `python -m benchmarks.report_size --write`.\n\n"
        "| visible | s |\n| --- | --- |\n"
        f"| first page of the table | {result['table_s_median']} ({result['table_s_max']}) |\n"
        f"| first chart, one point per model | {result['chart_s_median']} ({result['chart_s_max']}) |\n\n"
        f"The scripts then use {result['heap_mb_median']} MB.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="write the page to this file and keep it")
    parser.add_argument("--write", action="store_true", help="write results/report_size.json and .md")
    options = parser.parse_args()
    chromium = find_browser()
    if chromium is None:
        sys.exit("Chromium: not found; install it (Debian: apt-get install chromium) or set CHROMIUM to its path")
    with TemporaryDirectory() as folder:
        page = options.keep or Path(folder) / "report.html"
        page.write_text(render_page(create_page_data(create_records(options.models))), encoding="utf-8")
        library = Path(__file__).parents[1] / "profiles" / "report" / "page" / "vendor" / "plotly-basic.min.js"
        result = {
            "benchmark": "report_size", "models": options.models, "rounds": options.rounds,
            "file_mb": round(page.stat().st_size / 1e6, 2), "library_mb": round(library.stat().st_size / 1e6, 2),
        }  # fmt: skip
        result |= measure_page(page.resolve(), options.rounds, chromium) | {"machine": machine.describe_machine()}
    print(render_page_results(result))
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "report_size.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "report_size.md").write_text(render_page_results(result))


if __name__ == "__main__":
    main()
