"""Compare methods: train the same student with each of them under one budget, and rank the results."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import Interrupted, UsageError
from compress.experiments.artifacts import train_run
from compress.experiments.cells import TEACHER, require_resume, require_shareable
from compress.experiments.config import ComparisonConfig
from compress.experiments.grid import LoadedTeacher, MethodRuns, SkippedMethod, build_runs, load_teacher
from compress.experiments.runner import Job, JobOutcomes, Progress, start_executor

if TYPE_CHECKING:
    from compress.models.model_input import ModelInput
    from profiles.records import Record
    from profiles.report.methods import MethodComparison

NOTES = (
    "Compared is the student at the end of each run. The best student of a run was selected on the images that it is "
    "measured on, so its score is optimistic, and more so if the run fluctuates.",
    "Time is training time. It includes evaluations and what a method computes before its first step; it excludes "
    "decoding images and starting the process.",
    "Images per second are steps times batch size over time; a step of some methods uses several batches.",
    "Memory is the peak during training minus what the process held before; on a GPU everything that was allocated.",
)


@dataclass(frozen=True)
class HistoryPoint:
    """An evaluation during a run."""

    step: int  #: of the evaluation
    seconds: float  #: training time until then
    score: float | None  #: its score


@dataclass(frozen=True)
class RunScore:
    """One run of a method."""

    seed: int  #: of the run
    last: float  #: score at the end of the run
    best: float  #: best score during the run
    best_step: int | None  #: step of the best score
    steps: int  #: training steps
    seconds: float  #: training time
    images_per_s: float | None  #: steps times batch size over time
    peak_bytes: int | None  #: peak memory of the training
    command: str | None  #: command line of the run
    history: list[HistoryPoint]  #: its evaluations


@dataclass(frozen=True)
class MethodScore:
    """A method, averaged over its seeds."""

    method: str  #: as on the command line
    name: str  #: display name
    is_reference: bool  #: trained on labels without the teacher; not ranked against the others
    learns_from: list[str]  #: data, and what it uses of the teacher besides its logits
    settings: dict[str, Any]  #: settings that were given
    mean: float  #: mean score at the end of the runs
    std: float | None  #: sample standard deviation; null for one seed
    best_mean: float  #: mean of the best scores
    best_std: float | None  #: sample standard deviation of the best scores
    seeds: int  #: finished runs
    steps: float | None  #: mean number of steps
    batch_size: float | None  #: mean batch size
    seconds: float | None  #: mean training time
    images_per_s: float | None  #: mean throughput
    peak_bytes: int | None  #: maximum over the runs
    runs: list[RunScore]  #: one per seed


@dataclass(frozen=True)
class TeacherScore:
    """The teacher on the same images."""

    name: str  #: display name
    score: float | None  #: of the teacher


@dataclass(frozen=True)
class FailedRun:
    """A run that failed."""

    name: str  #: display name of the method
    seed: int  #: of the run
    error: str  #: error message


@dataclass(frozen=True)
class ComparisonResult:
    """Methods ranked by their mean score; the content of `compare.json`, and the files."""

    schema: int  #: version of compare.json
    title: str  #: of the page
    summary: str  #: result in a few sentences
    metric: str  #: accuracy or miou
    budget_s: float | None  #: training time of each run
    budget_steps: int | None  #: steps of each run, if the budget is not a time
    teacher: TeacherScore | None  #: on the same images
    methods: list[MethodScore]  #: the best mean first
    skipped: list[SkippedMethod]  #: methods that cannot run here
    failed: list[FailedRun]  #: runs that failed
    commands: list[str]  #: command lines
    caveats: list[str]  #: limits of the comparison
    files: dict[str, Path]  #: paths by kind: html, markdown, csv, json, svg, png
    teacher_input: ModelInput  #: how the teacher reads images, and where these facts come from


@dataclass(frozen=True)
class PlannedMethod:
    """A method that a comparison would run."""

    method: str  #: as on the command line
    name: str  #: display name
    learns_from: list[str]  #: data, and what it uses of the teacher besides its logits
    settings: dict[str, Any]  #: settings that were given
    runs: int  #: runs that would be made
    finished: int  #: runs that exist already
    seconds_per_run: float  #: the time limit, or an estimate
    seconds: float  #: training time of all its runs


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison would run (`--dry-run`)."""

    methods: list[PlannedMethod]  #: methods that can run
    skipped: list[SkippedMethod]  #: methods that cannot run here
    runs: int  #: runs that would be made
    seconds: float  #: training time of all runs
    teacher_input: ModelInput  #: how the teacher reads images, and where these facts come from


def run_comparison(
    comparison: ComparisonConfig, *, output_dir: str | Path, workers: int | None = None, on: str | None = None,
    resume: bool | None = None, command: str = "", progress: Progress = lambda _: None,
) -> ComparisonResult:  # fmt: skip
    """Train the same student with every method and seed, and rank the methods.

    Finished runs are not made again, so the same call continues after an interruption.

    Args:
        comparison: Validated settings; see `resolve_comparison_config`.
        output_dir: Directory of the comparison. Run N of a method is in METHOD-N.
        workers: Runs at a time. Default: 1, or as many as fit on the cluster.
        on: Address of a Ray cluster: HOST:PORT or auto. Default: this machine.
        resume: True requires runs in `output_dir`. False requires that there are none. Default: continue if possible.
        command: Command line to write into the report.
        progress: Receives one line of text per event.

    Raises:
        UsageError: the request is wrong; nothing was run.
        Interrupted: a signal stopped the comparison; trainings saved their state.
    """
    from compress.models.model_input import describe_input
    from compress.training.launch import run_dir_lock
    from profiles.report.methods import check_comparison_dir, write_method_report

    output_dir = Path(output_dir).resolve()
    require_resume(output_dir, TEACHER, resume)
    check_comparison_dir(output_dir)
    comparison, teacher, methods, skipped = build_comparison(comparison, output_dir)
    teacher_input = describe_input(comparison.teachers[0].model, teacher.card)
    progress(teacher_input.summary)
    require_shareable([run for method in methods for run in method.runs], workers, on)
    with run_dir_lock(output_dir):
        teacher_record = measure_teacher(comparison, teacher, output_dir, progress)
        outcomes = run_methods(comparison, methods, workers=workers, on=on, progress=progress)
        collected = collect_results(comparison, methods, skipped, teacher_record, outcomes, command)
        paths, numbers = write_method_report(output_dir, collected)
    if outcomes.signum:
        runs = [run for method in methods for run in method.runs]
        raise Interrupted(
            outcomes.signum,
            f"stopped by {signal.Signals(outcomes.signum).name}; {sum(run.is_finished for run in runs)} of {len(runs)} "
            f"runs are finished, in {paths['html']}; the same command continues.",
        )
    return create_result(numbers, skipped, paths, teacher_input)


def build_comparison(
    comparison: ComparisonConfig, output_dir: Path
) -> tuple[ComparisonConfig, LoadedTeacher, list[MethodRuns], list[SkippedMethod]]:
    """Load the teacher and build all runs. Raises UsageError if no method can run."""
    from compress.training.data import check_datasets
    from compress.training.setup import default_student

    teacher = load_teacher(comparison)
    student = comparison.student or default_student(teacher.card.task, teacher.card.image_size)
    comparison = replace(comparison, student=student)
    methods, skipped = build_runs(comparison, student, teacher, output_dir, same_steps=comparison.same_steps)
    if not methods:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in skipped)
        raise UsageError(f"no method can run here: {reasons}.")
    check_datasets(comparison.data)
    return comparison, teacher, methods, skipped


def run_methods(
    comparison: ComparisonConfig, methods: Sequence[MethodRuns], *, workers: int | None, on: str | None,
    progress: Progress,
) -> JobOutcomes:  # fmt: skip
    """Train every run that is not finished, seed by seed; with `same_steps` first seeds first."""
    rows = list(zip(*(method.runs for method in methods), strict=True))
    stages = [rows[:1], rows[1:]] if comparison.same_steps else [rows]
    outcomes = JobOutcomes()
    waiting = [[run for row in stage for run in row if not run.is_finished] for stage in stages]
    if not any(waiting):
        return outcomes
    with start_executor(workers, on, resources=comparison.resources, device=comparison.training.device) as executor:
        for runs in waiting:
            jobs = [Job(run.directory.name, train_run, (run,)) for run in runs]
            if jobs and not outcomes.signum:
                stage = executor.run(jobs, progress)
                outcomes.failures |= stage.failures
                outcomes.signum = stage.signum
    return outcomes


def measure_teacher(
    comparison: ComparisonConfig, teacher: LoadedTeacher, output_dir: Path, progress: Progress
) -> Record:
    """Measure the teacher on the same images, once, and record it in its own directory."""
    from compress.engine.accelerator import create_accelerator
    from compress.training.data import load_validation_images
    from compress.training.teacher_score import require_useful_teacher, score_teacher
    from profiles.records import Record, append_records, has_records, read_records

    directory, card, data = output_dir / TEACHER, teacher.card, comparison.data
    if has_records(directory):
        return read_records(directory)[-1]  # of this teacher on these images; see `reject_other_teacher`
    run = {"teacher": comparison.teachers[0].model, "val": data.validation, "identity": teacher.identity}
    progress("measuring the teacher")
    accelerator = create_accelerator("cpu", "32")
    images = load_validation_images(data, card, progress=progress)
    score = score_teacher(accelerator.prepare(teacher.network).eval(), images, card, accelerator)
    chosen = comparison.teachers[0]
    require_useful_teacher(score, chosen.model, str(data.validation), allow=chosen.allow_bad_teacher, progress=progress)
    record = Record(
        f"Teacher {card.architecture}", "teacher", architecture=card.architecture, task=card.task,
        image_size=card.image_size, metrics=score.metrics, run=run,
    )  # fmt: skip
    append_records(directory, [record])
    return record


def collect_results(
    comparison: ComparisonConfig, methods: Sequence[MethodRuns], skipped: Sequence[SkippedMethod], teacher: Record,
    outcomes: JobOutcomes, command: str,
) -> MethodComparison:  # fmt: skip
    """Read the records of all finished runs."""
    from profiles.records import RecordError, read_records
    from profiles.report.methods import MethodComparison, MethodResult

    results: list[MethodResult] = []
    failed: list[tuple[str, int, str]] = []
    for method in methods:
        records: list[Record] = []
        for run in method.runs:
            error = outcomes.failures.get(run.directory.name)
            try:
                records += read_records(run.directory)[-1:] if run.is_finished else []
            except RecordError as damaged:
                error = str(damaged)
            if error is not None:
                failed.append((run.name, run.seed, error))
        if records:
            results.append(MethodResult(
                method.method, method.name, records, method.learns_from, method.settings,
                is_reference=not method.setup.teachers,
            ))  # fmt: skip
    training, data, model = comparison.training, comparison.data, comparison.teachers[0].model
    images = f", unlabeled images {data.unlabeled}" if data.unlabeled else ""
    about = f"Every run: teacher {model}, student {comparison.student}{images}, measured on {data.validation}."
    return MethodComparison(
        f"{comparison.student} from {model}: methods compared", results, teacher, training.time_limit, training.steps,
        [(one.name, one.reason) for one in skipped], failed, [command] if command else [], (about, *NOTES),
    )  # fmt: skip


def create_result(
    numbers: dict[str, Any], skipped: list[SkippedMethod], files: dict[str, Path], teacher_input: ModelInput
) -> ComparisonResult:
    """Convert the content of compare.json to dataclasses."""
    methods = [
        MethodScore(**{
            **method,
            "runs": [
                RunScore(**{**run, "history": [HistoryPoint(**point) for point in run["history"]]})
                for run in method["runs"]
            ],
        })
        for method in numbers["methods"]
    ]  # fmt: skip
    teacher = None if numbers["teacher"] is None else TeacherScore(**numbers["teacher"])
    failed = [FailedRun(**one) for one in numbers["failed"]]
    typed = {"methods": methods, "teacher": teacher, "failed": failed, "skipped": skipped, "files": files}
    return ComparisonResult(**{**numbers, **typed}, teacher_input=teacher_input)


def plan_comparison(
    comparison: ComparisonConfig, *, output_dir: str | Path, workers: int | None = None
) -> ComparisonPlan:
    """Check everything and estimate the training time, without training.

    Raises:
        UsageError: the request is wrong.
    """
    from compress.models.model_input import describe_input
    from compress.training.estimate import estimate_cost

    comparison, teacher, methods, skipped = build_comparison(comparison, Path(output_dir).resolve())
    planned: list[PlannedMethod] = []
    for method in methods:
        left = sum(not run.is_finished for run in method.runs)
        try:
            each = comparison.training.time_limit or (estimate_cost(method.setup).seconds if left else 0.0)
        except UsageError as error:  # a method may reject the networks in its setup
            skipped.append(SkippedMethod(str(comparison.student), method.name, str(error)))
            continue
        planned.append(PlannedMethod(
            method.method, method.name, method.learns_from, method.settings, left, len(method.runs) - left, each,
            left * each,
        ))  # fmt: skip
    return ComparisonPlan(
        planned, skipped, sum(one.runs for one in planned), sum(one.seconds for one in planned),
        describe_input(comparison.teachers[0].model, teacher.card),
    )  # fmt: skip
