"""The report's tables as text, for HTML and Markdown. Empty columns are omitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import stdev
from typing import Any, TypeVar

from profiles.formatting import (
    capitalize_name,
    finite_number,
    format_count,
    format_duration,
    format_factor,
    format_percent,
    format_scientific,
    format_significant,
    positive_number,
)
from profiles.latency.benchmark import Latency
from profiles.records import CLASS_SCORES, Record, to_hashable
from profiles.report.comparison import METRIC_NAMES, Comparison, LatencySetting, setting_of

MISSING = "–"
MAX_ROWS = 200  #: rows of a table
MAX_METRICS = 20  #: columns of metrics besides the main one
MAX_MODELS = 50  #: columns of the table of classes
MAX_MACHINES = 50  #: tables of machines, and of versions


@dataclass(frozen=True)
class Table:
    """A caption, a header, and rows of text; the first cell of a row is its name."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    strong: int | None = None  #: the row to highlight

    @property
    def numeric(self) -> list[bool]:
        """Which columns are right-aligned."""
        columns = list(zip(*self.rows, strict=True))[1:] if self.rows else [()] * (len(self.header) - 1)
        return [False, *(all(text[:1].isdigit() or text == MISSING for text in column) for column in columns)]


Thing = TypeVar("Thing")
Columns = dict[str, Callable[[Record], str]]


def build_table(
    caption: str, columns: dict[str, Callable[[Thing], str]], records: Sequence[Thing], best: Thing | None = None
) -> Table | None:
    """Build one row per record, or per other item that the columns read; None if only the name has content.

    Of many records the first are shown, with their total number.
    """
    names = list(columns)
    if len(records) > MAX_ROWS:
        caption = f"{caption} The first {MAX_ROWS} of {len(records):,}."
        records = records[:MAX_ROWS]
    cells = [[columns[name](record) for name in names] for record in records]
    kept = [i for i in range(len(names)) if i == 0 or any(row[i] for row in cells)]
    if len(kept) < 2:
        return None
    strong = next((i for i, record in enumerate(records) if record is best), None) if len(records) > 1 else None
    return Table(caption, [names[i] for i in kept], [[row[i] or MISSING for i in kept] for row in cells], strong)


def build_tables(comparison: Comparison) -> list[Table]:
    """Build the tables of results, latencies, exports and training runs that are not empty."""
    all_tables = [
        results_table(comparison),
        latency_table(comparison),
        export_table(comparison),
        runs_table(comparison),
    ]
    return [table for table in all_tables if table is not None and table.rows]


def results_table(comparison: Comparison) -> Table | None:
    """Build the table of scores and costs: one row per model."""
    names = [name for record in comparison.records for name in record.metrics if not name.startswith(CLASS_SCORES)]
    other = [name for name in names if name != comparison.metric]
    repeats_name = all(record.architecture in record.name for record in comparison.records)
    several = len({(record.format, record.precision) for record in comparison.records}) > 1
    columns: Columns = {
        "Model": lambda r: r.name,
        "Role": lambda r: r.role,
        "Method": lambda r: r.method,
        "Network": lambda r: "" if repeats_name else r.architecture,
        "Format": lambda r: r.format,
        "Precision": lambda r: r.precision if several else "",
        capitalize_name(comparison.metric_name): lambda r: format_score(comparison, r),
        "Of teacher's": lambda r: format_percent(comparison.retained_accuracy(r), 1),
    }
    others = list(dict.fromkeys(other))
    for name in others[:MAX_METRICS]:
        columns[capitalize_name(METRIC_NAMES.get(name, name))] = lambda r, name=name: format_metric(r.metrics.get(name))
    columns |= {
        "Parameters": lambda r: format_count(r.params),
        "GMAC": lambda r: format_significant(None if r.macs is None else r.macs / 1e9),
        "GFLOP": lambda r: format_significant(comparison.cost_of(r, "flops")),
        "Size": lambda r: f"{format_count(r.size_bytes)}B" if r.size_bytes is not None else "",
        "p50 (ms)": lambda r: format_significant(comparison.median_latency(r)),
        "Speed-up": lambda r: format_factor(comparison.speedup(r)),
    }
    at = "" if comparison.setting is None else f" p50: median latency with {comparison.setting}."
    rest = f" Without {len(others) - MAX_METRICS} metrics." if len(others) > MAX_METRICS else ""
    return build_table(
        f"Results, for one image.{at} 1 MAC = 2 FLOP.{rest}", columns, comparison.records, comparison.best_model()
    )


def format_score(comparison: Comparison, record: Record) -> str:
    """The main metric; over several seeds with its spread."""
    scores = comparison.seed_scores(record)
    around = f" ± {100 * stdev(scores):.2f} ({len(scores)} seeds)" if len(scores) > 1 else ""
    return format_percent(comparison.score(record)) + around


def format_metric(value: Any) -> str:
    """Format a metric: a share as a percentage, any other number unchanged."""
    known = finite_number(value)
    return format_percent(known) if known is not None and 0 <= known <= 1 else format_significant(known)


def class_table(comparison: Comparison) -> Table | None:
    """Build the table of IoU per class: one row per class, one column per model."""
    models = [r for r in comparison.records if comparison.class_ious(r)]
    if not models:
        return None
    caption = "Intersection over union of each class."
    if len(models) > MAX_MODELS or len(comparison.class_names) > MAX_ROWS:
        caption += f" The first {MAX_ROWS} classes and {MAX_MODELS} models."
    models = models[:MAX_MODELS]
    rows = [
        [name, *(format_percent(comparison.class_iou(r, name), 1) or MISSING for r in models)]
        for name in comparison.class_names[:MAX_ROWS]
    ]
    return Table(caption, ["Class", *(r.name for r in models)], rows)


def latency_table(comparison: Comparison) -> Table | None:
    """Build one row per record and setting, grouped by setting."""
    places = {at: i for i, at in enumerate(comparison.settings)}
    measured = [
        (setting_of(one), record, one) for record in comparison.records
        for one in {setting_of(latency): latency for latency in reversed(record.latencies)}.values()
    ]  # fmt: skip
    rows = sorted(measured, key=lambda row: places[row[0]])
    columns: dict[str, Callable[[tuple[LatencySetting, Record, Latency]], str]] = {
        "Model": lambda row: row[1].label,
        "Setting": lambda row: comparison.setting_label(row[0]),
        "p50 (ms)": lambda row: format_significant(positive_number(row[2].latency_ms_p50)),
        "p90 (ms)": lambda row: format_significant(positive_number(row[2].latency_ms_p90)),
        "p99 (ms)": lambda row: format_significant(positive_number(row[2].latency_ms_p99)),
        "First (ms)": lambda row: format_significant(positive_number(row[2].first_call_ms)),
        "Load (ms)": lambda row: format_significant(positive_number(row[2].load_ms)),
        "Images/s": lambda row: format_significant(positive_number(row[2].throughput_ips)),
        "mJ/image": lambda row: format_significant(positive_number(row[2].energy_mj)),
        "Memory": lambda row: f"{format_count(row[2].peak_bytes)}B" if row[2].peak_bytes else "",
        "LoadGen": lambda row: {True: "valid", False: f"INVALID: {row[2].invalid_reason}", None: ""}[row[2].valid],
        "Speed-up": lambda row: format_factor(comparison.speedup(row[1], row[0])),
    }
    return build_table("Latency of one batch, and throughput.", columns, rows)


def export_table(comparison: Comparison) -> Table | None:
    """Build the table of exported files and their difference from PyTorch."""

    def parity(record: Record, key: str) -> float | None:
        return finite_number(record.parity.get(key))

    def fact(key: str) -> Callable[[Record], str]:
        return lambda record: str((record.export or {}).get(key) or "")

    columns: Columns = {
        "Model": lambda r: r.label,
        "File": lambda r: PurePath(fact("path")(r)).name,
        "Opset": fact("opset"),
        "SHA-256": lambda r: fact("sha256")(r)[:12],
        "Images compared": lambda r: format_count(parity(r, "images")),
        "Same top-1 class": lambda r: format_percent(parity(r, "top1_agreement")),
        "mIoU of both": lambda r: format_percent(parity(r, "miou")),
        "Largest difference": lambda r: format_scientific(parity(r, "max_abs")),
        "Relative": lambda r: format_scientific(parity(r, "max_rel")),
    }
    exported = [record for record in comparison.records if record.export]
    return build_table("Exported files against PyTorch: logits on the same images.", columns, exported)


def runs_table(comparison: Comparison) -> Table | None:
    """Build the table of training runs."""
    described = [
        record for record in comparison.records if any(key in record.run for key in ("steps", "wall_s", "seed"))
    ]
    networks = {(record.name, record.method) for record in described if not record.format}
    # the files of a network have the same run
    shown = [record for record in described if not record.format or (record.name, record.method) not in networks]

    def fact(key: str) -> Callable[[Record], str]:
        return lambda record: "" if record.run.get(key) is None else str(record.run[key])

    columns: Columns = {
        "Model": lambda r: r.name,
        "Method": lambda r: r.method,
        "Images": fact("ood"),
        "Steps": fact("steps"),
        "Wall clock": lambda r: format_duration(r.run.get("wall_s")),
        "Budget": lambda r: format_duration(r.run.get("budget_s")),
        "Images/s": lambda r: format_significant(finite_number(r.run.get("images_per_s"))),
        "Waiting for data": lambda r: format_percent(finite_number(r.run.get("data_wait_share")), 1),
        "Peak memory": lambda r: (
            f"{format_count(finite_number(r.run.get('peak_bytes')))}B" if r.run.get("peak_bytes") else ""
        ),
        "Seed": fact("seed"),
    }
    return build_table("Training runs.", columns, shown)


def environment_tables(records: Sequence[Record]) -> list[Table]:
    """Build the tables of machines and versions, without duplicates."""
    tables = []
    machines = [{key: value for key, value in record.machine.items() if key != "versions"} for record in records]
    for title, blocks in (("Machine", machines), ("Versions", [record.versions for record in records])):
        seen = list({to_hashable(block): block for block in blocks if block}.values())[:MAX_MACHINES]
        for i, block in enumerate(seen):
            caption = title if len(seen) == 1 else f"{title} {i + 1}"
            tables.append(Table(caption, ["", "Value"], [environment_row(key, value) for key, value in block.items()]))
    return tables


def environment_row(key: str, value: Any) -> list[str]:
    """Format one fact: `memory_bytes` in bytes becomes memory in gigabytes."""
    known = finite_number(value)
    if key.endswith("_bytes") and known is not None:
        return [key.removesuffix("_bytes").replace("_", " "), f"{format_count(known)}B"]
    return [str(key), format_value(value)]


def format_value(value: Any) -> str:
    """Format a JSON value as text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value)) or MISSING
    if isinstance(value, dict):
        return ", ".join(": ".join(environment_row(key, item)) for key, item in value.items()) or MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if value is None else str(value)
