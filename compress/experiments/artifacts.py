"""Train the student of a cell, then export, verify and measure its files; benchmark all files of a sweep together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.engine.signals import StopSignal
from compress.errors import CompressError, Interrupted
from compress.experiments.cells import FILES, PRUNED, Cell, ExportSpec, FileType, RunSpec
from compress.experiments.pruning import TENTHS, scores_by_budget_fraction
from compress.experiments.runner import Progress, exit_reason, run_compress, wait_until_unlocked
from compress.files import read_json_object, write_json
from compress.own_files import LOCK

if TYPE_CHECKING:
    from compress.experiments.config import FilePrecision, Format
    from compress.experiments.pruning import PruningMonitor
    from compress.models.card import ModelCard
    from compress.training.config import DataConfig
    from exporters.api import RejectedExport
    from exporters.artifacts import ExportResult
    from profiles.latency.benchmark import Latency

#: in the output directory of a sweep: which files were benchmarked together
TIMED = "timed.json"


def train_run(run: RunSpec, progress: Progress, *, should_stop: Callable[[], bool] | None = None) -> bool:
    """Train a student in its own process; a stopped run continues.

    Returns:
        Whether the training reached its end; False if `should_stop` stopped it.

    Raises:
        CompressError: the training failed.
    """
    from compress.training.trust import consent_options

    wait_until_unlocked(run.directory / LOCK)
    progress(f"{run.directory.name}: training {run.student} with {run.name}, seed {run.seed}")
    recipe, stopped = run.write_recipe(), False
    if run.has_local_objects:
        train_in_process(run, recipe, progress)
        return True

    def check() -> bool:
        nonlocal stopped
        stopped = stopped or (should_stop is not None and should_stop())
        return stopped

    arguments = ["distill", "--recipe", str(recipe), "--out", str(run.directory), "--json"]
    arguments += consent_options(run.train_config)
    code, last_line = run_compress(arguments, progress, should_stop=check)
    if code and not stopped:
        raise CompressError(exit_reason(code, last_line))
    return not code


def train_in_process(run: RunSpec, recipe: Path, progress: Progress) -> None:
    """Train a student in this process, because others do not have its modules and data sets."""
    from compress.config import load_yaml
    from compress.training.launch import run_training
    from compress.training.setup import load_config

    config, method = load_config(load_yaml(recipe), allow_code=True, trust_pickle=True)  # as the user allowed
    try:
        run_training(config, method, output_dir=run.directory, progress=progress)
    except Interrupted as error:
        raise StopSignal(error.exit_code - 128) from error


def train_cell(cell: Cell, monitor: PruningMonitor | None, progress: Progress) -> None:
    """Train the student of a cell unless it is trained, and make its files.

    Raises:
        CompressError: the training or an export failed.
    """
    if not cell.run.is_finished:
        verdict: dict[str, Any] | None = None

        def should_stop() -> bool:
            nonlocal verdict
            verdict = verdict or report_scores(cell, monitor)
            return verdict is not None

        if not train_run(cell.run, progress, should_stop=should_stop if monitor is not None else None):
            write_json(cell.run.directory / PRUNED, verdict or {})
            progress(f"{cell.name}: stopped early, other trainings of {cell.run.student} were better")
            return
        if monitor is not None:
            report_scores(cell, monitor)
            monitor.finish(cell.name, cell.read_score())
        (cell.run.directory / PRUNED).unlink(missing_ok=True)
    build_artifacts(cell.files, progress)


def report_scores(cell: Cell, monitor: PruningMonitor | None) -> dict[str, Any] | None:
    """Report the new scores of a training; return the score that stops it, if any."""
    if monitor is None:
        return None
    training = cell.run.train_config.training
    for tenth, line in scores_by_budget_fraction(cell.run.directory, training).items():
        if monitor.report(cell.name, tenth, line["score"]) and tenth < TENTHS:
            return {"tenth": tenth, **line}
    return None


def build_teacher(spec: ExportSpec, progress: Progress) -> None:
    """Measure the teacher, count its operations, and make its files."""
    from compress.training.results import create_model_record
    from profiles.records import append_records

    if spec.find_record() is None:
        network, card = load_spec_model(spec)
        record = create_model_record(network, card, name=f"Teacher {card.architecture}", role="teacher")
        metrics = score_network(network, card, spec.data, progress)
        run = {"teacher": spec.model.model, "val": spec.data.validation, "identity": spec.identity}
        append_records(spec.directory, [replace(record, metrics=metrics, run=run)])
    build_artifacts(spec, progress)


def load_spec_model(spec: ExportSpec) -> tuple[Any, ModelCard]:
    """Load the network that the files are made of, and its card."""
    from compress.training.config import TrainConfig
    from compress.training.setup import load_teachers

    (pair,) = load_teachers(TrainConfig(task=spec.task, teachers=[spec.model]))
    return pair


def score_network(network: Any, card: ModelCard, data: DataConfig, progress: Progress) -> dict[str, float]:
    """Measure a network in PyTorch on the validation images."""
    from compress.engine.accelerator import create_accelerator
    from compress.engine.trainable import FrozenModel
    from compress.training.data import create_scorer, load_validation_images

    accelerator = create_accelerator("cpu", "32")
    images = load_validation_images(data, card, progress=progress)
    return create_scorer(images, card, accelerator)(FrozenModel(network, accelerator))


def build_artifacts(spec: ExportSpec, progress: Progress) -> None:
    """Export, verify and measure the missing files, and record them.

    A file whose outputs differ too much from PyTorch is not kept; the reason is.

    Raises:
        CompressError: no file could be made.
    """
    from compress.evaluation import evaluate

    outcome = spec.read_outcome()
    for file_types in group_exports(spec, outcome):
        made, rejected = export_files(spec, file_types, progress)
        outcome["made"] += [artifact_entry(result, spec.directory) for result in made]
        outcome["rejected"] += [asdict(one) for one in rejected]
        write_json(spec.directory / FILES, outcome)
    for entry in outcome["made"]:
        if entry["is_measured"]:
            continue
        if entry["not_run"] is None:
            entry["metrics"] = evaluate(
                str(spec.directory / entry["file"]), spec.data.validation, data_root=spec.data.root,
                max_unreadable=spec.data.max_unreadable, label_order=spec.data.label_order, runtime=None,
                record=None, progress=progress,
            ).metrics  # fmt: skip
        append_file_record(spec, entry)
        entry["is_measured"] = True
        write_json(spec.directory / FILES, outcome)


def group_exports(spec: ExportSpec, outcome: Mapping[str, Any]) -> list[list[FileType]]:
    """Group the missing files into exports: all formats x precisions, or one format each."""
    missing = spec.list_missing(outcome)
    if len(missing) == len(spec.file_types):
        return [missing] if missing else []
    return [[pair for pair in missing if pair[0] == name] for name in dict.fromkeys(pair[0] for pair in missing)]


def export_files(
    spec: ExportSpec, file_types: Sequence[FileType], progress: Progress
) -> tuple[list[ExportResult], list[RejectedExport]]:
    """Export a model; int8 is kept even if it is slower, for the comparison."""
    import torch

    from compress.data.calibration import open_calibration_images
    from compress.evaluation import create_file_scorer
    from compress.measure import default_image_source, load_comparison_images
    from compress.models.metadata import card_to_metadata
    from compress.training.generator_samples import iter_generator_samples
    from exporters.api import artifact_name, export_all, graph_metadata
    from exporters.artifacts import AccuracyBudget, ExportSettings, Int8Options
    from exporters.onnx_export import create_reference

    network, card = load_spec_model(spec)
    images = load_comparison_images(default_image_source(card), card, root=spec.data.root)
    reference = create_reference(network, torch.zeros(1, 3, *card.image_size), images=images, dynamic_batch=True)
    formats: list[Format] = list(dict.fromkeys(one for one, _ in file_types))
    precisions: list[FilePrecision] = list(dict.fromkeys(one for _, one in file_types))
    output = spec.directory / "files"
    if len(file_types) == 1:
        output /= artifact_name(*file_types[0])
    settings = ExportSettings()
    if spec.max_drop is not None and precisions != ["fp32"]:
        score = create_file_scorer(spec.data.validation, card, spec.data.root, progress)
        settings = replace(settings, budget=AccuracyBudget(spec.max_drop / 100, score))
    with contextlib.ExitStack() as stack:
        if "int8" in precisions:
            calibration = stack.enter_context(open_calibration_images(
                spec.calibration, spec.model.model, card, spec.calibration_images, root=spec.data.root,
                generate=partial(iter_generator_samples, progress=progress, **spec.consent), progress=progress,
            ))  # fmt: skip
            settings = replace(settings, int8=Int8Options(calibration.batches))
        outcome = export_all(
            reference, output, formats, precisions, metadata={**card_to_metadata(card), **graph_metadata(reference)},
            settings=settings, progress=progress,
        )  # fmt: skip
    return outcome.artifacts, outcome.rejected


def artifact_entry(result: ExportResult, directory: Path) -> dict[str, Any]:
    """Describe an exported file for `files.json`; it is not measured yet."""
    file = str(Path(result.path).relative_to(directory))
    return {**asdict(result), "file": file, "metrics": {}, "not_run": result.unverified, "is_measured": False}


def append_file_record(spec: ExportSpec, entry: Mapping[str, Any]) -> None:
    """Add the record of a file to those of its model."""
    from profiles.records import append_records, without_history

    record = spec.find_record()
    assert record is not None  # training and build_teacher write it before files are made
    export = {key: value for key, value in entry.items() if key not in ("metrics", "not_run", "file", "is_measured")}
    append_records(spec.directory, [replace(
        record, format=entry["format"], precision=entry["precision"], metrics=entry["metrics"],
        size_bytes=entry["bytes"], export=export, latencies=[], run=without_history(record.run), images={}, at="",
    )])  # fmt: skip


def read_timing(output_dir: Path) -> dict[str, Any]:
    """Read which files were benchmarked together, and which could not be."""
    return read_json_object(output_dir / TIMED)


def benchmark_files(
    specs: Sequence[ExportSpec], output_dir: Path, card: ModelCard, batch_sizes: Sequence[int],
    duration: float, progress: Progress,
) -> None:  # fmt: skip
    """Time all files in one interleaved benchmark and record their latencies.

    Nothing is timed if these very files have been timed together before.
    """

    from exporters.errors import RunnerError
    from profiles.latency.benchmark import benchmark_interleaved
    from profiles.latency.cases import create_candidate, preserve_threads

    files = [(spec, one) for spec in specs for one in spec.read_outcome()["made"] if one["not_run"] is None]
    request = {
        "files": {f"{spec.directory.name}/{one['file']}": one["sha256"] for spec, one in files},
        "batch_sizes": list(batch_sizes), "duration": duration,
    }  # fmt: skip
    if read_timing(output_dir).get("request") == request:
        return
    candidates, failed = {}, {}
    for i, (spec, one) in enumerate(files):
        try:
            path = spec.directory / one["file"]
            loaded = {(i, size): create_candidate(path, card.image_size, size) for size in batch_sizes}
        except RunnerError as error:
            failed[f"{spec.directory.name}/{one['file']}"] = str(error)
            continue
        candidates |= loaded
    if candidates:
        progress(f"timing {len(files) - len(failed)} files in one benchmark")
        with preserve_threads():
            latencies = benchmark_interleaved(candidates, duration_s=duration).latencies
        for i, (spec, one) in enumerate(files):
            append_latencies(spec, one, [latency for (j, _), latency in latencies.items() if j == i])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(output_dir / TIMED, {"request": request, "not_timed": failed, "at": now})


def append_latencies(spec: ExportSpec, entry: Mapping[str, Any], latencies: Sequence[Latency]) -> None:
    """Add the latencies of a file to the records of its model."""
    from compress.models.serialization import package_versions
    from profiles.latency.machine import describe_machine
    from profiles.records import Record, append_records

    record = spec.find_record()
    if record is None or not latencies:
        return
    seed = {} if record.run.get("seed") is None else {"seed": record.run["seed"]}
    append_records(spec.directory, [Record(
        record.name, record.role, record.method, task=record.task, format=entry["format"],
        precision=entry["precision"], latencies=list(latencies), run=seed, machine=describe_machine(),
        versions=package_versions(),
    )])  # fmt: skip
