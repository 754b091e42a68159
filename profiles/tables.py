"""The report's tables as text: the same cells for HTML and Markdown. A column that is empty for all is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import stdev
from typing import Any, TypeVar

from profiles.comparison import CLASS_IOU, METRIC_NAMES, Comparison, Setting, heading, number, positive
from profiles.latency import Latency
from profiles.record import Record
from profiles.wording import count, seconds, share, three, times

MISSING = "–"
MOST_ROWS = 200  #: of a table


@dataclass(frozen=True)
class Table:
    """A caption, a header, and rows of text; the first cell of a row names it."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    strong: int | None = None  #: the row to point out

    @property
    def numeric(self) -> list[bool]:
        """Which columns are set to the right."""
        columns = list(zip(*self.rows, strict=True))[1:] if self.rows else [()] * (len(self.header) - 1)
        return [False, *(all(text[:1].isdigit() or text == MISSING for text in column) for column in columns)]


Thing = TypeVar("Thing")
Columns = dict[str, Callable[[Record], str]]


def tabulate(
    caption: str, columns: dict[str, Callable[[Thing], str]], records: Sequence[Thing], best: Thing | None = None
) -> Table | None:
    """One row a record, or whatever the columns read; None where no column but the name has anything.

    Of very many the first are shown, and how many there are.
    """
    names = list(columns)
    if len(records) > MOST_ROWS:
        caption = f"{caption} The first {MOST_ROWS} of {len(records):,}."
        records = records[:MOST_ROWS]
    cells = [[columns[name](record) for name in names] for record in records]
    kept = [i for i in range(len(names)) if i == 0 or any(row[i] for row in cells)]
    if len(kept) < 2:
        return None
    strong = next((i for i, record in enumerate(records) if record is best), None) if len(records) > 1 else None
    return Table(caption, [names[i] for i in kept], [[row[i] or MISSING for i in kept] for row in cells], strong)


def all_tables(comparison: Comparison) -> list[Table]:
    """Results, latencies, exports, and how the models were made: those that have something to show."""
    made = [results(comparison), latencies(comparison), exports(comparison), runs(comparison)]
    return [table for table in made if table is not None and table.rows]


def results(comparison: Comparison) -> Table | None:
    names = [name for record in comparison.records for name in record.metrics if not name.startswith(CLASS_IOU)]
    other = [name for name in names if name != comparison.metric]
    told = all(record.architecture in record.name for record in comparison.records)  # then a column would repeat it
    several = len({(record.format, record.precision) for record in comparison.records}) > 1
    columns: Columns = {
        "Model": lambda r: r.name,
        "Role": lambda r: r.role,
        "Method": lambda r: r.method,
        "Network": lambda r: "" if told else r.architecture,
        "Format": lambda r: r.format,
        "Precision": lambda r: r.precision if several else "",
        heading(comparison.metric_name): lambda r: scored(comparison, r),
        "Of teacher's": lambda r: share(comparison.retained(r), 1),
    }
    for name in dict.fromkeys(other):
        columns[heading(METRIC_NAMES.get(name, name))] = lambda r, name=name: metric_text(r.metrics.get(name))
    columns |= {
        "Parameters": lambda r: count(r.params),
        "GMAC": lambda r: three(None if r.macs is None else r.macs / 1e9),
        "GFLOP": lambda r: three(comparison.cost(r, "flops")),
        "Size": lambda r: f"{count(r.size_bytes)}B" if r.size_bytes is not None else "",
        "p50 (ms)": lambda r: three(comparison.latency(r)),
        "Speed-up": lambda r: times(comparison.speedup(r)),
    }
    at = "" if comparison.setting is None else f" p50: median latency with {comparison.setting}."
    return tabulate(f"Results, for one image.{at} 1 MAC = 2 FLOP.", columns, comparison.records, comparison.best())


def scored(comparison: Comparison, record: Record) -> str:
    """The main metric; over several seeds with its spread."""
    scores = (record.run.get("scores") or {}).get(comparison.metric) or []
    around = f" ± {100 * stdev(scores):.2f} ({len(scores)} seeds)" if len(scores) > 1 else ""
    return share(comparison.score(record)) + around


def metric_text(value: Any) -> str:
    """A further metric: a percentage where it is a share, else the number itself."""
    known = number(value)
    return share(known) if known is not None and 0 <= known <= 1 else three(known)


def classes(comparison: Comparison) -> Table | None:
    """The IoU of each class: one row a class, one column a model."""
    models = [
        r for r in comparison.records if any(comparison.class_iou(r, name) is not None for name in comparison.classes)
    ]
    rows = [
        [name, *(share(comparison.class_iou(r, name), 1) or MISSING for r in models)] for name in comparison.classes
    ]
    return Table("Intersection over union of each class.", ["Class", *(r.name for r in models)], rows) if rows else None


def latencies(comparison: Comparison) -> Table | None:
    """One row a record and setting, the settings together so that comparable numbers stand under each other."""
    rows = [(at, record, one) for at in comparison.settings for record, one in at_setting(comparison, at)]
    columns: dict[str, Callable[[tuple[Setting, Record, Latency]], str]] = {
        "Model": lambda row: form(row[1]),
        "Setting": lambda row: comparison.label(row[0]),
        "p50 (ms)": lambda row: three(positive(row[2].latency_ms_p50)),
        "p90 (ms)": lambda row: three(positive(row[2].latency_ms_p90)),
        "p99 (ms)": lambda row: three(positive(row[2].latency_ms_p99)),
        "First (ms)": lambda row: three(positive(row[2].first_ms)),
        "Load (ms)": lambda row: three(positive(row[2].load_ms)),
        "Images/s": lambda row: three(positive(row[2].throughput_ips)),
        "mJ/image": lambda row: three(positive(row[2].energy_mj)),
        "Memory": lambda row: f"{count(row[2].peak_bytes)}B" if row[2].peak_bytes else "",
        "LoadGen": lambda row: {True: "valid", False: f"INVALID: {row[2].invalid_because}", None: ""}[row[2].valid],
        "Speed-up": lambda row: times(comparison.speedup(row[1], row[0])),
    }
    return tabulate("Latency of one batch, and throughput.", columns, rows)


def at_setting(comparison: Comparison, at: Setting) -> list[tuple[Record, Latency]]:
    found = [(record, comparison.measured(record, at)) for record in comparison.records]
    return [(record, one) for record, one in found if one is not None]


def form(record: Record) -> str:
    """A record's name, with format and precision where it is not PyTorch's network."""
    return " ".join([record.name, *([record.format, record.precision] if record.format else [])])


def exports(comparison: Comparison) -> Table | None:
    """The exported files and how far each is from PyTorch."""

    def parity(record: Record, key: str) -> float | None:
        return number(((record.export or {}).get("parity") or {}).get(key))

    def told(key: str) -> Callable[[Record], str]:
        return lambda record: str((record.export or {}).get(key) or "")

    columns: Columns = {
        "Model": form,
        "File": lambda r: PurePath(told("path")(r)).name,
        "Opset": told("opset"),
        "SHA-256": lambda r: told("sha256")(r)[:12],
        "Images compared": lambda r: count(parity(r, "images")),
        "Same top-1 answer": lambda r: share(parity(r, "top1_agreement")),
        "mIoU of both": lambda r: share(parity(r, "miou")),
        "Largest difference": lambda r: scientific(parity(r, "max_abs")),
        "Relative": lambda r: scientific(parity(r, "max_rel")),
    }
    made = [record for record in comparison.records if record.export]
    return tabulate("Exported files against PyTorch: logits on the same images.", columns, made)


def scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def runs(comparison: Comparison) -> Table | None:
    told_of = [record for record in comparison.records if any(key in record.run for key in ("steps", "wall_s", "seed"))]
    networks = {(record.name, record.method) for record in told_of if not record.format}
    # the files of a network were made by the same run
    made = [record for record in told_of if not record.format or (record.name, record.method) not in networks]

    def told(key: str) -> Callable[[Record], str]:
        return lambda record: "" if record.run.get(key) is None else str(record.run[key])

    columns: Columns = {
        "Model": lambda r: r.name,
        "Method": lambda r: r.method,
        "Images": told("ood"),
        "Steps": told("steps"),
        "Wall clock": lambda r: seconds(r.run.get("wall_s")),
        "Budget": lambda r: seconds(r.run.get("budget_s")),
        "Images/s": lambda r: three(number(r.run.get("images_per_s"))),
        "Waiting for data": lambda r: share(number(r.run.get("data_wait_share")), 1),
        "Peak memory": lambda r: f"{count(number(r.run.get('peak_bytes')))}B" if r.run.get("peak_bytes") else "",
        "Seed": told("seed"),
    }
    return tabulate("How the models were made.", columns, made)


def environment(records: Sequence[Record]) -> list[Table]:
    """The machines and versions behind the numbers, each once."""
    tables = []
    machines = [{key: value for key, value in record.machine.items() if key != "versions"} for record in records]
    for title, blocks in (("Machine", machines), ("Versions", [record.versions for record in records])):
        seen = []
        for block in blocks:
            if block and block not in seen:
                seen.append(block)
        for i, block in enumerate(seen):
            caption = title if len(seen) == 1 else f"{title} {i + 1}"
            tables.append(Table(caption, ["", "Value"], [described(key, value) for key, value in block.items()]))
    return tables


def described(key: str, value: Any) -> list[str]:
    """A line of the environment: `memory_bytes` in bytes becomes memory in gigabytes."""
    known = number(value)
    if key.endswith("_bytes") and known is not None:
        return [key.removesuffix("_bytes").replace("_", " "), f"{count(known)}B"]
    return [str(key), in_words(value)]


def in_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or MISSING
    if isinstance(value, dict):
        return ", ".join(": ".join(described(key, item)) for key, item in value.items()) or MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if value is None else str(value)
