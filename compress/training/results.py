"""Results of a finished run: cost, export and latency of its student, recorded in the run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.analysis.segmentation_examples import save_segmentation_examples
from compress.measure import TimedModel, export_verified, time_models
from compress.methods import display_name
from compress.models.card import ModelCard
from compress.models.model_input import ModelInput
from compress.models.network import Network
from compress.models.onnx_teacher import is_black_box
from compress.models.serialization import load_model_directory, package_versions
from compress.tasks import task_for_card
from compress.training.data import load_validation_images
from compress.training.setup import TrainingSetup
from compress.training.teacher_score import read_teacher_metrics

if TYPE_CHECKING:
    from exporters.onnx_export import OnnxExportResult
    from profiles.latency.benchmark import Latency
    from profiles.records import Record

ONNX_NAME = "student.onnx"


@dataclass(frozen=True)
class TrainingSummary:
    """Numbers of a finished training; scalars, so that a process can hand them over as JSON."""

    steps: int
    seconds: float  #: training time of all sessions
    batch_size: int  #: images per step, summed over processes
    precision: str
    metrics: dict[str, float]  #: metrics of the last evaluation
    peak_bytes: int | None  #: peak memory of this session; None if unknown
    data_wait_share: float  #: share of this session's time spent waiting for data
    history: list[dict[str, float]]  #: step, seconds and metrics of each evaluation
    rollbacks: list[dict[str, Any]]  #: returns to an earlier state (see `Run`)


@dataclass(frozen=True)
class RunResult:
    """A finished training run."""

    output_dir: Path  #: run directory
    best: Path  #: model directory of the best student
    method: str  #: name of the method
    student: str  #: architecture of the student
    metrics: dict[str, float]  #: metrics of the best student; empty without validation data
    last_metrics: dict[str, float]  #: metrics at the end of the run
    teacher_metrics: dict[str, float] | None  #: metrics of the teacher on the same images; null if there are none
    teacher_input: ModelInput | None  #: how the teacher reads images, and where these facts come from
    best_step: int | None  #: step of the best student
    #: returns to an earlier state after a divergence: step, to_step, learning_rate_factor, reason
    rollbacks: list[dict[str, Any]]
    steps: int  #: iterations of the run
    seconds: float  #: training time of all sessions
    batch_size: int  #: images per step, summed over processes
    micro_batch: int | None  #: images per forward pass of a process; null: the whole batch
    images_per_s: float  #: steps times batch size, per second
    peak_bytes: int | None  #: peak memory of the training; null if unknown
    macs: int | None  #: multiply-adds of the student per image
    flops: int | None  #: FLOPs of the student per image: twice the MACs
    params: int | None  #: parameters of the student
    unsupported: dict[str, int]  #: operators that were not counted, with their number of calls
    export: OnnxExportResult | None  #: verified ONNX file of the best student, if requested
    latencies: list[Latency]  #: latencies of the student, if a report was requested
    overlays: Path | None  #: image of segmentation examples
    report: dict[str, Path] | None  #: files of the report by kind, if requested


def summarize_run(
    setup: TrainingSetup, run_dir: Path, summary: TrainingSummary, *, export: Literal["onnx"] | None = None,
    report: bool = False, command: str = "", progress: Callable[[str], None] = lambda _: None,
) -> RunResult:  # fmt: skip
    """Measure the best student of a finished run and append it to records.jsonl; optionally export and report."""
    from profiles.records import append_records
    from profiles.report.build import write_run_report

    teacher_metrics = read_teacher_metrics(run_dir)
    net, card = load_model_directory(run_dir / "best", user_code=setup.card.architecture)
    onnx = run_dir / ONNX_NAME if export is not None or report else None
    exported = None if onnx is None else export_verified(net, card, onnx)
    record = create_student_record(setup, summary, net, card, export=exported, command=command)
    records, models = [record], {record.name: TimedModel(net, card, onnx)}
    if report:
        for teacher, teacher_card in setup.teachers:
            name = f"Teacher {teacher_card.architecture}"
            scored = replace(teacher_card, metrics=teacher_metrics or teacher_card.metrics)
            records.insert(0, create_model_record(teacher, scored, name=name, role="teacher"))
            if not is_black_box(teacher):
                models[name] = TimedModel(teacher, teacher_card)
        records = add_latencies(records, models)
        record = records[-1]
    append_records(run_dir, records)
    overlays = None
    if card.predicts_maps and setup.config.data.validation is not None:
        images = load_validation_images(setup.config.data, card, progress=progress)
        columns = {"teacher": setup.teachers[0][0]} if setup.teachers else {}
        overlays = save_segmentation_examples(run_dir, images, {**columns, record.name: net}, card)
    title = f"{setup.config.method['name']}: {card.architecture}"
    files = write_run_report(run_dir, [run_dir], title=title, progress=progress).files if report else None
    return RunResult(
        output_dir=run_dir, best=run_dir / "best", method=setup.config.method["name"], student=card.architecture,
        metrics=card.metrics, last_metrics=summary.metrics,
        teacher_metrics=teacher_metrics, teacher_input=setup.teacher_input, best_step=card.provenance.get("step"),
        rollbacks=summary.rollbacks, steps=summary.steps,
        seconds=record.run["wall_s"], batch_size=summary.batch_size, micro_batch=record.run["micro_batch"],
        images_per_s=record.run["images_per_s"], peak_bytes=summary.peak_bytes,
        macs=record.macs, flops=record.flops, params=record.params, unsupported=record.unsupported, export=exported,
        latencies=record.latencies, overlays=overlays, report=files,
    )  # fmt: skip


def overall_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics without those of single classes."""
    return {name: value for name, value in metrics.items() if "/" not in name}


def add_latencies(records: Sequence[Record], models: Mapping[str, TimedModel]) -> list[Record]:
    """Return the records with the latencies of their models, timed interleaved."""
    latencies = time_models(models)
    return [replace(record, latencies=latencies.get(record.name, [])) for record in records]


def create_student_record(
    setup: TrainingSetup, summary: TrainingSummary, net: Network, card: ModelCard, *, export: OnnxExportResult | None,
    command: str,
) -> Record:  # fmt: skip
    """Create the record of a run's student: scores, cost and how it was trained."""
    config = setup.config
    method = display_name(config.method["name"])
    role = "student" if setup.teachers else "model"
    record = create_model_record(net, card, name=f"{method} {card.architecture}", role=role, export=export)
    run = {
        "steps": summary.steps, "wall_s": round(summary.seconds, 2), "seed": config.training.seed,
        "batch_size": config.training.batch_size, "micro_batch": config.training.micro_batch,
        "images_per_s": round(summary.steps * summary.batch_size / summary.seconds, 2),
        "peak_bytes": summary.peak_bytes,
        "teacher": f"Teacher {setup.teachers[0][1].architecture}" if setup.teachers else None,
        "precision": summary.precision, "ood": config.data.unlabeled or config.data.labeled,
        "budget_s": config.training.time_limit, "data_wait_share": round(summary.data_wait_share, 5),
        "command": command, "settings": config.method, "history": summary.history, "last": summary.metrics,
        "best_step": card.provenance.get("step"), "rollbacks": summary.rollbacks,
    }  # fmt: skip
    return replace(record, method=method, run=run)


def create_model_record(
    net: Any, card: ModelCard, *, name: str, role: str, export: OnnxExportResult | None = None
) -> Record:
    """Create the record of a network with its FLOPs (unknown for ONNX files) and its exported file."""
    from profiles.flops.counter import count_flops
    from profiles.latency.machine import describe_machine
    from profiles.records import Record

    example = task_for_card(card).example_input(1)
    counts = {} if is_black_box(net) else asdict(count_flops(net.cpu().eval(), example))
    keys = ("macs", "flops", "params", "activations", "macs_torch", "unsupported")
    return Record(
        name=name, role=role, architecture=card.architecture, task=card.task, image_size=card.image_size,  # pyright: ignore[reportArgumentType]
        metrics=card.metrics, **{key: counts[key] for key in keys if counts},
        size_bytes=None if export is None else Path(export.path).stat().st_size,
        export=None if export is None else asdict(export), machine=describe_machine(), versions=package_versions(),
    )  # fmt: skip
