"""What a finished run is worth: its student counted, exported, timed, and written down as records and a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.engine.run import Run
    from compress.measure import TimedModel
    from compress.models.card import ModelCard
    from compress.models.network import Network
    from compress.training.setup import TrainingSetup
    from profiles.records import Record

GIGA = 1e9


def summarize_estimate(ready: TrainingSetup) -> tuple[dict[str, Any], str]:
    """The estimate of `--dry-run`, for machines and for people."""
    from compress.models.onnx_teacher import is_black_box
    from compress.training.estimate import estimate_cost

    found = estimate_cost(ready)
    result = asdict(found)
    size = "x".join(map(str, ready.card.image_size))
    total, a_step = format_duration(found.seconds), f"{found.seconds_per_step:.3f} s a step"
    if found.timed_images < (whole := ready.config.training.batch_size or 1):
        a_step += f" (reckoned from {found.timed_images} of its {whole} images)"
    state, kept = f"{found.state_bytes / 1e6:.0f} MB", f"{found.activation_bytes / 1e6:.0f} MB"
    counter = found.flops_per_step * found.steps + found.flops_per_synthesis * found.syntheses
    compute = f"{found.flops_per_step / GIGA:.2f} GFLOP a step, {counter / 1e12:.2f} TFLOP"
    hidden = "; the teacher's are not known" if any(is_black_box(net) for net, _ in ready.teachers) else ""
    lines = [
        f"{ready.config.method['name']}: {ready.config.student.model} on {found.device} in {found.precision}: all is well",
        f"compute    {compute} in all{hidden}",
        f"memory     {state} of weights and optimizer states, {kept} of activations",
        f"time       {a_step}, {found.steps} steps, {total} (without decoding and evaluation)",
        f"data       {found.training_images} training images at {size}",
    ]
    if found.syntheses:
        each = f"{found.flops_per_synthesis / GIGA:.2f} GFLOP and {found.seconds_per_synthesis:.1f} s"
        lines.insert(-1, f"images     made {found.syntheses} times, for {each} each, which is in the sums above")
    return result, "\n".join(lines)


def format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def summarize_run(run: Run, ready: TrainingSetup, *, exported: str | None, reported: bool) -> tuple[dict[str, Any], str]:
    """Measure the best student, add it to records.jsonl (and the export, and the report), and say what came out."""
    from compress.analysis.segmentation_examples import save_overlays
    from compress.measure import TimedModel
    from compress.models.onnx_teacher import is_black_box
    from compress.models.serialization import load_model_directory
    from profiles.records import append_records
    from profiles.report.build import write_run_report

    net, card = load_model_directory(run.run_dir / "best", user_code=ready.card.architecture)
    onnx = run.run_dir / "student.onnx" if exported is not None or reported else None
    records = [create_student_record(run, ready, net, card, onnx=onnx)]
    if reported:
        models = {records[0].name: TimedModel(net, card, onnx)}
        if ready.teachers:
            teacher, teacher_card = ready.teachers[0]
            name = f"Teacher {teacher_card.architecture}"
            records.insert(0, create_model_record(teacher, teacher_card, name=name, role="teacher"))
            if not is_black_box(teacher):
                models[name] = TimedModel(teacher, teacher_card)
        records = add_latencies(records, models)
    record = records[-1]
    append_records(run.run_dir, records)
    shown = {"teacher": ready.teachers[0][0]} if ready.teachers else {}
    overlays = save_overlays(run.run_dir, {**shown, record.name: net}, card, ready.config.data)
    result: dict[str, Any] = {
        "run": str(run.run_dir), "student": str(run.run_dir / "best"), "metrics": card.metrics, "last": run.metrics,
        "best_step": card.provenance.get("step"), "steps": run.step, "seconds": record.run["wall_s"],
        "images_per_s": record.run["images_per_s"], "peak_bytes": record.run["peak_bytes"],
        "macs": record.macs, "flops": record.flops, "params": record.params, "unsupported": record.unsupported,
        "export": record.export, "latencies": [asdict(one) for one in record.latencies],
        "overlays": None if overlays is None else str(overlays),
    }  # fmt: skip
    lines = format_run(result)
    if overlays is not None:
        lines.append(f"overlays   {overlays}")
    if reported:
        title = f"{ready.config.method['name']}: {card.architecture}"
        paths = write_run_report(run.run_dir, [run.run_dir], title=title).files
        result["report"] = {kind: str(path) for kind, path in paths.items()}
        lines.append(f"report     {paths['html']}")
    return result, "\n".join(lines)


def add_latencies(records: Sequence[Record], models: Mapping[str, TimedModel]) -> list[Record]:
    """The records with the latencies of their models, measured in turns within one run."""
    from dataclasses import replace

    from compress.measure import time_models

    latencies = time_models(models)
    return [replace(record, latencies=latencies.get(record.name, [])) for record in records]


def format_run(result: dict[str, Any]) -> list[str]:
    scores = "  ".join(f"{k} {v:.2%}" for k, v in overall_metrics(result["metrics"]).items()) or "not measured (no --val)"
    step = f"step {result['best_step']} of {result['steps']}"
    macs, counter = result["macs"] / GIGA, result["flops"] / GIGA
    lines = [
        f"student    {result['student']}  ({step}, {format_duration(result['seconds'])})",
        f"score      {scores}",
        f"cost       {macs:.4f} GMAC = {counter:.4f} GFLOP, {result['params'] / 1e6:.3f} M parameters",
    ]
    for operator, calls in result["unsupported"].items():
        lines.append(f"           not counted: {operator}, {calls} times")
    if result["export"] is not None:
        parity = result["export"]["parity"]
        of = "" if parity.get("miou") is None else "the pixels of "
        lines.append(
            f"export     {result['export']['path']}  (difference {parity['max_abs']:.1e}, same answer on "
            f"{parity['top1_agreement']:.2%} of {of}{parity['images']} images)"
        )
    return lines


def overall_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those of single classes."""
    return {name: value for name, value in metrics.items() if "/" not in name}


def create_student_record(run: Run, ready: TrainingSetup, net: Network, card: ModelCard, *, onnx: Path | None) -> Record:
    """The record of a run's student: what it scored, costs, and how it was made."""
    from dataclasses import replace

    from compress.methods import display_name

    plan, seconds = ready.config, run.elapsed
    method = display_name(plan.method["name"])
    record = create_model_record(
        net, card, name=f"{method} {card.architecture}", role="student" if ready.teachers else "model", onnx=onnx,
    )  # fmt: skip
    lines = run.metrics_logger.read_records("evaluation") if run.metrics_logger is not None else []
    history = [
        {"step": line["step"], "seconds": line["seconds"], **{k: line[k] for k in overall_metrics(run.metrics)}}
        for line in lines
    ]
    made = {
        "steps": run.step, "wall_s": round(seconds, 2), "seed": plan.training.seed, "batch_size": plan.training.batch_size,
        "images_per_s": round(run.step * run.batch_size / seconds, 2), "peak_bytes": run.peak_memory_bytes,
        "teacher": f"Teacher {ready.teachers[0][1].architecture}" if ready.teachers else None,
        "precision": run.accelerator.precision, "ood": plan.data.unlabeled or plan.data.labeled,
        "budget_s": plan.training.time_limit,
        "data_wait_share": round(run.data_wait_share, 5), "command": shlex.join(["compress", *sys.argv[1:]]),
        "settings": plan.method, "history": history, "last": run.metrics, "best_step": card.provenance.get("step"),
    }  # fmt: skip
    return replace(record, method=method, run=made)


def create_model_record(net: Any, card: ModelCard, *, name: str, role: str, onnx: Path | None = None) -> Record:
    """Count a network, unless it shows nothing to count, and write it as verified ONNX where a path is given."""
    from compress.measure import export_verified
    from compress.models.onnx_teacher import is_black_box
    from compress.models.serialization import package_versions
    from compress.tasks import task_for_card
    from profiles.flops.counter import counter
    from profiles.latency import machine
    from profiles.records import Record

    example = task_for_card(card).example_input(1)
    counted = {} if is_black_box(net) else asdict(counter.count_flops(net.cpu().eval(), example))
    keys = ("macs", "flops", "params", "activations", "macs_torch", "unsupported")
    costs = {key: counted[key] for key in keys if counted}
    export = asdict(export_verified(net, card, onnx)) if onnx is not None else None
    return Record(
        name=name, role=role, architecture=card.architecture, task=card.task, image_size=card.image_size,  # pyright: ignore[reportArgumentType]
        metrics=card.metrics, **costs, size_bytes=onnx.stat().st_size if onnx is not None else None,
        export=export, machine=machine.describe_machine(), versions=package_versions(),
    )  # fmt: skip
