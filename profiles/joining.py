"""The records of many runs as one set: what was measured twice once, runs that only a seed tells apart as one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from profiles.comparison import number
from profiles.latency import Latency
from profiles.record import Record, holds_records, measured_at, merged, read_records, without_course

#: facts of a run that are settings: runs that differ in them are no repetitions of each other
SETTINGS = ("teacher", "settings", "ood", "batch_size", "budget_s", "precision")
#: numbers of a latency that are averaged over seeds
AVERAGED = (
    "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "latency_ms_mean", "latency_ms_std", "throughput_ips",
    "first_ms", "load_ms", "copy_in_ms", "compute_ms", "copy_out_ms", "energy_mj",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Joined:
    """The records of several folders."""

    records: list[Record]  #: every run by itself
    pictures: dict[str, Path]  #: by caption

    @property
    def models(self) -> list[Record]:
        """Runs that only a seed tells apart as one, with their means."""
        return over_seeds(self.records)


def join(folders: Sequence[Path]) -> Joined:
    """The records of several folders without repetitions (runs share a teacher), and their pictures.

    Models of the same name that differ in more than the seed get their folder's name behind it. Raises RecordError.
    """
    places = [place for folder in folders for place in runs_in(Path(folder))]
    kept: list[tuple[Path, Record]] = []
    index: dict[Any, int] = {}
    for folder, record in ((place, record) for place in places for record in read_records(place)):
        twin = index.setdefault(same_model(record), len(kept))
        if twin == len(kept):
            kept.append((folder, record))
        else:
            kept[twin] = (kept[twin][0], merged(kept[twin][1], record))
    kinds: dict[Any, set[Any]] = {}
    for _, record in kept:
        kinds.setdefault((record.name, record.format, record.precision), set()).add(repetition_of(record))
    records: list[Record] = []
    pictures: dict[str, Path] = {}
    for folder, record in kept:
        place = (folder if folder.is_dir() else folder.parent).resolve()
        twice = len(kinds[record.name, record.format, record.precision]) > 1
        records.append(dataclasses.replace(record, name=f"{record.name} ({place.name})") if twice else record)
        for caption, file in record.pictures.items():
            pictures[f"{caption} ({place.name})" if caption in pictures else caption] = place / file
    return Joined(records, pictures)


def runs_in(folder: Path) -> list[Path]:
    """The folder itself where it has a record, else the folders in it that have one, else itself, to be refused."""
    if not folder.is_dir() or holds_records(folder):
        return [folder]
    return sorted(place for place in folder.iterdir() if holds_records(place)) or [folder]


def same_model(record: Record) -> tuple[Any, ...]:
    """Equal for the same network in the same form under the same name: what was measured once is shown once."""
    told = (*record.key, record.architecture, frozen(record.metrics), record.macs, record.params)
    return told if record.role == "teacher" else (*told, frozen(record.run))


def repetition_of(record: Record) -> tuple[Any, ...]:
    """Equal for runs of which only the seed is different."""
    run = record.run
    budget = run.get("steps") if run.get("budget_s") is None else None  # a time limit makes as many steps as it can
    told = (record.name, record.role, record.method, record.architecture, record.format, record.precision)
    return (*told, budget, *(frozen(run.get(key)) for key in SETTINGS))


def frozen(value: Any) -> Any:
    """`value` as something that can be looked up by."""
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in sorted(value.items()))
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def over_seeds(records: Sequence[Record]) -> list[Record]:
    """Runs that only a seed tells apart as one record: means of scores and times, `run` with `seeds` and `scores`.

    `scores` holds each run's value by metric. Of their exports that which is farthest from PyTorch is kept.
    """
    groups: dict[Any, list[Record]] = {}
    for i, record in enumerate(records):
        seeded = record.run.get("seed") is not None
        groups.setdefault(repetition_of(record) if seeded else i, []).append(record)
    return [averaged(group) if len(group) > 1 else group[0] for group in groups.values()]


def averaged(group: Sequence[Record]) -> Record:
    first = group[0]
    shared = [name for name in first.metrics if all(name in record.metrics for record in group)]
    scores = {name: [record.metrics[name] for record in group] for name in shared}
    sizes = [record.size_bytes for record in group if record.size_bytes is not None]
    return dataclasses.replace(
        first,
        metrics={name: fmean(values) for name, values in scores.items()},
        size_bytes=round(fmean(sizes)) if sizes else None,
        latencies=mean_latencies([latency for record in group for latency in record.latencies]),
        export=max((record.export for record in group), key=departure),
        run=without_course(first.run) | {"seeds": [record.run["seed"] for record in group], "scores": scores},
    )


def departure(export: dict[str, Any] | None) -> float:
    """How far an exported file is from PyTorch."""
    parity = (export or {}).get("parity") or {}
    return -1.0 if export is None else number(parity.get("max_abs")) or 0.0


def mean_latencies(latencies: Sequence[Latency]) -> list[Latency]:
    """One latency a setting."""
    groups: dict[Any, list[Latency]] = {}
    for latency in latencies:
        groups.setdefault(measured_at(latency), []).append(latency)
    return [mean_latency(group) for group in groups.values()]


def mean_latency(group: Sequence[Latency]) -> Latency:
    means: dict[str, Any] = {}
    for name in AVERAGED:
        values = [value for value in (getattr(latency, name) for latency in group) if value is not None]
        means[name] = fmean(values) if values else None
    busy = next((latency.busy for latency in group if latency.busy), "")
    peaks = [latency.peak_bytes for latency in group if latency.peak_bytes is not None]
    runs = sum(latency.runs for latency in group)
    return dataclasses.replace(group[0], **means, busy=busy, peak_bytes=max(peaks, default=None), runs=runs)
