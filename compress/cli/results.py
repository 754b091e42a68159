"""What a finished run is worth: its student counted, exported, timed, and written down as records and a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.cli.measuring import Timed
    from compress.engine.run import Run
    from compress.models.card import Card
    from compress.models.network import Network
    from compress.plan import Prepared
    from profiles.record import Record

GIGA = 1e9


def rehearsed(ready: Prepared) -> tuple[dict[str, Any], str]:
    """The estimate of `--dry-run`, for machines and for people."""
    from compress.models.blackbox import is_black_box
    from compress.rehearsal import estimate

    found = estimate(ready)
    result = asdict(found)
    size = "x".join(map(str, ready.card.image_size))
    total, a_step = clock(found.seconds), f"{found.seconds_per_step:.3f} s a step"
    if found.timed_images < (whole := ready.plan.pace.batch_size or 1):
        a_step += f" (reckoned from {found.timed_images} of its {whole} images)"
    state, kept = f"{found.state_bytes / 1e6:.0f} MB", f"{found.activation_bytes / 1e6:.0f} MB"
    flops = found.flops_per_step * found.steps + found.flops_per_synthesis * found.syntheses
    compute = f"{found.flops_per_step / GIGA:.2f} GFLOP a step, {flops / 1e12:.2f} TFLOP"
    hidden = "; the teacher's are not known" if any(is_black_box(net) for net, _ in ready.teachers) else ""
    lines = [
        f"{ready.plan.method['name']}: {ready.plan.student.model} on {found.device} in {found.precision}: all is well",
        f"compute    {compute} in all{hidden}",
        f"memory     {state} of weights and optimizer states, {kept} of activations",
        f"time       {a_step}, {found.steps} steps, {total} (without decoding and evaluation)",
        f"data       {found.unlabelled_images} training images at {size}",
    ]
    if found.syntheses:
        each = f"{found.flops_per_synthesis / GIGA:.2f} GFLOP and {found.seconds_per_synthesis:.1f} s"
        lines.insert(-1, f"images     made {found.syntheses} times, for {each} each, which is in the sums above")
    return result, "\n".join(lines)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def finished(run: Run, ready: Prepared, *, exported: str | None, reported: bool) -> tuple[dict[str, Any], str]:
    """Measure the best student, add it to records.jsonl (and the export, and the report), and say what came out."""
    from compress.cli.measuring import Timed
    from compress.cli.overlays import show_overlays
    from compress.cli.reporting import make_report
    from compress.models.blackbox import is_black_box
    from compress.models.folder import load_model_folder
    from profiles.record import append_records

    net, card = load_model_folder(run.folder / "best", own=ready.card.architecture)
    onnx = run.folder / "student.onnx" if exported is not None or reported else None
    records = [student_record(run, ready, net, card, onnx=onnx)]
    if reported:
        models = {records[0].name: Timed(net, card, onnx)}
        if ready.teachers:
            teacher, teacher_card = ready.teachers[0]
            name = f"Teacher {teacher_card.architecture}"
            records.insert(0, model_record(teacher, teacher_card, name=name, role="teacher"))
            if not is_black_box(teacher):
                models[name] = Timed(teacher, teacher_card)
        records = timed(records, models)
    record = records[-1]
    append_records(run.folder, records)
    shown = {"teacher": ready.teachers[0][0]} if ready.teachers else {}
    overlays = show_overlays(run.folder, {**shown, record.name: net}, card, ready.plan.data)
    result: dict[str, Any] = {
        "run": str(run.folder), "student": str(run.folder / "best"), "metrics": card.metrics, "last": run.metrics,
        "best_step": card.provenance.get("step"), "steps": run.step, "seconds": record.run["wall_s"],
        "images_per_s": record.run["images_per_s"], "peak_bytes": record.run["peak_bytes"],
        "macs": record.macs, "flops": record.flops, "params": record.params, "unsupported": record.unsupported,
        "export": record.export, "latencies": [asdict(one) for one in record.latencies],
        "overlays": None if overlays is None else str(overlays),
    }  # fmt: skip
    lines = summary(result)
    if overlays is not None:
        lines.append(f"overlays   {overlays}")
    if reported:
        paths, _ = make_report(run.folder, [run.folder], title=f"{ready.plan.method['name']}: {card.architecture}")
        result["report"] = {kind: str(path) for kind, path in paths.items()}
        lines.append(f"report     {paths['html']}")
    return result, "\n".join(lines)


def timed(records: Sequence[Record], models: Mapping[str, Timed]) -> list[Record]:
    """The records with the latencies of their models, measured in turns within one run."""
    from dataclasses import replace

    from compress.cli.measuring import time_models

    latencies = time_models(models)
    return [replace(record, latencies=latencies.get(record.name, [])) for record in records]


def summary(result: dict[str, Any]) -> list[str]:
    scores = "  ".join(f"{k} {v:.2%}" for k, v in of_all(result["metrics"]).items()) or "not measured (no --val)"
    step = f"step {result['best_step']} of {result['steps']}"
    macs, flops = result["macs"] / GIGA, result["flops"] / GIGA
    lines = [
        f"student    {result['student']}  ({step}, {clock(result['seconds'])})",
        f"score      {scores}",
        f"cost       {macs:.4f} GMAC = {flops:.4f} GFLOP, {result['params'] / 1e6:.3f} M parameters",
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


def of_all(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those of single classes."""
    return {name: value for name, value in metrics.items() if "/" not in name}


def student_record(run: Run, ready: Prepared, net: Network, card: Card, *, onnx: Path | None) -> Record:
    """The record of a run's student: what it scored, costs, and how it was made."""
    from dataclasses import replace

    from compress.methods import display_name

    plan, seconds = ready.plan, run.elapsed
    method = display_name(plan.method["name"])
    record = model_record(
        net, card, name=f"{method} {card.architecture}", role="student" if ready.teachers else "model", onnx=onnx,
    )  # fmt: skip
    lines = run.journal.lines("evaluation") if run.journal is not None else []
    history = [
        {"step": line["step"], "seconds": line["seconds"], **{k: line[k] for k in of_all(run.metrics)}}
        for line in lines
    ]
    made = {
        "steps": run.step, "wall_s": round(seconds, 2), "seed": plan.pace.seed, "batch_size": plan.pace.batch_size,
        "images_per_s": round(run.step * run.batch_size / seconds, 2), "peak_bytes": run.peak_bytes,
        "teacher": f"Teacher {ready.teachers[0][1].architecture}" if ready.teachers else None,
        "precision": run.place.precision, "ood": plan.data.unlabelled or plan.data.labelled,
        "budget_s": plan.pace.time_limit,
        "data_wait_share": round(run.data_wait_share, 5), "command": shlex.join(["compress", *sys.argv[1:]]),
        "settings": plan.method, "history": history, "last": run.metrics, "best_step": card.provenance.get("step"),
    }  # fmt: skip
    return replace(record, method=method, run=made)


def model_record(net: Any, card: Card, *, name: str, role: str, onnx: Path | None = None) -> Record:
    """Count a network, unless it shows nothing to count, and write it as verified ONNX where a path is given."""
    from compress.cli.measuring import export_model
    from compress.models.blackbox import is_black_box
    from compress.models.folder import versions
    from compress.tasks import task_of
    from profiles import flops, machine
    from profiles.record import Record

    example = task_of(card).example(1)
    counted = {} if is_black_box(net) else asdict(flops.count(net.cpu().eval(), example))
    keys = ("macs", "flops", "params", "activations", "macs_torch", "unsupported")
    costs = {key: counted[key] for key in keys if counted}
    export = asdict(export_model(net, card, onnx)) if onnx is not None else None
    return Record(
        name=name, role=role, architecture=card.architecture, task=card.task, image_size=card.image_size,  # pyright: ignore[reportArgumentType]
        metrics=card.metrics, **costs, size_bytes=onnx.stat().st_size if onnx is not None else None,
        export=export, machine=machine.describe(), versions=versions(),
    )  # fmt: skip
