"""The page's tables as text, for readers and printers without JavaScript: the same cells as from `table.js`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiles.formatting import (
    capitalize_name,
    finite_number,
    format_count,
    format_percent,
    format_scientific,
    format_significant,
    positive_number,
)
from profiles.report.comparison import RUNTIME_NAMES, pareto_indices
from profiles.report.tables import Table

INITIAL_ROWS = 50  #: rows shown without JavaScript, and rows per page
MAX_VERIFIED = 200  #: files in the table of verification
FORMATS = {
    "": "PyTorch", "onnx": "ONNX", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX",
}  # fmt: skip
COSTS = ("latency", "flops", "size", "energy")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of models."""

    key: str  #: its name in table.js
    label: str
    text: Callable[[Row, Row], str]  #: of a row and its latency at the setting
    numeric: bool = True
    minor: bool = False  #: omitted in print


def visible_columns(data: Mapping[str, Any]) -> list[Column]:
    """Return the columns that are not empty, at any setting."""
    metric = capitalize_name(data["metric_name"])
    every = [
        Column("format", "Format", lambda r, t: format_name(r), numeric=False),
        Column("precision", "Precision", lambda r, t: r["precision"] or "", numeric=False),
        Column("score", metric, format_row_score),
        Column("retained", "Of teacher's", lambda r, t: format_percent(r["retained"], 1)),
        Column("p50", "p50 (ms)", lambda r, t: format_significant(positive_number(t.get("p50")))),
        Column("p99", "p99 (ms)", lambda r, t: format_significant(positive_number(t.get("p99"))), minor=True),
        Column("energy", "mJ/image", lambda r, t: format_significant(positive_number(t.get("energy_mj")))),
        Column("flops", "GFLOP", lambda r, t: format_significant(row_cost(r, t, "flops"))),
        Column("params", "Parameters", lambda r, t: format_count(r["params"]), minor=True),
        Column(
            "size", "Size", lambda r, t: f"{format_count(r['size_bytes'])}B" if positive_number(r["size_bytes"]) else ""
        ),
        Column("method", "Method", lambda r, t: r["method"] or "", numeric=False, minor=True),
        Column("network", "Network", lambda r, t: r["network"] or "", numeric=False, minor=True),
        Column("agreement", "Same predictions", format_agreement, minor=True),
        Column("seeds", "Seeds", lambda r, t: str(r["seeds"]), minor=True),
    ]
    return [one for one in every if any(one.text(row, t) for row in data["rows"] for t in [*row["times"].values(), {}])]


def format_row_score(row: Row, times: Row) -> str:
    """`80.50 % ± 0.40`: mean over the seeds and sample standard deviation."""
    spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.2f}"
    return format_percent(row["score"]) + (spread if row["score"] is not None else "")


def format_agreement(row: Row, times: Row) -> str:
    return format_percent(finite_number((row["verified"] or {}).get("top1_agreement")))


def format_name(row: Row) -> str:
    return FORMATS.get(row["format"] or "", str(row["format"]))


def row_cost(row: Row, times: Row, name: str) -> float | None:
    """Return a cost of a row: median ms, GFLOP, MB, or mJ per image; None if unknown or not above zero."""
    if name == "latency":
        return positive_number(times.get("p50"))
    if name == "energy":
        return positive_number(times.get("energy_mj"))
    if name == "size":
        value = positive_number(row["size_bytes"])
        return None if value is None else value / 1e6
    macs = positive_number(row["macs"])
    value = positive_number(row["flops"]) or (None if macs is None else 2 * macs)
    return None if value is None else value / 1e9


def row_latency(row: Row, setting: int | None) -> Row:
    return row["times"].get(str(setting)) or {}


def pareto_fronts(rows: Sequence[Row], setting: int | None) -> dict[str, list[int]]:
    """Return for each cost the Pareto-optimal rows by score, cheapest first; only costs that some row has."""
    fronts = {}
    for name in COSTS:
        priced = [(row_cost(row, row_latency(row, setting), name), row["score"], i) for i, row in enumerate(rows)]
        known = [(c, s, i) for c, s, i in priced if c is not None and s is not None]
        if known:
            fronts[name] = [known[j][2] for j in pareto_indices([(c, s) for c, s, _ in known])]
    return fronts


def initial_rows(data: Mapping[str, Any], kept: Sequence[Column]) -> list[dict[str, Any]]:
    """Build the first rows of the table: name, marks and cells."""
    rows, setting = data["rows"], data["setting"]
    optimal = {i for front in pareto_fronts(rows, setting).values() for i in front}
    return [
        {
            "name": row["name"],
            "marks": [
                mark for mark, holds in (
                    ("deploy", i == data.get("pick")), ("teacher", row["role"] == "teacher"), ("Pareto", i in optimal),
                ) if holds
            ],
            "cells": [one.text(row, row_latency(row, setting)) for one in kept],
        }
        for i, row in enumerate(rows[:INITIAL_ROWS])
    ]  # fmt: skip


def verification_table(data: Mapping[str, Any]) -> Table | None:
    """Compare each exported file with PyTorch, best scores first; None if nothing was exported."""
    exported = [row for row in data["rows"] if row["verified"]]
    header = ["Model", "Format", "Precision", "Run in", "Images", "Same predictions", "mIoU of both", "Max difference",
              "Relative", "Mean", "Cosine", "Not verified because"]  # fmt: skip
    cells = [verification_row(row) for row in exported[:MAX_VERIFIED]]
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in cells)]
    if len(kept) < 2:
        return None
    rest = f" The best {MAX_VERIFIED} of {len(exported):,}." if len(exported) > MAX_VERIFIED else ""
    caption = f"Each exported file against the network in PyTorch, on the same images.{rest}"
    return Table(caption, [header[i] for i in kept], [[row[i] or "–" for i in kept] for row in cells])


def verification_row(row: Row) -> list[str]:
    parity = row["verified"]
    known = {key: finite_number(parity.get(key)) for key in parity}
    cosine, runtime = known.get("cosine"), str(parity.get("in") or "")
    runtime = RUNTIME_NAMES.get(runtime, runtime)
    return [
        row["name"], format_name(row), row["precision"] or "", "" if parity.get("not_run") else runtime,
        format_count(known.get("images")), *(format_percent(known.get(key)) for key in ("top1_agreement", "miou")),
        *(format_scientific(known.get(key)) for key in ("max_abs", "max_rel", "mean_abs")),
        "" if cosine is None else f"{cosine:.6f}", str(parity.get("not_run") or ""),
    ]  # fmt: skip
