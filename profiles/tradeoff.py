"""The trade-off as data: one row a model and form, best first; what the page draws, sorts and filters, and the CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from profiles.advice import TOLERANCE, Advice, Budget, superseded
from profiles.comparison import CLASS_IOU, Comparison, Setting, number
from profiles.latency import Latency
from profiles.plain import finite
from profiles.record import Record
from profiles.tables import form

#: curves that the page draws
MOST_CURVES = 30
#: models whose classes it shows
MOST_MODELS = 6
#: key of a row's time -> field of a latency
TIMES = {
    "p50": "latency_ms_p50", "p90": "latency_ms_p90", "p99": "latency_ms_p99", "mean": "latency_ms_mean",
    "std": "latency_ms_std", "ips": "throughput_ips", "first_ms": "first_ms", "load_ms": "load_ms",
    "peak_bytes": "peak_bytes", "copy_in_ms": "copy_in_ms", "compute_ms": "compute_ms", "copy_out_ms": "copy_out_ms",
    "energy_mj": "energy_mj", "busy": "busy", "valid": "valid", "runs": "runs",
}  # fmt: skip
#: facts of a run that a row tells
RUN = ("seed", "steps", "wall_s", "budget_s", "ood", "batch_size", "command")


def ranked(comparison: Comparison) -> list[Record]:
    """The best score first; what has none last."""
    return sorted(comparison.records, key=lambda record: -(comparison.score(record) or -1.0))


def page_data(
    comparison: Comparison, runs: Sequence[Record], advice: Advice, budget: Budget, *, title: str
) -> dict[str, Any]:
    """All that the page needs of the records. `runs`: every run by itself, for the curves."""
    records = ranked(comparison)
    settings = comparison.settings
    places = {id(record): i for i, record in enumerate(records)}
    replaced = superseded(comparison)
    rows = [row_of(comparison, record, places, settings) for record in records]
    for row, record in zip(rows, records, strict=True):
        row["superseded"] = True if id(record) in replaced else None
    return finite({
        "title": title,
        "metric": comparison.metric,
        "metric_name": comparison.metric_name,
        "summary": advice.sentence,
        "pick": None if advice.record is None else places[id(advice.record)],
        "tolerance": TOLERANCE,
        "places": [place_of(comparison, at) for at in settings],
        "place": 0 if settings else None,
        "budget": {
            "latency_ms": budget.latency, "gflop": budget.flops, "energy_mj": budget.energy,
            "size_bytes": None if budget.size is None else 1e6 * budget.size,
        },
        "rows": rows,
        **curves_of(comparison, runs),
        "classes": classes_of(comparison, records),
    })  # fmt: skip


def place_of(comparison: Comparison, at: Setting) -> dict[str, Any]:
    """A setting as the page names it, its machine always among it."""
    return {
        "label": ", ".join(part for part in (at.machine, str(at)) if part), "machine": at.machine, "device": at.device,
        "runtime": at.runtime, "threads": at.threads, "batch": at.batch_size, "scenario": at.scenario,
    }  # fmt: skip


def row_of(
    comparison: Comparison, record: Record, places: Mapping[int, int], settings: Sequence[Setting]
) -> dict[str, Any]:
    """One model in one form; what is not known is left out, or None."""
    scores = scores_of(comparison, record)
    teacher = comparison.teacher(record)
    others = {
        name: value for name, value in record.metrics.items()
        if name != comparison.metric and not name.startswith(CLASS_IOU)
    }  # fmt: skip
    timed = {str(i): times_of(one) for i, at in enumerate(settings) if (one := comparison.measured(record, at))}
    return {
        "name": record.name, "role": record.role, "method": record.method, "network": record.architecture,
        "format": record.format, "precision": record.precision, "seeds": max(1, len(scores)),
        "score": comparison.score(record), "spread": stdev(scores) if len(scores) > 1 else None, "scores": scores,
        "metrics": others, "macs": record.macs, "flops": record.flops, "params": record.params,
        "activations": record.activations, "size_bytes": record.size_bytes,
        "teacher": None if teacher is None else places[id(teacher)],
        "retained": comparison.retained(record), "verified": verified(record), "times": timed,
        "run": {key: record.run[key] for key in RUN if record.run.get(key) is not None},
    }  # fmt: skip


def scores_of(comparison: Comparison, record: Record) -> list[float]:
    """The score of each seed; of one seed just that."""
    several = (record.run.get("scores") or {}).get(comparison.metric)
    score = comparison.score(record)
    return list(several) if several else [] if score is None else [score]


def times_of(latency: Latency) -> dict[str, Any]:
    found = {key: getattr(latency, name) for key, name in TIMES.items()}
    return {key: value for key, value in found.items() if value is not None and value != ""}


def verified(record: Record) -> dict[str, Any] | None:
    """How far the exported file is from PyTorch, and where it was run for that."""
    export = record.export
    if not export:
        return None
    parity = export.get("parity") or {}
    keys = ("images", "top1_agreement", "miou", "max_abs", "max_rel", "mean_abs", "cosine")
    found = {key: number(parity.get(key)) for key in keys}
    found = {key: value for key, value in found.items() if value is not None}
    return {**found, "in": export.get("verified_in") or "onnxruntime", "not_run": export.get("unverified")}


def curves_of(comparison: Comparison, runs: Sequence[Record]) -> dict[str, Any]:
    """Quality over training time: the best runs, and how many there are."""
    found = []
    for record in runs:
        pairs = course(record, comparison.metric)
        if pairs and not record.format:
            seed = record.run.get("seed")
            name = record.name if seed is None else f"{record.name}, seed {seed}"
            seconds, scores = zip(*pairs, strict=True)
            found.append({"name": name, "seconds": list(seconds), "scores": list(scores), "role": record.role})
    found.sort(key=lambda curve: -curve["scores"][-1])
    return {"curves": found[:MOST_CURVES], "curves_in_all": len(found)}


def course(record: Record, metric: str) -> list[tuple[float, float]]:
    """(seconds, score) of each evaluation of a run; empty where it has none."""
    history = record.run.get("history")
    return [
        (float(entry["seconds"]), float(entry[metric]))
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict) and entry.get("seconds") is not None and entry.get(metric) is not None
    ]


def classes_of(comparison: Comparison, records: Sequence[Record]) -> dict[str, Any] | None:
    """The IoU of each class: the teacher's and the best models'."""
    names = comparison.classes
    known = [r for r in records if any(comparison.class_iou(r, name) is not None for name in names)]
    scored = [r for r in known if not r.format] or known  # a model's files say nearly the same of its classes
    shown = sorted(scored, key=lambda record: record.role != "teacher")[:MOST_MODELS]
    rows = [{"name": form(r), "values": [comparison.class_iou(r, name) for name in names]} for r in shown]
    return {"names": names, "rows": rows} if rows else None


def as_csv(data: Mapping[str, Any]) -> str:
    """The rows of `page_data` with their numbers unrounded, one line a row and place; what is not known is empty."""
    file = io.StringIO()
    plain = [
        "name", "role", "method", "network", "format", "precision", "seeds", "score", "spread", "retained", "macs",
        "flops", "params", "activations", "size_bytes",
    ]  # fmt: skip
    place = ["machine", "device", "runtime", "threads", "batch", "scenario"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*plain, *place, *TIMES.values(), "command"])
    for row in data["rows"]:
        known = [text(row[name]) for name in plain]
        command = text(row["run"].get("command"))
        for index, times in row["times"].items() or [(None, {})]:
            where = {} if index is None else data["places"][int(index)]
            writer.writerow([*known, *(text(where.get(key)) for key in place), *(times.get(k) for k in TIMES), command])
    return file.getvalue()


def text(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
