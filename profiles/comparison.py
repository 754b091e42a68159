"""What a set of records says together: who is best, what a student keeps of its teacher, who is worth having."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from profiles.latency import Latency
from profiles.record import Record

Cost = Literal["flops", "latency", "size", "energy"]
MAIN_METRICS = ("accuracy", "miou", "f1")  #: the first that is there is compared
METRIC_NAMES = {"accuracy": "accuracy", "miou": "mIoU", "f1": "F1", "pixel_accuracy": "pixel accuracy"}
QUICK = "quick"  #: our own scenario
CLASS_IOU = "iou/"  #: before the name of a class: its intersection over union
RUNTIME_NAMES = {
    "torch": "PyTorch",
    "torch-compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}


@dataclass(frozen=True)
class Setting:
    """Where and how a latency was measured; only latencies of one setting are compared."""

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


def setting(latency: Latency) -> Setting:
    """What a latency was measured with. Its precision is not part of it: it is what is compared."""
    one = latency
    return Setting(one.machine, one.device, one.runtime, one.threads, one.batch_size, one.scenario)


class Comparison:
    """Records side by side, by their main metric and at the latency setting that most of them share."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.teachers = [record for record in records if record.role == "teacher"]
        self.metric = self._main_metric()
        self.setting = self._main_setting()

    def _main_metric(self) -> str:
        names = [name for record in self.records for name in record.metrics]
        return next((name for name in (*MAIN_METRICS, *names) if name in names), "accuracy")

    def _main_setting(self) -> Setting | None:
        """The setting of most records; among equals the one that is nearest to deployment: a runtime, one image."""
        count = Counter(one for record in self.records for one in {setting(latency) for latency in record.latencies})
        if not count:
            return None
        return max(count, key=lambda one: (count[one], one.runtime != "torch", -one.batch_size, str(one), one.machine))

    @cached_property
    def settings(self) -> list[Setting]:
        """All that something was measured at, those of the most records first."""
        count = Counter(one for record in self.records for one in {setting(latency) for latency in record.latencies})
        rest = sorted(count, key=lambda one: (-count[one], str(one), one.machine))
        return [] if self.setting is None else [self.setting, *(one for one in rest if one != self.setting)]

    def label(self, at: Setting) -> str:
        """A setting in words; with its machine where there are several."""
        return f"{at.machine or 'another machine'}: {at}" if self.several_machines else str(at)

    @cached_property
    def several_machines(self) -> bool:
        return len({one.machine for one in self.settings}) > 1

    @property
    def metric_name(self) -> str:
        return METRIC_NAMES.get(self.metric, self.metric)

    @property
    def classes(self) -> list[str]:
        """The classes of which some record knows the IoU, in their order there."""
        names = [name for record in self.records for name in record.metrics if name.startswith(CLASS_IOU)]
        return list(dict.fromkeys(name.removeprefix(CLASS_IOU) for name in names))

    def class_iou(self, record: Record, name: str) -> float | None:
        """Intersection over union of one class, a share in [0, 1]."""
        return number(record.metrics.get(CLASS_IOU + name))

    def score(self, record: Record) -> float | None:
        """The main metric, a share in [0, 1]."""
        return number(record.metrics.get(self.metric))

    def measured(self, record: Record, at: Setting | None = None) -> Latency | None:
        """What was measured at a setting, the main one by default."""
        wanted = at or self.setting
        return next((one for one in record.latencies if setting(one) == wanted), None)

    def latency(self, record: Record, at: Setting | None = None) -> float | None:
        """The median latency in ms at a setting, the main one by default."""
        found = self.measured(record, at)
        return None if found is None else positive(found.latency_ms_p50)

    def teacher(self, record: Record) -> Record | None:
        """The teacher of a record: the only one there is, or the one that its run names; a file's is its file."""
        if record.role == "teacher":
            return None
        names = {teacher.name for teacher in self.teachers}
        name = next(iter(names)) if len(names) == 1 else record.run.get("teacher")
        forms = [teacher for teacher in self.teachers if teacher.name == name]
        alike = [teacher for teacher in forms if teacher.format == record.format]
        return next(iter([*alike, *forms]), None)

    def retained(self, record: Record) -> float | None:
        """The share of its teacher's score that a record keeps."""
        teacher = self.teacher(record)
        return None if teacher is None else ratio(self.score(record), self.score(teacher))

    def fewer_macs(self, record: Record) -> float | None:
        """How many times fewer MACs than its teacher."""
        teacher = self.teacher(record)
        return None if teacher is None else ratio(teacher.macs, record.macs)

    def fewer_params(self, record: Record) -> float | None:
        teacher = self.teacher(record)
        return None if teacher is None else ratio(teacher.params, record.params)

    def speedup(self, record: Record, at: Setting | None = None) -> float | None:
        """How many times lower than its teacher's its median latency is, at the same setting."""
        teacher = self.teacher(record)
        return None if teacher is None else ratio(self.latency(teacher, at), self.latency(record, at))

    def best(self) -> Record | None:
        """The record with the highest score: a student where there is one, else a model, else a teacher."""
        for role in ("student", "model", "teacher"):
            scored = [(self.score(record), record) for record in self.records if record.role == role]
            known = [(score, record) for score, record in scored if score is not None]
            if known:
                return max(known, key=lambda pair: pair[0])[1]
        return None

    def rival(self, best: Record) -> Record | None:
        """The best of the other students of the same architecture that had the same wall-clock budget."""
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

    def front(self, cost: Cost) -> list[Record]:
        """The Pareto-optimal records by score and cost, cheapest first."""
        points = [(self.cost(record, cost), self.score(record), record) for record in self.records]
        known = [(c, s, record) for c, s, record in points if c is not None and s is not None]
        return [known[i][2] for i in pareto([(c, s) for c, s, _ in known])]

    def cost(self, record: Record, cost: Cost) -> float | None:
        """What a record costs: GFLOP of an image, median latency in ms, MB of its file, or mJ an image."""
        if cost == "latency":
            return self.latency(record)
        if cost == "energy":
            found = self.measured(record)
            return None if found is None else positive(found.energy_mj)
        if cost == "size":
            return None if positive(record.size_bytes) is None else (record.size_bytes or 0) / 1e6
        flops = record.flops if record.flops is not None or record.macs is None else 2 * record.macs
        return None if positive(flops) is None or flops is None else flops / 1e9


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, quality) points that none beats: no other is as cheap and as good, and better in one.

    Cheapest first; equal points are all kept.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def positive(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found > 0 else None


def ratio(above: Any, below: Any) -> float | None:
    """`above` / `below` where both are known and the lower one is not zero."""
    top, bottom = number(above), positive(below)
    return None if top is None or bottom is None else top / bottom


def heading(name: str) -> str:
    """A name at the beginning of a line: `accuracy` -> `Accuracy`; one with capitals of its own, as mIoU, stays."""
    return name[:1].upper() + name[1:] if name.islower() else name
