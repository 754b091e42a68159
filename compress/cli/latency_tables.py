"""Text form of the results of `compress bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from compress.cli.tables import format_table

if TYPE_CHECKING:
    from compress.benchmarking import BenchmarkResult, BenchmarkRow

    Column = Callable[[BenchmarkRow], str]

#: LoadGen measures latencies of Offline from the start of the scenario, so they are not compared
WITHOUT_LATENCY = "Offline"


def benchmark(result: BenchmarkResult) -> str:
    """Return the tables of times, start-up, ratios and verdicts; empty columns are omitted."""
    rows = result.results
    parts = [time_table(rows), startup_table(rows), ratio_table(result), "\n".join(remarks(rows))]
    return "\n\n".join(part for part in parts if part)


def time_table(rows: Sequence[BenchmarkRow]) -> str:
    columns: dict[str, Column] = {
        "runtime": lambda row: row.runtime,
        "device": lambda row: row.device,
        "precision": lambda row: row.precision,
        "threads": lambda row: str(row.threads or "-"),
        "batch": lambda row: str(row.batch_size),
        "scenario": lambda row: row.scenario,
        "p50 ms": lambda row: format_latency(row.latency_ms_p50, row),
        "p90 ms": lambda row: format_latency(row.latency_ms_p90, row),
        "p99 ms": lambda row: format_latency(row.latency_ms_p99, row),
        "images/s": lambda row: f"{row.throughput_ips:.1f}",
        "runs": lambda row: str(row.runs),
    }
    optional: dict[str, Column] = {
        "mJ/image": lambda row: format_number(row.energy_mj, 2),
        "copy in ms": lambda row: format_number(row.copy_in_ms),
        "compute ms": lambda row: format_number(row.compute_ms),
        "copy out ms": lambda row: format_number(row.copy_out_ms),
        "target/s": lambda row: format_number(row.target_qps, 1),
        "valid": lambda row: {True: "yes", False: "NO", None: "-"}[row.valid],
        "busy": lambda row: "yes" if row.load_warning else "-",
    }
    return build_table(rows, columns, optional)


def startup_table(rows: Sequence[BenchmarkRow]) -> str:
    """Return loading, first call, memory and warm-up."""
    optional: dict[str, Column] = {
        "load ms": lambda row: format_number(row.load_ms, 1),
        "first ms": lambda row: format_number(row.first_call_ms, 1),
        "peak MB": lambda row: format_number(None if row.peak_bytes is None else row.peak_bytes / 1e6, 1),
        "warm-up calls": lambda row: "-" if row.warmup_runs is None else str(row.warmup_runs),
        "stable": lambda row: {True: "yes", False: "NO", None: "-"}[row.warmup_stable],
    }
    columns: dict[str, Column] = {"runtime": lambda row: row.runtime, "batch": lambda row: str(row.batch_size)}
    return build_table([row for row in rows if row.scenario == "quick"], columns, optional, only_optional=True)


def ratio_table(result: BenchmarkResult) -> str:
    """Return the latency of each row relative to the first row of its batch size."""
    rows, first = result.results, dict[int, int]()
    for index, row in enumerate(rows):
        if row.scenario == "quick":
            first.setdefault(row.batch_size, index)
    lines = []
    for ratio in result.ratios:
        ours = rows[ratio.result]
        if ratio.against == first[ours.batch_size]:
            spread = f"{ratio.low:.3f} to {ratio.high:.3f}"
            base = title(rows[ratio.against])
            lines.append([title(ours), str(ours.batch_size), f"{ratio.p50:.3f}", base, spread])
    return format_table(lines, ["interleaved", "batch", "x latency of", "", "range over rounds"]) if lines else ""


def remarks(rows: Sequence[BenchmarkRow]) -> list[str]:
    """Return LoadGen's reasons, its limits, and how each row compares with the latency budget."""
    lines = [
        f"{title(row)}, batch {row.batch_size}: {row.scenario} is not valid: {row.invalid_reason}."
        for row in rows
        if row.valid is False
    ]
    bound = next((row.latency_bound_ms for row in rows if row.latency_bound_ms is not None), None)
    lines += [] if bound is None else [f"Server requires 99 % of the outputs within {bound:g} ms."]
    if any(row.submission_length is False for row in rows):
        lines.append("LoadGen's runs are shorter than MLPerf requires (--mlperf runs them at submission length).")
    return [*lines, *(row.budget_summary for row in rows if row.within_budget is not None)]


def build_table(
    rows: Sequence[BenchmarkRow], columns: dict[str, Column], optional: dict[str, Column], *,
    only_optional: bool = False,
) -> str:  # fmt: skip
    """Return a table of `columns` and of the `optional` ones that have a value, or an empty string."""
    known = {name: show for name, show in optional.items() if any(show(row) != "-" for row in rows)}
    if not rows or (only_optional and not known):
        return ""
    shown = columns | known
    return format_table([[row.name, *(show(row) for show in shown.values())] for row in rows], ["model", *shown])


def format_latency(value: float, row: BenchmarkRow) -> str:
    return "-" if row.scenario == WITHOUT_LATENCY else f"{value:.3f}"


def format_number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def title(row: BenchmarkRow) -> str:
    return f"{row.name} in {row.runtime}"
