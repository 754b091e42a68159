"""Run a sweep: train and measure every cell, benchmark all files together, and write the trade-off report."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import config
from compress.data.calibration import SYNTHETIC
from compress.errors import Interrupted, UsageError
from compress.experiments.artifacts import benchmark_files, build_teacher, read_timing, train_cell
from compress.experiments.cells import TEACHER, Cell, ExportSpec, require_resume, require_shareable
from compress.experiments.config import SWEEP_FILE, SweepConfig
from compress.experiments.grid import Grid, SkippedMethod, build_grid
from compress.experiments.pruning import PruningMonitor, scores_by_budget_fraction
from compress.experiments.runner import Job, JobOutcomes, Progress, start_executor
from compress.files import write_text

if TYPE_CHECKING:
    from compress.models.model_input import ModelInput
    from profiles.report.build import ReportResult

NOTES = (
    "Each student is the best of its training run. It was selected on the images that it is measured on, so its score "
    "is slightly optimistic, and more so if the run fluctuates.",
    "All files, including the teacher's, were timed in one interleaved benchmark, so their ratios are comparable.",
)


@dataclass(frozen=True)
class FileResult:
    """An exported file of a cell."""

    format: str  #: onnx, openvino, tensorrt or tensorrt-rtx
    precision: str  #: fp32, fp16, bf16 or int8
    path: Path  #: of the file
    bytes: int  #: size of the file
    metrics: dict[str, float]  #: of the file itself, in its own runtime; empty if that runtime is not here
    not_run: str | None  #: why it was not run here


@dataclass(frozen=True)
class RejectedFile:
    """A file that was not kept."""

    format: str  #: as in `compress export`
    precision: str  #: as in `compress export`
    reason: str  #: why it was not kept


@dataclass(frozen=True)
class CellResult:
    """A student, a method and a seed, and the files of the trained student."""

    cell: str  #: name of the cell and of its directory
    student: str  #: architecture
    method: str  #: as in the recipe
    name: str  #: display name of the method
    seed: int  #: of the run
    directory: Path  #: of the run
    state: str  #: finished, pruned, failed or waiting
    error: str | None  #: error message of a cell that failed
    score: float | None  #: of the student in PyTorch; of a pruned run the last one
    steps: int | None  #: training steps
    seconds: float | None  #: training time
    pruned_after: float | None  #: share of the budget after which the training was stopped
    files: list[FileResult]  #: exported files
    rejected: list[RejectedFile]  #: files that were not kept


@dataclass(frozen=True)
class SweepResult:
    """Everything that a sweep made. A cell that failed is in `failed`."""

    output_dir: Path  #: of the sweep
    cells: list[CellResult]  #: seed by seed
    skipped: list[SkippedMethod]  #: methods that cannot run here
    failed: dict[str, str]  #: error messages by cell; `teacher` if the teacher could not be measured
    summary: str | None  #: which model to deploy
    best: str | None  #: name of that model
    metric: str | None  #: accuracy or miou
    caveats: list[str]  #: of the report
    report: dict[str, Path]  #: paths by kind: html, markdown, csv, json
    teacher_input: ModelInput  #: how the teacher reads images, and where these facts come from


@dataclass(frozen=True)
class PlannedCell:
    """A cell that a sweep would run."""

    cell: str  #: name of the cell
    student: str  #: architecture
    method: str  #: as in the recipe
    name: str  #: display name of the method
    seed: int  #: of the run
    directory: Path  #: of the run
    state: str  #: waiting, finished or pruned
    seconds: float  #: remaining training time: the time limit, or an estimate
    files: list[str]  #: format and precision of each file


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would run (`--dry-run`)."""

    cells: list[PlannedCell]  #: seed by seed
    skipped: list[SkippedMethod]  #: methods that cannot run here
    trainings: int  #: trainings that would run
    artifacts: int  #: files of all cells
    seconds: float  #: total training time
    workers: int  #: that would share it
    teacher_input: ModelInput  #: how the teacher reads images, and where these facts come from


def run_sweep(
    sweep: SweepConfig, *, output_dir: str | Path, workers: int | None = None, on: str | None = None,
    resume: bool | None = None, command: str = "", progress: Progress = lambda _: None,
) -> SweepResult:  # fmt: skip
    """Train every student with every method and seed, measure all files, and write the report.

    Finished cells are not run again, so the same call continues after an interruption.

    Args:
        sweep: Validated config; see `resolve_sweep_config`.
        output_dir: Directory of the sweep. Each cell has a subdirectory.
        workers: Cells that run at a time. Default: 1, or as many as fit on the cluster.
        on: Address of a Ray cluster: HOST:PORT or auto. Default: this machine.
        resume: True requires a sweep in `output_dir`. False requires that there is none. Default: continue if possible.
        command: Command line to write into the report.
        progress: Receives one line of text per event.

    Raises:
        UsageError: the request is wrong; nothing was run.
        Interrupted: a signal stopped the sweep; trainings saved their state.
    """
    from compress.models.model_input import describe_input
    from compress.training.launch import run_dir_lock

    output_dir = Path(output_dir).resolve()
    require_resume(output_dir, SWEEP_FILE, resume)
    grid = build_grid(sweep, output_dir)
    teacher_input = describe_input(sweep.teachers[0].model, grid.card)
    progress(teacher_input.summary)
    require_shareable([cell.run for cell in grid.cells], workers, on)
    with run_dir_lock(output_dir):
        write_text(output_dir / SWEEP_FILE, config.dump_yaml(sweep))
        outcomes = run_cells(sweep, grid, workers=workers, on=on, progress=progress)
        if outcomes.signum:
            done = sum(cell.is_done for cell in grid.cells)
            raise Interrupted(
                outcomes.signum,
                f"stopped by {signal.Signals(outcomes.signum).name}; {done} of {len(grid.cells)} cells are done in "
                f"{output_dir}; the same command continues.",
            )
        benchmark_files(list_measured(grid), output_dir, grid.card, sweep.batch_sizes, sweep.duration, progress)
    report = write_sweep_report(sweep, grid, output_dir, outcomes.failures, command, progress)
    cells = [cell_as_result(cell, outcomes.failures.get(cell.name)) for cell in grid.cells]
    return SweepResult(
        output_dir, cells, grid.skipped, outcomes.failures, report.summary, report.best, report.metric, report.caveats,
        report.files, teacher_input,
    )  # fmt: skip


def run_cells(
    sweep: SweepConfig, grid: Grid, *, workers: int | None, on: str | None, progress: Progress
) -> JobOutcomes:
    """Train and measure every cell that is not done, and the teacher."""
    waiting = [cell for cell in grid.cells if not cell.is_done]
    is_teacher_done = grid.teacher.find_record() is not None and grid.teacher.is_complete
    if not waiting and is_teacher_done:
        return JobOutcomes()
    with start_executor(workers, on, resources=sweep.resources, device=sweep.training.device) as executor:
        monitor = None
        if sweep.pruning.kind != "none":
            groups = {cell.name: cell.run.student for cell in grid.cells}
            monitor = executor.share(PruningMonitor, sweep.pruning, groups)
            for cell in grid.cells:
                if cell.is_done:
                    replay_scores(cell, monitor)
        jobs = [] if is_teacher_done else [Job(TEACHER, build_teacher, (grid.teacher,))]
        jobs += [Job(cell.name, train_cell, (cell, monitor)) for cell in waiting]
        return executor.run(jobs, progress)


def replay_scores(cell: Cell, monitor: PruningMonitor) -> None:
    """Report the scores of a training that ended in an earlier call."""
    for tenth, line in scores_by_budget_fraction(cell.run.directory, cell.run.train_config.training).items():
        monitor.report(cell.name, tenth, line["score"])
    if cell.run.is_finished:
        monitor.finish(cell.name, cell.read_score())


def list_measured(grid: Grid) -> list[ExportSpec]:
    """Return the files of the teacher and of the trained students."""
    return [grid.teacher, *(cell.files for cell in grid.cells if cell.run.is_finished)]


def plan_sweep(sweep: SweepConfig, *, output_dir: str | Path, workers: int | None = None) -> SweepPlan:
    """Check everything and estimate the training time, without training.

    Raises:
        UsageError: the request is wrong.
    """
    from compress.models.model_input import describe_input
    from compress.training.estimate import estimate_cost

    grid = build_grid(sweep, Path(output_dir).resolve())
    seconds: dict[tuple[str, str], float] = {}
    skipped = list(grid.skipped)
    for able in grid.methods:
        if able.is_finished:
            continue
        try:
            limit = sweep.training.time_limit
            seconds[able.student, able.method] = limit or estimate_cost(able.setup).seconds
        except UsageError as error:  # a method may reject the networks in its setup
            skipped.append(SkippedMethod(able.student, able.name, str(error)))
    cells = []
    for cell in grid.cells:
        run = cell.run
        state = "pruned" if cell.read_pruned() else "finished" if run.is_finished else "waiting"
        if state != "waiting" or (run.student, run.method) in seconds:
            left = seconds[run.student, run.method] if state == "waiting" else 0.0
            files = [" ".join(pair) for pair in cell.files.file_types]
            cells.append(
                PlannedCell(cell.name, run.student, run.method, run.name, run.seed, run.directory, state, left, files)
            )
    waiting = [cell for cell in cells if cell.state == "waiting"]
    return SweepPlan(
        cells, skipped, len(waiting), sum(len(cell.files) for cell in cells), sum(cell.seconds for cell in waiting),
        workers or 1, describe_input(sweep.teachers[0].model, grid.card),
    )  # fmt: skip


def cell_as_result(cell: Cell, error: str | None) -> CellResult:
    """Collect what the directory of a cell holds."""
    run, pruned = cell.run, cell.read_pruned()
    record = cell.files.find_record() if run.is_finished else None
    facts: dict[str, Any] = {} if record is None else record.run
    outcome = cell.files.read_outcome() if run.is_finished else {"made": [], "rejected": []}
    state = "pruned" if pruned else "finished" if cell.is_done else "failed" if error else "waiting"
    files = [
        FileResult(
            entry["format"], entry["precision"], run.directory / entry["file"], entry["bytes"], entry["metrics"],
            entry["not_run"],
        )
        for entry in outcome["made"]
    ]  # fmt: skip
    rejected = [RejectedFile(entry["format"], entry["precision"], entry["reason"]) for entry in outcome["rejected"]]
    return CellResult(
        cell.name, run.student, run.method, run.name, run.seed, run.directory, state, error, cell.read_score(),
        facts.get("steps"), facts.get("wall_s"), pruned["tenth"] / 10 if pruned else None, files, rejected,
    )  # fmt: skip


def write_sweep_report(
    sweep: SweepConfig, grid: Grid, output_dir: Path, failures: dict[str, str], command: str, progress: Progress
) -> ReportResult:
    """Write the trade-off report of all finished cells into the output directory."""
    from profiles.report.build import write_run_report
    from profiles.report.recommendation import Limits

    limits = sweep.limits
    size_mb = None if limits.size is None else limits.size / 1e6
    return write_run_report(
        output_dir,
        [spec.directory for spec in list_measured(grid) if spec.find_record() is not None],
        title=f"{sweep.teachers[0].model}: students x methods x precisions",
        limits=Limits(limits.latency_ms, limits.gflop, size_mb, limits.energy_mj),
        notes=list_notes(sweep, grid, output_dir, failures),
        commands=[command] if command else [],
        progress=progress,
    )


def list_notes(sweep: SweepConfig, grid: Grid, output_dir: Path, failures: dict[str, str]) -> list[str]:
    """List what is missing and why, what was stopped, and what is slower than expected."""
    notes: list[str] = list(NOTES)
    if TEACHER in failures:
        notes.append(f"The teacher was not measured: {failures[TEACHER]}")
    for cell in grid.cells:
        label, pruned = f"{cell.run.name} {cell.run.student}, seed {cell.run.seed}", cell.read_pruned()
        if cell.name in failures:
            notes.append(f"{label} failed: {failures[cell.name]}")
        if pruned is not None:
            notes.append(
                f"{label} was stopped early ({sweep.pruning.kind}): after {pruned['tenth']} tenths of its budget it "
                f"had {pruned['metric']} {pruned['score']:.1%}, and other trainings of {cell.run.student} had more."
            )
    if len(sweep.seed_list) > 1 and any(cell.read_pruned() for cell in grid.cells):
        notes.append("Means over seeds exclude runs that were stopped early, so they are optimistic.")
    for spec in list_measured(grid):
        record = spec.find_record()
        name = spec.directory.name if record is None else f"{record.name}, {spec.directory.name}"
        rejected = spec.read_outcome()["rejected"]
        notes += [f"{name}: no {one['format']} in {one['precision']}: {one['reason']}" for one in rejected]
    notes += [f"{one.student} by {one.name}: not run: {one.reason}" for one in grid.skipped]
    notes += [f"{file}: not timed: {reason}" for file, reason in read_timing(output_dir).get("not_timed", {}).items()]
    return [*notes, *list_calibrations(grid.cells), *list_slower_int8(list_measured(grid))]


def list_calibrations(cells: Sequence[Cell]) -> list[str]:
    """Describe the calibration images of int8, by method."""
    methods: dict[str, list[str]] = {}
    for cell in cells:
        images = cell.files.calibration
        if images is not None and cell.run.name not in methods.setdefault(images, []):
            methods[images].append(cell.run.name)
    named = {SYNTHETIC: "the images of each run"}
    parts = [f"{named.get(images, images)} ({', '.join(names)})" for images, names in methods.items()]
    return [f"int8 was calibrated on {'; '.join(parts)}."] if parts else []


def list_slower_int8(specs: Sequence[ExportSpec]) -> list[str]:
    """Describe the int8 files that are slower than their fp32 file."""
    from profiles.records import read_existing_records

    slower = []
    for spec in specs:
        records = {(one.format, one.precision): one for one in read_existing_records(spec.directory) if one.latencies}
        for (file_format, precision), record in records.items():
            fp32 = records.get((file_format, "fp32"))
            if precision != "int8" or fp32 is None:
                continue
            mine, other = (min(one.latencies, key=lambda latency: latency.batch_size) for one in (record, fp32))
            if mine.batch_size == other.batch_size and mine.latency_ms_p50 > other.latency_ms_p50:
                times = f"{mine.latency_ms_p50:.2f} ms, fp32 {other.latency_ms_p50:.2f} ms"
                slower.append(f"{record.name} in {file_format} ({times})")
    return (
        [f"int8 is slower than fp32 on this machine, and is kept for comparison: {'; '.join(slower)}."]
        if slower
        else []
    )
