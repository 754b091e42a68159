"""`compress demo`: the whole path on embedded real data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.old_options import common, duration, emit
from compress.cli.output import print_status

if TYPE_CHECKING:
    from profiles.records import Record


@dataclass(frozen=True)
class Show:
    """What is shown of one task."""

    teacher: str
    runs: dict[str, str]  #: folder of the run -> recipe, in their order
    title: str
    folder: str


SHOWS = {
    "classification": Show(
        "embedded/fashion_wrn16_2", {"kd": "demo-kd", "mosaic": "demo-mosaic"},
        "Fashion-MNIST from photographs", "runs/demo",
    ),
    "segmentation": Show(
        "embedded/scenes_deeplab", {"kd": "demo-segmentation-kd", "mosaic": "demo-segmentation-mosaic"},
        "Garments found by a student of photographs", "runs/demo-segmentation",
    ),
}  # fmt: skip
QUICK_SECONDS = 20.0
ONNX = "student.onnx"


@click.command()
@click.option(
    "--task",
    type=click.Choice(list(SHOWS)),
    default="classification",
    show_default=True,
    help="What the models answer.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the demo.  [default: runs/demo, with its task]")
@click.option(
    "--time-limit", callback=duration, metavar="240s", help="Training time of each student, not the recipe's."
)
@click.option("--quick", is_flag=True, help="Twenty seconds a student: checks the path, shows no quality.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random.")
@common
def demo(task: str, out: Path | None, time_limit: float | None, quick: bool, seed: int, as_json: bool) -> None:
    """Distil an embedded teacher from photographs, with MosaicKD and with plain KD, and report.

    \b
    Example:
      compress demo --quick --out runs/quick
    """
    from compress.cli.results import add_latencies, create_model_record
    from compress.measure import TimedModel
    from compress.models.folder import load_model_directory
    from compress.models.loading import load_model
    from profiles.records import append_records
    from profiles.report.build import write_run_report

    show = SHOWS[task]
    out = out or Path(show.folder)
    options = {"time_limit": time_limit or (QUICK_SECONDS if quick else None), "seed": seed}
    print_status(f"The teacher is {show.teacher}; its training data are not used. Both students see natural photographs only.")
    teacher, card = load_model(show.teacher)
    records: list[Record] = [one(out / name, recipe, show.teacher, options) for name, recipe in show.runs.items()]
    nets = {
        r.name: TimedModel(*load_model_directory(out / name / "best"), out / name / ONNX)
        for name, r in zip(show.runs, records, strict=True)
    }
    onnx = out / "teacher.onnx"
    records.insert(0, create_model_record(teacher, card, name=f"Teacher {card.architecture}", role="teacher", onnx=onnx))
    print_status("timing teacher and students in turns")
    records = add_latencies(records, {records[0].name: TimedModel(teacher, card, onnx), **nets})
    append_records(out, records)
    paths = write_run_report(out, [out], title=show.title, progress=print_status).files
    result: dict[str, Any] = {
        "models": {r.name: facts_of(r) for r in records},
        "report": {kind: str(path) for kind, path in paths.items()},
    }  # fmt: skip
    lines = [f"{r.name:28s} {score_of(r)}   {r.macs or 0:,} MACs" for r in records]
    emit(result, as_json=as_json, text="\n".join([*lines, str(paths["html"])]))


def score_of(record: Record) -> str:
    """The first of its metrics, which is the task's own."""
    return next((f"{name} {value:.1%}" for name, value in record.metrics.items()), "not measured")


def facts_of(record: Record) -> dict[str, Any]:
    last = record.run.get("last")
    return {
        "metrics": record.metrics, "last": last, "macs": record.macs, "params": record.params,
        "steps": record.run.get("steps"), "seconds": record.run.get("wall_s"),
    }  # fmt: skip


def one(folder: Path, recipe: str, teacher: str, options: dict[str, Any]) -> Record:
    """Distil, export, verify and time one student by a shipped recipe; its record."""
    from compress.cli.old_options import resolve_config
    from compress.cli.results import summarize_run
    from compress.cli.running import train_in_dir
    from compress.plan import prepare_training
    from profiles.records import read_records

    plan, method = resolve_config(Path(recipe), (), options, teacher={"model": teacher})
    print_status(f"\n{recipe}: {plan.training.time_limit:.0f} s")
    ready = prepare_training(plan, method)
    run = train_in_dir(ready, folder, devices=1, resume=False)
    assert run is not None  # one process is always the first
    _, text = summarize_run(run, ready, exported="onnx", reported=False)
    print_status(text)
    return replace(read_records(folder)[0], images={})
