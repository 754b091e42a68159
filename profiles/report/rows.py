"""One row of data per model and form, best first: for the page's scripts and the CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from profiles.formatting import finite_number, format_csv, to_json_safe
from profiles.latency.benchmark import Latency
from profiles.records import CLASS_SCORES, Record, learning_curve
from profiles.report.comparison import Comparison, LatencySetting, setting_of
from profiles.report.recommendation import SCORE_TOLERANCE, Limits, Recommendation, exported_models

#: learning curves on the page
MAX_CURVES = 30
#: models in the chart of classes
MAX_CLASS_MODELS = 6
#: key in a row -> field of a latency
TIMES = {
    "p50": "latency_ms_p50", "p90": "latency_ms_p90", "p99": "latency_ms_p99", "mean": "latency_ms_mean",
    "std": "latency_ms_std", "ips": "throughput_ips", "first_call_ms": "first_call_ms", "load_ms": "load_ms",
    "peak_bytes": "peak_bytes", "copy_in_ms": "copy_in_ms", "compute_ms": "compute_ms", "copy_out_ms": "copy_out_ms",
    "energy_mj": "energy_mj", "load_warning": "load_warning", "valid": "valid", "runs": "runs",
}  # fmt: skip
#: facts of a run that a row contains
RUN = ("seed", "steps", "wall_s", "budget_s", "ood", "batch_size", "command")


def sort_by_score(comparison: Comparison) -> list[Record]:
    """Sort records by score, best first; those without a score last."""
    return sorted(comparison.records, key=lambda record: -(comparison.score(record) or -1.0))


def build_page_data(
    comparison: Comparison, runs: Sequence[Record], recommendation: Recommendation, limits: Limits, *, title: str
) -> dict[str, Any]:
    """Build all data of the page. `runs`: one record per run, for the learning curves."""
    records = sort_by_score(comparison)
    settings = comparison.settings
    indices = {id(record): i for i, record in enumerate(records)}
    replaced = exported_models(comparison)
    places = {at: str(i) for i, at in enumerate(settings)}
    rows = [model_row(comparison, record, indices, places) for record in records]
    for row, record in zip(rows, records, strict=True):
        row["superseded"] = True if id(record) in replaced else None
    return to_json_safe({
        "title": title,
        "metric": comparison.metric,
        "metric_name": comparison.metric_name,
        "summary": recommendation.reason,
        "pick": None if recommendation.record is None else indices[id(recommendation.record)],
        "tolerance": SCORE_TOLERANCE,
        "settings": [setting_data(comparison, at) for at in settings],
        "setting": 0 if settings else None,
        "limits": {
            "latency_ms": limits.latency_ms, "gflop": limits.gflop, "energy_mj": limits.energy_mj,
            "size_bytes": None if limits.size_mb is None else 1e6 * limits.size_mb,
        },
        "rows": rows,
        **curve_data(comparison, runs),
        "classes": class_data(comparison, records),
    })  # fmt: skip


def setting_data(comparison: Comparison, at: LatencySetting) -> dict[str, Any]:
    """Describe a setting for the page, including its machine."""
    return {
        "label": ", ".join(part for part in (at.machine, str(at)) if part), "machine": at.machine, "device": at.device,
        "runtime": at.runtime, "threads": at.threads, "batch": at.batch_size, "scenario": at.scenario,
    }  # fmt: skip


def model_row(
    comparison: Comparison, record: Record, indices: Mapping[int, int], places: Mapping[LatencySetting, str]
) -> dict[str, Any]:
    """Build the row of one model in one form; unknown values are omitted or None. `places`: setting -> its index."""
    scores = seed_scores(comparison, record)
    teacher = comparison.teacher_of(record)
    others = {
        name: value for name, value in record.metrics.items()
        if name != comparison.metric and not name.startswith(CLASS_SCORES)
    }  # fmt: skip
    timed = {places[setting_of(one)]: latency_data(one) for one in reversed(record.latencies)}
    timed = {place: timed[place] for place in sorted(timed, key=int)}
    return {
        "name": record.name, "role": record.role, "method": record.method, "network": record.architecture,
        "format": record.format, "precision": record.precision, "seeds": max(1, len(scores)),
        "score": comparison.score(record), "spread": stdev(scores) if len(scores) > 1 else None, "scores": scores,
        "metrics": others, "macs": record.macs, "flops": record.flops, "params": record.params,
        "activations": record.activations, "size_bytes": record.size_bytes,
        "teacher": None if teacher is None else indices[id(teacher)],
        "retained": comparison.retained_accuracy(record), "verified": parity_data(record), "times": timed,
        "run": {key: record.run[key] for key in RUN if record.run.get(key) is not None},
    }  # fmt: skip


def seed_scores(comparison: Comparison, record: Record) -> list[float]:
    """Return the score of each seed, or of the only one."""
    score = comparison.score(record)
    return comparison.seed_scores(record) or ([] if score is None else [score])


def latency_data(latency: Latency) -> dict[str, Any]:
    """Return the fields of a latency that are known."""
    values = {key: getattr(latency, name) for key, name in TIMES.items()}
    return {key: value for key, value in values.items() if value is not None and value != ""}


def parity_data(record: Record) -> dict[str, Any] | None:
    """Return how far an exported file is from PyTorch, and in which runtime it was verified."""
    export = record.export
    if not export:
        return None
    keys = ("images", "top1_agreement", "miou", "max_abs", "max_rel", "mean_abs", "cosine")
    parity_values = {key: finite_number(record.parity.get(key)) for key in keys}
    parity_values = {key: value for key, value in parity_values.items() if value is not None}
    unverified = export.get("unverified")
    return {
        **parity_values, "in": str(export.get("verified_in") or "onnxruntime"),
        "not_run": None if unverified is None else str(unverified),
    }  # fmt: skip


def curve_data(comparison: Comparison, runs: Sequence[Record]) -> dict[str, Any]:
    """Return the learning curves of the best runs, and the total number of curves."""
    curves = []
    for record in runs:
        pairs = learning_curve(record, comparison.metric)
        if pairs and not record.format:
            seed = record.run.get("seed")
            name = record.name if seed is None else f"{record.name}, seed {seed}"
            seconds, scores = zip(*pairs, strict=True)
            curves.append({"name": name, "seconds": list(seconds), "scores": list(scores), "role": record.role})
    curves.sort(key=lambda curve: -curve["scores"][-1])
    return {"curves": curves[:MAX_CURVES], "curves_in_all": len(curves)}


def class_data(comparison: Comparison, records: Sequence[Record]) -> dict[str, Any] | None:
    """Return the IoU per class of the teacher and the best models."""
    names = comparison.class_names
    known = [r for r in records if comparison.class_ious(r)]
    scored = [r for r in known if not r.format] or known  # files have nearly the same IoU as their network
    shown = sorted(scored, key=lambda record: record.role != "teacher")[:MAX_CLASS_MODELS]
    rows = [{"name": r.label, "values": [comparison.class_iou(r, name) for name in names]} for r in shown]
    return {"names": names, "rows": rows} if rows else None


def rows_to_csv(data: Mapping[str, Any]) -> str:
    """Convert the rows of `build_page_data` to CSV with unrounded numbers: one line per row and setting."""
    plain = [
        "name", "role", "method", "network", "format", "precision", "seeds", "score", "spread", "retained", "macs",
        "flops", "params", "activations", "size_bytes",
    ]  # fmt: skip
    where = ["machine", "device", "runtime", "threads", "batch", "scenario"]
    lines: list[list[Any]] = [[*plain, *where, *TIMES.values(), "command"]]
    for row in data["rows"]:
        for index, times in row["times"].items() or [(None, {})]:
            setting = {} if index is None else data["settings"][int(index)]
            lines.append([
                *(row[key] for key in plain), *(setting.get(key) for key in where), *(times.get(key) for key in TIMES),
                row["run"].get("command"),
            ])  # fmt: skip
    return format_csv(lines)
