"""Records of many runs as one set: duplicates are merged, and runs that differ only in their seed are averaged."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from profiles.formatting import finite_number
from profiles.latency.benchmark import Latency
from profiles.records import (
    Record,
    RecordError,
    has_records,
    measurement_setting,
    merge_records,
    read_records,
    to_hashable,
    without_history,
)

#: keys of `Record.run` that are settings: runs that differ in them are not repetitions of each other
SETTINGS = ("teacher", "settings", "ood", "batch_size", "budget_s", "precision")
#: fields of a latency that are averaged over seeds
AVERAGED = (
    "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "latency_ms_mean", "latency_ms_std", "throughput_ips",
    "first_call_ms", "load_ms", "copy_in_ms", "compute_ms", "copy_out_ms", "energy_mj",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RecordSet:
    """The records of several directories."""

    records: list[Record]  #: one per run
    images: dict[str, Path]  #: caption -> file

    @property
    def models(self) -> list[Record]:
        """One record per model: means over the seeds."""
        return average_seeds(self.records)


def collect_records(folders: Sequence[Path]) -> RecordSet:
    """Read the records and images of several directories without duplicates, such as a shared teacher.

    Models with the same name that differ in more than the seed get the name of their directory appended.

    Raises:
        RecordError: A directory has no record, or a file is damaged.
    """
    run_dirs = [run_dir for folder in folders for run_dir in find_run_dirs(Path(folder))]
    kept: list[tuple[Path, Record]] = []
    index: dict[Any, int] = {}
    for folder, record in ((run_dir, record) for run_dir in run_dirs for record in read_records(run_dir)):
        known = index.setdefault(model_identity(record), len(kept))
        if known == len(kept):
            kept.append((folder, record))
        else:
            kept[known] = (kept[known][0], merge_records(kept[known][1], record))
    kinds: dict[Any, set[Any]] = {}
    for _, record in kept:
        kinds.setdefault((record.name, record.format, record.precision), set()).add(repetition_key(record))
    records: list[Record] = []
    images: dict[str, Path] = {}
    for folder, record in kept:
        directory = (folder if folder.is_dir() else folder.parent).resolve()
        ambiguous = len(kinds[record.name, record.format, record.precision]) > 1
        name = f"{record.name} ({directory.name})" if ambiguous else record.name
        records.append(dataclasses.replace(record, name=name))
        for caption, file in record.images.items():
            images[f"{caption} ({directory.name})" if caption in images else caption] = directory / file
    return RecordSet(records, images)


def find_run_dirs(folder: Path) -> list[Path]:
    """Return the directory itself if it has records, else its subdirectories that have some, else itself."""
    if not os.path.isdir(folder) or has_records(folder):
        return [folder]
    try:
        return sorted(inner for inner in folder.iterdir() if has_records(inner)) or [folder]
    except OSError as error:
        raise RecordError(f"{folder}: cannot be read ({error.strerror or error}).") from error


def model_identity(record: Record) -> tuple[Any, ...]:
    """Return a key that is equal for the same network in the same form under the same name."""
    facts = (*record.key, record.architecture, to_hashable(record.metrics), record.macs, record.params)
    return facts if record.role == "teacher" else (*facts, to_hashable(record.run))


def repetition_key(record: Record) -> tuple[Any, ...]:
    """Return a key that is equal for runs that differ only in their seed."""
    run = record.run
    steps = run.get("steps") if run.get("budget_s") is None else None  # a time limit determines the steps
    facts = (record.name, record.role, record.method, record.architecture, record.format, record.precision)
    return (*facts, to_hashable(steps), *(to_hashable(run.get(key)) for key in SETTINGS))


def average_seeds(records: Sequence[Record]) -> list[Record]:
    """Average runs that differ only in their seed; their `run` gets `seeds` and `scores`.

    `scores` holds the value of each run per metric. Of their exports the one with the largest error is kept.
    """
    groups: dict[Any, list[Record]] = {}
    for i, record in enumerate(records):
        has_seed = record.run.get("seed") is not None
        groups.setdefault(repetition_key(record) if has_seed else i, []).append(record)
    return [average_records(group) if len(group) > 1 else group[0] for group in groups.values()]


def average_records(group: Sequence[Record]) -> Record:
    """Average the scores, sizes and latencies of several runs."""
    first = group[0]
    shared = [name for name in first.metrics if all(name in record.metrics for record in group)]
    scores = {name: [record.metrics[name] for record in group] for name in shared}
    sizes = [record.size_bytes for record in group if record.size_bytes is not None]
    return dataclasses.replace(
        first,
        metrics={name: fmean(values) for name, values in scores.items()},
        size_bytes=round(fmean(sizes)) if sizes else None,
        latencies=average_latencies([latency for record in group for latency in record.latencies]),
        export=max(group, key=parity_error).export,
        run=without_history(first.run) | {"seeds": [record.run["seed"] for record in group], "scores": scores},
    )


def parity_error(record: Record) -> float:
    """Return the largest absolute difference between an exported file and PyTorch; -1 without a file."""
    return -1.0 if record.export is None else finite_number(record.parity.get("max_abs")) or 0.0


def average_latencies(latencies: Sequence[Latency]) -> list[Latency]:
    """Average latencies of the same setting."""
    groups: dict[Any, list[Latency]] = {}
    for latency in latencies:
        groups.setdefault(measurement_setting(latency), []).append(latency)
    return [average_latency(group) for group in groups.values()]


def average_latency(group: Sequence[Latency]) -> Latency:
    """Average latencies; runs are summed, peak memory is the maximum."""
    means: dict[str, Any] = {}
    for name in AVERAGED:
        values = [value for value in (getattr(latency, name) for latency in group) if value is not None]
        means[name] = fmean(values) if values else None
    warning = next((latency.load_warning for latency in group if latency.load_warning), "")
    peaks = [latency.peak_bytes for latency in group if latency.peak_bytes is not None]
    runs = sum(latency.runs for latency in group)
    return dataclasses.replace(group[0], **means, load_warning=warning, peak_bytes=max(peaks, default=None), runs=runs)
