"""`compress demo`: the whole path on embedded real data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.options import duration
from compress.cli.output import common, emit, say

if TYPE_CHECKING:
    from profiles.record import Record


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
    from compress.cli.measuring import Timed
    from compress.cli.reporting import make_report
    from compress.cli.results import model_record, timed
    from compress.models.folder import load_model_folder
    from compress.models.loading import load_model
    from profiles.record import append_records

    show = SHOWS[task]
    out = out or Path(show.folder)
    options = {"time_limit": time_limit or (QUICK_SECONDS if quick else None), "seed": seed}
    say(f"The teacher is {show.teacher}; its training data are not used. Both students see natural photographs only.")
    teacher, card = load_model(show.teacher)
    records: list[Record] = [one(out / name, recipe, show.teacher, options) for name, recipe in show.runs.items()]
    nets = {
        r.name: Timed(*load_model_folder(out / name / "best"), out / name / ONNX)
        for name, r in zip(show.runs, records, strict=True)
    }
    onnx = out / "teacher.onnx"
    records.insert(0, model_record(teacher, card, name=f"Teacher {card.architecture}", role="teacher", onnx=onnx))
    say("timing teacher and students in turns")
    records = timed(records, {records[0].name: Timed(teacher, card, onnx), **nets})
    append_records(out, records)
    paths, _ = make_report(out, [out], title=show.title)
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
    from compress.cli.options import read_options
    from compress.cli.results import finished
    from compress.cli.running import train_run
    from compress.plan import prepare
    from profiles.record import read_records

    plan, method = read_options(Path(recipe), (), options, teacher={"model": teacher})
    say(f"\n{recipe}: {plan.pace.time_limit:.0f} s")
    ready = prepare(plan, method)
    run = train_run(ready, folder, devices=1, resume=False)
    assert run is not None  # one process is always the first
    _, text = finished(run, ready, exported="onnx", reported=False)
    say(text)
    return replace(read_records(folder)[0], pictures={})
