"""The last stage of a sweep: all its files timed in turns, what there is to mind, and the trade-off report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.calibrating import SYNTHETIC
from compress.cli.cells import Cell, Model, Teacher
from compress.cli.output import say
from compress.files import write_json

if TYPE_CHECKING:
    from compress.cli.entrants import Entrant
    from compress.sweep import SweepPlan

#: in the folder of the sweep: what was timed together, and when
TIMED = "timed.json"
#: what every report of a sweep says
RULES = (
    "Each student is the best of its run on the way. It was chosen on the images that it is measured on, which "
    "flatters it a little, the more the more a run wavers.",
    "All files, the teacher's among them, were timed in turns in one call, so that their ratios hold.",
)


@dataclass(frozen=True)
class Sweep:
    """All of a sweep: what is to be made, by whom of the methods not, and where."""

    plan: SweepPlan
    out: Path
    teacher: Teacher
    cells: list[Cell]
    entrants: list[tuple[str, Entrant]]  #: student, and a method that teaches it
    left_out: list[tuple[str, str, str]]  #: student, method's name, and why it cannot run here

    @property
    def models(self) -> list[Model]:
        """The teacher, and the students that are trained."""
        return [self.teacher.model, *(cell.model for cell in self.cells if cell.job.finished)]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What is timed together: file -> sha256, and how."""
        files = {f"{model.folder.name}/{one['file']}": one["sha256"] for model, one in runnable(self.models)}
        return {"files": files, "batch_sizes": self.plan.batch_sizes, "duration": self.plan.duration}

    @property
    def timed(self) -> bool:
        """Whether these very files have been timed together."""
        return self.remembered.get("of") == self.fingerprint

    @property
    def remembered(self) -> dict[str, Any]:
        path = self.out / TIMED
        return json.loads(path.read_bytes()) if path.exists() else {}


def runnable(models: Sequence[Model]) -> list[tuple[Model, dict[str, Any]]]:
    """Every file that runs here, with its model."""
    return [(model, one) for model in models for one in model.outcome()["made"] if one["not_run"] is None]


def time_all(sweep: Sweep) -> None:
    """Time all files in turns, and add the latencies to the records of their models. What does not run is noted."""
    from compress.cli.measuring import candidate, threads_kept
    from exporters.failure import RunnerError
    from profiles.latency import measure_alternated

    fingerprint, named, failed = sweep.fingerprint, {}, {}
    files = runnable(sweep.models)
    for i, (model, one) in enumerate(files):
        path = model.folder / one["file"]
        try:
            found = {(i, n): candidate(path, sweep.teacher.card, n) for n in sweep.plan.batch_sizes}
        except RunnerError as error:
            failed[f"{model.folder.name}/{one['file']}"] = str(error)
            continue
        named |= found
    if named:
        say(f"timing {len(files) - len(failed)} files in turns")
        with threads_kept():
            measured = measure_alternated(named, duration_s=sweep.plan.duration)
        for i, (model, one) in enumerate(files):
            remember(model, one, [latency for (j, _), latency in measured.items() if j == i])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(sweep.out / TIMED, {"of": fingerprint, "not_timed": failed, "at": now})


def remember(model: Model, made: dict[str, Any], latencies: list[Any]) -> None:
    """Add what was measured of a file to the records of its model: a line with nothing else in it."""
    from compress.models.folder import versions
    from profiles import machine
    from profiles.record import Record, append_records

    whole = model.record()
    if whole is None or not latencies:
        return
    seed = {} if whole.run.get("seed") is None else {"seed": whole.run["seed"]}
    append_records(model.folder, [Record(
        whole.name, whole.role, whole.method, task=whole.task, format=made["format"], precision=made["precision"],
        latencies=latencies, run=seed, machine=machine.describe(), versions=versions(),
    )])  # fmt: skip


def report(sweep: Sweep, failures: dict[str, str]) -> dict[str, Path]:
    """Write the trade-off report of all that is finished into the folder of the sweep. Raises RecordError."""
    from dataclasses import asdict

    from compress.cli.reporting import make_report
    from profiles.record import holds_records

    folders = [model.folder for model in sweep.models if holds_records(model.folder)]
    command = shlex.join(["compress", *sys.argv[1:]])
    paths, _ = make_report(
        sweep.out, folders, title=f"{sweep.plan.teacher}: students × methods × precisions",
        most=asdict(sweep.plan.limits), notes=notes(sweep, failures), commands=[command],
    )  # fmt: skip
    return paths


def notes(sweep: Sweep, failures: dict[str, str]) -> list[str]:
    """What a reader must mind: what is not there and why, what was stopped, what is slower than it should be."""
    found: list[str] = list(RULES)
    if "teacher" in failures:
        found.append(f"{sweep.teacher.name}: not measured: {failures['teacher']}")
    for cell in sweep.cells:
        who = f"{cell.job.name} {cell.student}, seed {cell.job.seed}"
        if cell.name in failures:
            found.append(f"{who} failed: {failures[cell.name]}")
        if cell.pruned is not None:
            stopped = cell.pruned
            found.append(
                f"{who} was stopped early: after {stopped['tenth']} tenths of its budget it had "
                f"{stopped['metric']} {stopped['score']:.1%}, and others of {cell.student} had more "
                f"({sweep.plan.prune.kind})."
            )
    if len(sweep.plan.chosen_seeds) > 1 and any(cell.pruned for cell in sweep.cells):
        found.append("Means over seeds are of runs that were not stopped early, and flatter by it.")
    for model in sweep.models:
        record = model.record()
        name = model.folder.name if record is None else f"{record.name}, {model.folder.name}"
        rejected = model.outcome()["rejected"]
        found += [f"{name}: no {one['format']} in {one['precision']}: {one['reason']}" for one in rejected]
    found += [f"{student} by {name}: not run: {why}" for student, name, why in sweep.left_out]
    found += [f"{file}: not timed: {why}" for file, why in sweep.remembered.get("not_timed", {}).items()]
    return [*found, *calibrations(sweep.cells), *slower(sweep.models)]


def calibrations(cells: Sequence[Cell]) -> list[str]:
    """On what int8 was calibrated, by method."""
    by: dict[str, list[str]] = {}
    for cell in cells:
        if cell.model.calibration is not None and cell.job.name not in by.setdefault(cell.model.calibration, []):
            by[cell.model.calibration].append(cell.job.name)
    named = {SYNTHETIC: "the images of their own runs"}
    told = [f"{named.get(spec, spec)} ({', '.join(who)})" for spec, who in by.items()]
    return [f"int8 was calibrated on {'; '.join(told)}."] if told else []


def slower(models: Sequence[Model]) -> list[str]:
    """The int8 files that took longer than their fp32, in one sentence."""
    from profiles.record import records_in

    found = []
    for model in models:
        records = {(one.format, one.precision): one for one in records_in(model.folder) if one.latencies}
        for (format, precision), record in records.items():
            whole = records.get((format, "fp32"))
            if precision != "int8" or whole is None:
                continue
            small, large = (min(one.latencies, key=lambda latency: latency.batch_size) for one in (record, whole))
            if small.batch_size == large.batch_size and small.latency_ms_p50 > large.latency_ms_p50:
                found.append(
                    f"{record.name} in {format} ({small.latency_ms_p50:.2f} ms against {large.latency_ms_p50:.2f})"
                )
    return [f"int8 takes longer here than fp32, and was kept to be compared: {'; '.join(found)}."] if found else []
