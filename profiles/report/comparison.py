"""Comparison of records: best model, share of the teacher's score, Pareto front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from profiles.formatting import finite_number, positive_number, safe_ratio
from profiles.latency.benchmark import Latency
from profiles.records import CLASS_IOU, Record

Cost = Literal["flops", "latency", "size", "energy"]
MAIN_METRICS = ("accuracy", "miou", "iou", "f1")  #: the first one that a record has is compared
METRIC_NAMES = {
    "accuracy": "accuracy", "miou": "mIoU", "iou": "IoU", "dice": "Dice", "f1": "F1", "map": "mAP",
    "label_accuracy": "label accuracy", "pixel_accuracy": "pixel accuracy",
}  # fmt: skip
QUICK = "quick"  #: our own scenario
RUNTIME_NAMES = {
    "torch": "PyTorch",
    "torch-compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


@dataclass(frozen=True)
class LatencySetting:
    """Where and how a latency was measured. Only latencies of one setting are compared."""

    machine: str
    device: str
    runtime: str
    threads: int | None
    batch_size: int
    scenario: str = QUICK

    def __str__(self) -> str:
        device = {"cpu": "CPU", "cuda": "CUDA"}.get(self.device, self.device)
        threads = "" if self.threads is None else f"{self.threads} thread{'s' * (self.threads != 1)}"
        runtime = RUNTIME_NAMES.get(self.runtime, self.runtime)
        scenario = "" if self.scenario == QUICK else self.scenario
        return ", ".join(part for part in (runtime, device, threads, f"batch {self.batch_size}", scenario) if part)


def setting_of(latency: Latency) -> LatencySetting:
    """Return the setting of a latency. Precision is not part of it, because precisions are compared."""
    one = latency
    return LatencySetting(one.machine, one.device, one.runtime, one.threads, one.batch_size, one.scenario)


class Comparison:
    """Records compared by their main metric and at the latency setting that most of them share."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.teachers = [record for record in records if record.role == "teacher"]
        self.metric = self._main_metric()
        self.setting = self._main_setting()

    def _main_metric(self) -> str:
        names = [name for record in self.records for name in record.metrics]
        return next((name for name in (*MAIN_METRICS, *names) if name in names), "accuracy")

    def _count_settings(self) -> Counter[LatencySetting]:
        return Counter(one for record in self.records for one in {setting_of(latency) for latency in record.latencies})

    def _main_setting(self) -> LatencySetting | None:
        """Return the setting of most records; among equals the one closest to deployment: a runtime, one image."""
        count = self._count_settings()
        if not count:
            return None
        return max(count, key=lambda one: (count[one], one.runtime != "torch", -one.batch_size, str(one), one.machine))

    @cached_property
    def settings(self) -> list[LatencySetting]:
        """All settings: the main one, then by number of records."""
        count = self._count_settings()
        rest = sorted(count, key=lambda one: (-count[one], str(one), one.machine))
        return [] if self.setting is None else [self.setting, *(one for one in rest if one != self.setting)]

    def setting_label(self, at: LatencySetting) -> str:
        """Return the name of a setting, with its machine if there are several."""
        return f"{at.machine or 'another machine'}: {at}" if self.has_several_machines else str(at)

    @cached_property
    def has_several_machines(self) -> bool:
        return len({one.machine for one in self.settings}) > 1

    @property
    def metric_name(self) -> str:
        return METRIC_NAMES.get(self.metric, self.metric)

    @cached_property
    def class_names(self) -> list[str]:
        """Classes for which some record has an IoU, in the order of their occurrence."""
        names = [name for record in self.records for name in record.metrics if name.startswith(CLASS_IOU)]
        return list(dict.fromkeys(name.removeprefix(CLASS_IOU) for name in names))

    def class_ious(self, record: Record) -> dict[str, float]:
        """Return class -> intersection over union, in [0, 1]."""
        ious = {
            name.removeprefix(CLASS_IOU): finite_number(value)
            for name, value in record.metrics.items()
            if name.startswith(CLASS_IOU)
        }
        return {name: iou for name, iou in ious.items() if iou is not None}

    def class_iou(self, record: Record, name: str) -> float | None:
        """Return the intersection over union of one class, in [0, 1]."""
        return finite_number(record.metrics.get(CLASS_IOU + name))

    def score(self, record: Record) -> float | None:
        """Return the main metric, in [0, 1]."""
        return finite_number(record.metrics.get(self.metric))

    def seed_scores(self, record: Record) -> list[float]:
        """Return the main metric of each seed of an averaged record; empty for a single run."""
        scores = record.run.get("scores")
        values = scores.get(self.metric) if isinstance(scores, dict) else None
        numbers = [finite_number(value) for value in (values if isinstance(values, list) else [])]
        return [number for number in numbers if number is not None]

    def latency_at(self, record: Record, at: LatencySetting | None = None) -> Latency | None:
        """Return the latency at a setting, by default the main one."""
        setting = at or self.setting
        return next((one for one in record.latencies if setting_of(one) == setting), None)

    def median_latency(self, record: Record, at: LatencySetting | None = None) -> float | None:
        """Return the median latency in ms at a setting, by default the main one."""
        latency = self.latency_at(record, at)
        return None if latency is None else positive_number(latency.latency_ms_p50)

    def teacher_of(self, record: Record) -> Record | None:
        """Return the only teacher, or the one that the record's run names; for a file the teacher in that format."""
        if record.role == "teacher":
            return None
        name = record.run.get("teacher") if len(self._teachers_by_name) != 1 else next(iter(self._teachers_by_name))
        forms = self._teachers_by_name.get(name, {}) if isinstance(name, str) else {}
        return forms.get(record.format) or next(iter(forms.values()), None)

    @cached_property
    def _teachers_by_name(self) -> dict[str, dict[str, Record]]:
        """Name -> format -> the first such teacher."""
        named: dict[str, dict[str, Record]] = {}
        for teacher in self.teachers:
            named.setdefault(teacher.name, {}).setdefault(teacher.format, teacher)
        return named

    def retained_accuracy(self, record: Record) -> float | None:
        """Return the record's score divided by its teacher's."""
        teacher = self.teacher_of(record)
        return None if teacher is None else safe_ratio(self.score(record), self.score(teacher))

    def macs_reduction(self, record: Record) -> float | None:
        """Return the teacher's MACs divided by the record's."""
        teacher = self.teacher_of(record)
        return None if teacher is None else safe_ratio(teacher.macs, record.macs)

    def params_reduction(self, record: Record) -> float | None:
        """Return the teacher's parameters divided by the record's."""
        teacher = self.teacher_of(record)
        return None if teacher is None else safe_ratio(teacher.params, record.params)

    def speedup(self, record: Record, at: LatencySetting | None = None) -> float | None:
        """Return the teacher's median latency divided by the record's, at the same setting."""
        teacher = self.teacher_of(record)
        return (
            None if teacher is None else safe_ratio(self.median_latency(teacher, at), self.median_latency(record, at))
        )

    def best_model(self) -> Record | None:
        """Return the record with the highest score: a student if there is one, else a model, else a teacher."""
        for role in ("student", "model", "teacher"):
            scored = [(self.score(record), record) for record in self.records if record.role == role]
            known = [(score, record) for score, record in scored if score is not None]
            if known:
                return max(known, key=lambda pair: pair[0])[1]
        return None

    def best_other_method(self, best: Record) -> Record | None:
        """Return the best student of another method with the same architecture and wall-clock budget."""
        budget = best.run.get("budget_s")
        peers = [
            record
            for record in self.records
            if record is not best
            and record.role == best.role == "student"
            and record.architecture == best.architecture
            and (record.format, record.precision) == (best.format, best.precision)
            and record.method != best.method
            and budget is not None
            and record.run.get("budget_s") == budget
            and self.score(record) is not None
        ]
        return max(peers, key=lambda record: self.score(record) or 0.0, default=None)

    def pareto_front(self, cost: Cost) -> list[Record]:
        """Return the Pareto-optimal records by score and cost, cheapest first."""
        points = [(self.cost_of(record, cost), self.score(record), record) for record in self.records]
        known = [(c, s, record) for c, s, record in points if c is not None and s is not None]
        return [known[i][2] for i in pareto_indices([(c, s) for c, s, _ in known])]

    def cost_of(self, record: Record, cost: Cost) -> float | None:
        """Return a cost: GFLOP per image, median latency in ms, MB of the file, or mJ per image."""
        if cost == "latency":
            return self.median_latency(record)
        if cost == "energy":
            latency = self.latency_at(record)
            return None if latency is None else positive_number(latency.energy_mj)
        if cost == "size":
            size = positive_number(record.size_bytes)
            return None if size is None else size / 1e6
        flops = positive_number(record.flops if record.flops is not None or record.macs is None else 2 * record.macs)
        return None if flops is None else flops / 1e9


def pareto_indices(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal (cost, quality) points, cheapest first; equal points are all kept."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept
