"""The whole workflow on embedded real data; the implementation of `compress demo`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiles.records import Record

QUICK_SECONDS = 20.0
ONNX = "student.onnx"


@dataclass(frozen=True)
class DemoTask:
    """The teacher and the students of one task."""

    teacher: str
    recipes: dict[str, str]  #: run directory -> recipe
    title: str
    output_dir: str


TASKS = {
    "classification": DemoTask(
        "embedded/fashion_wrn16_2", {"kd": "demo-kd", "mosaic": "demo-mosaic"},
        "Fashion-MNIST from photographs", "runs/demo",
    ),
    "segmentation": DemoTask(
        "embedded/scenes_deeplab", {"kd": "demo-segmentation-kd", "mosaic": "demo-segmentation-mosaic"},
        "Garments segmented by a student of photographs", "runs/demo-segmentation",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DemoModel:
    """Scores and cost of one model of the demo."""

    metrics: dict[str, float]  #: scores of the best student, or of the teacher
    last_metrics: dict[str, float] | None  #: scores of the last student
    macs: int | None  #: MACs per image
    params: int | None  #: parameters
    steps: int | None  #: training steps
    seconds: float | None  #: training time


@dataclass(frozen=True)
class DemoResult:
    """The models of the demo and its report."""

    models: dict[str, DemoModel]  #: by name, the teacher first
    report: dict[str, Path]  #: paths by kind: html, markdown, csv, json


def run_demo(
    task: str, *, output_dir: str | Path | None, time_limit: float | None, quick: bool, seed: int, command: str,
    progress: Callable[[str], None],
) -> DemoResult:  # fmt: skip
    """Distill, export, time and report; see `compress.run_demo`."""
    from compress.measure import TimedModel, export_verified
    from compress.models.loading import load_model
    from compress.models.serialization import load_model_directory
    from compress.training.results import add_latencies, create_model_record
    from profiles.records import append_records
    from profiles.report.build import write_run_report

    demo = TASKS[task]
    directory = Path(output_dir or demo.output_dir)
    limit = time_limit or (QUICK_SECONDS if quick else None)
    progress(f"The teacher is {demo.teacher}. Its training data is not used: both students see photographs only.")
    teacher, card = load_model(demo.teacher)
    students = [
        train_student(directory / name, recipe, demo.teacher, limit, seed, command, progress)
        for name, recipe in demo.recipes.items()
    ]
    timed = {
        record.name: TimedModel(*load_model_directory(directory / name / "best"), directory / name / ONNX)
        for name, record in zip(demo.recipes, students, strict=True)
    }
    onnx = directory / "teacher.onnx"
    name = f"Teacher {card.architecture}"
    export = export_verified(teacher, card, onnx)
    records = [create_model_record(teacher, card, name=name, role="teacher", export=export), *students]
    progress("timing teacher and students, interleaved")
    records = add_latencies(records, {name: TimedModel(teacher, card, onnx), **timed})
    append_records(directory, records)
    report = write_run_report(directory, [directory], title=demo.title, progress=progress)
    return DemoResult({record.name: describe_record(record) for record in records}, report.files)


def train_student(
    run_dir: Path, recipe: str, teacher: str, time_limit: float | None, seed: int, command: str,
    progress: Callable[[str], None],
) -> Record:  # fmt: skip
    """Train and export one student of a shipped recipe; return its record."""
    from compress.training.launch import run_training
    from compress.training.recipes import resolve_config
    from profiles.records import read_records

    config, method = resolve_config(recipe, teacher=teacher, time_limit=time_limit, seed=seed)
    progress(f"{recipe}: {config.training.time_limit:.0f} s")
    run_training(config, method, output_dir=run_dir, resume=False, export="onnx", command=command, progress=progress)
    return replace(read_records(run_dir)[0], images={})


def describe_record(record: Record) -> DemoModel:
    run = record.run
    return DemoModel(record.metrics, run.get("last"), record.macs, record.params, run.get("steps"), run.get("wall_s"))
