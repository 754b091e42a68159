"""The page's tables as text, for readers and printers without JavaScript: the same cells as `table.js` makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiles.comparison import RUNTIME_NAMES, heading, number, pareto, positive
from profiles.tables import Table, scientific
from profiles.wording import count, share, three

FIRST = 50  #: rows of the table that are there without JavaScript, and rows of one of its pages
MOST_VERIFIED = 200  #: artefacts in the table of verification
FORMATS = {
    "": "PyTorch", "onnx": "ONNX", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX",
}  # fmt: skip
COSTS = ("latency", "flops", "size", "energy")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of all rows."""

    key: str  #: the name that table.js knows it by
    label: str
    text: Callable[[Row, Row], str]  #: of a row and its times at the place
    numeric: bool = True
    minor: bool = False  #: left out in print


def columns(data: Mapping[str, Any]) -> list[Column]:
    """Those that some row has something for, at whichever place."""
    metric = heading(data["metric_name"])
    every = [
        Column("format", "Format", lambda r, t: format_name(r), numeric=False),
        Column("precision", "Precision", lambda r, t: r["precision"] or "", numeric=False),
        Column("score", metric, score),
        Column("retained", "Of teacher's", lambda r, t: share(r["retained"], 1)),
        Column("p50", "p50 (ms)", lambda r, t: three(positive(t.get("p50")))),
        Column("p99", "p99 (ms)", lambda r, t: three(positive(t.get("p99"))), minor=True),
        Column("energy", "mJ/image", lambda r, t: three(positive(t.get("energy_mj")))),
        Column("flops", "GFLOP", lambda r, t: three(cost(r, t, "flops"))),
        Column("params", "Parameters", lambda r, t: count(r["params"]), minor=True),
        Column("size", "Size", lambda r, t: f"{count(r['size_bytes'])}B" if positive(r["size_bytes"]) else ""),
        Column("method", "Method", lambda r, t: r["method"] or "", numeric=False, minor=True),
        Column("network", "Network", lambda r, t: r["network"] or "", numeric=False, minor=True),
        Column("agreement", "Same answers", agreement, minor=True),
        Column("seeds", "Seeds", lambda r, t: str(r["seeds"]), minor=True),
    ]
    return [one for one in every if any(one.text(row, t) for row in data["rows"] for t in [*row["times"].values(), {}])]


def score(row: Row, times: Row) -> str:
    """`80.50 % ± 0.40`: the mean over the seeds and their sample standard deviation."""
    spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.2f}"
    return share(row["score"]) + (spread if row["score"] is not None else "")


def agreement(row: Row, times: Row) -> str:
    return share(number((row["verified"] or {}).get("top1_agreement")))


def format_name(row: Row) -> str:
    return FORMATS.get(row["format"] or "", str(row["format"]))


def cost(row: Row, times: Row, name: str) -> float | None:
    """What a row costs: ms (median), GFLOP, MB, or mJ an image; None where it is not known, or not above zero."""
    if name == "latency":
        return positive(times.get("p50"))
    if name == "energy":
        return positive(times.get("energy_mj"))
    if name == "size":
        found = positive(row["size_bytes"])
        return None if found is None else found / 1e6
    macs = positive(row["macs"])
    found = positive(row["flops"]) or (None if macs is None else 2 * macs)
    return None if found is None else found / 1e9


def times_at(row: Row, place: int | None) -> Row:
    return row["times"].get(str(place)) or {}


def fronts(rows: Sequence[Row], place: int | None) -> dict[str, list[int]]:
    """Cost -> the rows that no other beats by score and that cost, cheapest first; only where some row has both."""
    found = {}
    for name in COSTS:
        priced = [(cost(row, times_at(row, place), name), row["score"], i) for i, row in enumerate(rows)]
        known = [(c, s, i) for c, s, i in priced if c is not None and s is not None]
        if known:
            found[name] = [known[j][2] for j in pareto([(c, s) for c, s, _ in known])]
    return found


def first_rows(data: Mapping[str, Any], kept: Sequence[Column]) -> list[dict[str, Any]]:
    """The first rows of the table: name, marks and cells."""
    rows, place = data["rows"], data["place"]
    optimal = {i for front in fronts(rows, place).values() for i in front}
    return [
        {
            "name": row["name"],
            "marks": [
                mark for mark, holds in (
                    ("ship", i == data.get("pick")), ("teacher", row["role"] == "teacher"), ("Pareto", i in optimal),
                ) if holds
            ],
            "cells": [one.text(row, times_at(row, place)) for one in kept],
        }
        for i, row in enumerate(rows[:FIRST])
    ]  # fmt: skip


def verification(data: Mapping[str, Any]) -> Table | None:
    """Each exported artefact against PyTorch, the best scores first; None where nothing was exported."""
    made = [row for row in data["rows"] if row["verified"]]
    header = ["Model", "Format", "Precision", "Run in", "Images", "Same answers", "mIoU of both", "Largest difference",
              "Relative", "Mean", "Cosine", "Not verified because"]  # fmt: skip
    cells = [verified(row) for row in made[:MOST_VERIFIED]]
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in cells)]
    if len(kept) < 2:
        return None
    rest = f" The best {MOST_VERIFIED} of {len(made):,}." if len(made) > MOST_VERIFIED else ""
    caption = f"Each exported file against the network in PyTorch, on the same images.{rest}"
    return Table(caption, [header[i] for i in kept], [[row[i] or "–" for i in kept] for row in cells])


def verified(row: Row) -> list[str]:
    found = row["verified"]
    known = {key: number(found.get(key)) for key in found}
    cosine, runtime = known.get("cosine"), str(found.get("in") or "")
    runtime = RUNTIME_NAMES.get(runtime, runtime)
    return [
        row["name"], format_name(row), row["precision"] or "", "" if found.get("not_run") else runtime,
        count(known.get("images")), share(known.get("top1_agreement")), share(known.get("miou")),
        scientific(known.get("max_abs")), scientific(known.get("max_rel")), scientific(known.get("mean_abs")),
        "" if cosine is None else f"{cosine:.6f}", str(found.get("not_run") or ""),
    ]  # fmt: skip
