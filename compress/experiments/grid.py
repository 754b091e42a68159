"""From a config to runs and cells: which methods can run here, and why others cannot. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import config
from compress.data import open_images
from compress.data.calibration import SYNTHETIC, find_run_dir
from compress.errors import UsageError
from compress.experiments.cells import TEACHER, Cell, ExportSpec, FileType, RunSpec
from compress.methods import display_name, find_method
from compress.own_files import RECIPE
from compress.training.config import TeacherConfig
from profiles.records import read_existing_records

if TYPE_CHECKING:
    from torch import nn

    from compress.engine.method import Method
    from compress.experiments.config import ExperimentConfig, SweepConfig
    from compress.models.card import ModelCard
    from compress.training.config import TrainConfig
    from compress.training.run_dir import Identity
    from compress.training.setup import TrainingSetup

#: data that a method may need -> what is missing without it
NEEDS = {"unlabeled": "unlabeled images (--unlabeled)", "labeled": "labeled images (--data)"}


@dataclass(frozen=True)
class SkippedMethod:
    """A method that cannot run with this teacher or these data."""

    student: str  #: architecture
    name: str  #: display name of the method
    reason: str  #: why it cannot run


@dataclass(frozen=True)
class MethodRuns:
    """A method that can run, and its runs, one per seed."""

    method: str
    name: str
    student: str
    setup: TrainingSetup
    learns_from: list[str]
    settings: dict[str, Any]  #: those that were given
    runs: list[RunSpec]

    @property
    def is_finished(self) -> bool:
        """Whether all runs have finished."""
        return all(run.is_finished for run in self.runs)


@dataclass(frozen=True)
class LoadedTeacher:
    """The teacher, loaded once for all checks."""

    network: nn.Module
    card: ModelCard
    identity: Identity  #: of its weights, and of the images that it is measured on


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep, the teacher's files, and the methods that cannot run."""

    cells: list[Cell]
    teacher: ExportSpec
    methods: list[MethodRuns]
    skipped: list[SkippedMethod]
    card: ModelCard  #: of the teacher


def load_teacher(experiment: ExperimentConfig) -> LoadedTeacher:
    """Load the teacher of an experiment. Raises what `load_model` raises."""
    from compress.training.run_dir import identify_run
    from compress.training.setup import load_teachers

    train_config = experiment.create_train_config("kd")
    (pair, *_) = load_teachers(train_config)
    data = replace(train_config.data, unlabeled=None, labeled=None)
    return LoadedTeacher(*pair, identify_run(replace(train_config, data=data), [pair[0]]))


def build_grid(sweep: SweepConfig, output_dir: Path) -> Grid:
    """Build all cells of a sweep, seed by seed, so that an early stop leaves something of each.

    Raises:
        UsageError: nothing can run, data is missing, or a directory holds a run with other settings.
    """
    from compress.training.data import check_datasets

    teacher = load_teacher(sweep)
    check_datasets(sweep.data)
    methods: list[MethodRuns] = []
    skipped: list[SkippedMethod] = []
    for student in sweep.students:
        able, unable = build_runs(sweep, student, teacher, output_dir, prefix=f"{_path_part(student)}-")
        methods += able
        skipped += unable
    if not methods:
        reasons = "; ".join(f"{one.student} by {one.name}: {one.reason}" for one in skipped)
        raise UsageError(f"nothing can run here: {reasons}.")
    contents: dict[str, str] = {}
    cells = [
        Cell(run, _student_files(sweep, run, choose_calibration(sweep, able.setup.method), contents), sweep.pruning)
        for able in methods
        for run in able.runs
    ]
    order = sweep.seed_list
    cells.sort(key=lambda cell: order.index(cell.run.seed))
    return Grid(
        cells, _teacher_files(sweep, output_dir, teacher.network, teacher.identity), methods, skipped, teacher.card
    )


def build_runs(
    experiment: ExperimentConfig, student: str, teacher: LoadedTeacher, output_dir: Path, *, prefix: str = "",
    same_steps: bool = False,
) -> tuple[list[MethodRuns], list[SkippedMethod]]:  # fmt: skip
    """Build the runs of every method for one student, in directories PREFIX + METHOD-SEED.

    Raises:
        UsageError: the request is wrong for all, or a directory holds a run with other settings.
    """
    from compress.training.setup import required_signals

    reject_other_teacher(output_dir / TEACHER, teacher, experiment)
    able: list[MethodRuns] = []
    skipped: list[SkippedMethod] = []
    known: dict[str, Identity] = {}
    for method, settings in experiment.method_settings.items():
        name = display_name(method)
        found = config_or_reason(experiment, method, student, teacher)
        if isinstance(found, str):
            skipped.append(SkippedMethod(student, name, found))
            continue
        requested = deepcopy(found[0])
        setup = prepare_setup(*found, teacher)
        runs = [
            RunSpec(method, name, student, seed, output_dir / f"{prefix}{_path_part(method)}-{seed}", requested)
            for seed in experiment.seed_list
        ]
        if same_steps:
            runs = [runs[0], *(replace(run, steps_from=runs[0]) for run in runs[1:])]
        for run in runs:
            reject_other_run(run, setup, known)
        able.append(MethodRuns(method, name, student, setup, required_signals(setup.method), settings, runs))
    return able, skipped


def config_or_reason(
    experiment: ExperimentConfig, method: str, student: str, teacher: LoadedTeacher
) -> tuple[TrainConfig, Method] | str:
    """Return the training config of a method with the data it needs, or why it cannot run."""
    from compress.training.setup import incompatibility_reason, load_config

    kind: Any = find_method(method)
    shared = experiment.create_train_config(method, student)
    for need in kind.needs:
        if getattr(shared.data, need) is None:
            return f"needs {NEEDS[need]}"
    unneeded = {need: None for need in NEEDS if need not in kind.needs}
    wanted = replace(shared, data=replace(shared.data, **unneeded))
    if not kind.teachers:
        card, task = teacher.card, shared.task
        task = replace(
            task, name=card.task, classes=card.classes, image_size=card.image_size, grayscale=card.grayscale,
            resize=card.resize, threshold=card.decision_threshold,
        )  # fmt: skip
        wanted = replace(wanted, teachers=[], task=task)
    try:
        train_config, made = load_config(config.document_from_mapping(config.to_plain(wanted), ""))
    except UsageError as error:
        return str(error)
    network = teacher.network if kind.teachers else None
    return incompatibility_reason(method, made, teacher.card.task, network) or (train_config, made)


def prepare_setup(train_config: TrainConfig, method: Method, teacher: LoadedTeacher) -> TrainingSetup:
    """Prepare a training; the teacher is loaded only once for all methods."""
    from compress.models.network import Network
    from compress.training.setup import add_student, prepare_training

    if train_config.teachers:
        assert isinstance(teacher.network, Network)
        return add_student(train_config, method, [(teacher.network, teacher.card)], teacher.card)
    setup = prepare_training(train_config, method)
    if setup.card.task != teacher.card.task:
        raise UsageError(
            f"{train_config.data.labeled}: found labels for {setup.card.task}, expected {teacher.card.task}, the task "
            "of the teacher."
        )
    return setup


def reject_other_teacher(directory: Path, teacher: LoadedTeacher, experiment: ExperimentConfig) -> None:
    """Raise UsageError if the directory of the teacher holds measurements of another one, or on other images."""
    paths = {"teacher": experiment.teachers[0].model, "val": experiment.data.validation}
    for record in read_existing_records(directory):
        if record.format or not record.metrics:
            continue
        stored = record.run.get("identity")  # release 0.1 recorded paths only
        is_same = stored == teacher.identity if stored else {key: record.run.get(key) for key in paths} == paths
        if not is_same:
            raise UsageError(
                f"{directory}: holds measurements of another teacher, or on other images; give the same teacher and "
                "validation images to continue, choose another --out, or remove that directory."
            )


def reject_other_run(run: RunSpec, setup: TrainingSetup, known: dict[str, Identity]) -> None:
    """Raise UsageError if the run's directory holds a run with other settings, another teacher or other data.

    `known` is that of `identify_run`.
    """
    from compress.training.resolution import AUTO, recorded_patch_size
    from compress.training.run_dir import identify_run, run_differences
    from compress.training.stored_recipes import read_stored_recipe

    recipe, train_config = run.directory / RECIPE, setup.config
    if not recipe.exists():
        return
    mine = config.to_plain(replace(train_config, training=replace(train_config.training, seed=run.seed)))
    if mine["method"].get("patch_size") == AUTO:
        mine["method"]["patch_size"] = recorded_patch_size(run.directory)
    theirs = read_stored_recipe(recipe, train_config)
    recorded = theirs.get("training")
    training = recorded if isinstance(recorded, Mapping) else {}
    if mine["training"]["micro_batch"] == AUTO:
        mine["training"]["micro_batch"] = training.get("micro_batch")
    if run.steps_from is not None:
        steps = training.get("steps")
        mine["training"] |= {"time_limit": None, "steps": steps}
    identity = identify_run(train_config, [net for net, _ in setup.teachers], known)
    different = run_differences(run.directory, mine, theirs, identity)
    if different:
        raise UsageError(
            f"{run.directory}: holds a run with other settings, teacher or data ({'; '.join(different[:3])}); give the "
            "same to continue, choose another --out, or remove that directory."
        )


def choose_calibration(sweep: SweepConfig, method: Method) -> str | None:
    """Choose the calibration images of a method's students; None without int8 files.

    Raises:
        UsageError: the method makes no images, and the sweep has none for it.
    """
    from compress.engine.synthesis import is_synthesizer

    if "int8" not in sweep.precisions:
        return None
    if sweep.calibration != SYNTHETIC or is_synthesizer(method) or hasattr(method, "z_dim"):
        return sweep.calibration
    images = sweep.data.unlabeled or sweep.data.labeled
    if images is None:
        raise UsageError(
            f"precisions: int8 needs calibration images, and method {type(method).__name__} makes none; give "
            "--calibration DATA."
        )
    return images


def _student_files(sweep: SweepConfig, run: RunSpec, calibration: str | None, contents: dict[str, str]) -> ExportSpec:
    """Request the files of a student; `contents` are those of calibration data that were identified before."""
    data = None if calibration == SYNTHETIC else calibration
    if data is not None and data not in contents and find_run_dir(data) != Path(data).expanduser():
        images = open_images(data, root=sweep.data.root, split="train").without_labels()
        contents[data] = images.content_hash()
    own = run.student if ":" in run.student else None  # code of the user, which a model directory cannot name
    model = TeacherConfig(str(run.directory / "best"), architecture=own)
    files = _export_spec(sweep, run.directory, model, tuple(sweep.file_types), calibration)
    return replace(files, calibration_content=contents.get(calibration or ""))


def _teacher_files(sweep: SweepConfig, output_dir: Path, network: nn.Module, identity: Identity) -> ExportSpec:
    """Request the teacher's fp32 files, which those of the students are compared with."""
    from compress.models.onnx_teacher import is_black_box

    formats = [] if is_black_box(network) else dict.fromkeys(sweep.formats)
    file_types: tuple[FileType, ...] = tuple((name, "fp32") for name in formats)
    return replace(_export_spec(sweep, output_dir / TEACHER, sweep.teachers[0], file_types, None), identity=identity)


def _export_spec(
    sweep: SweepConfig,
    directory: Path,
    model: TeacherConfig,
    file_types: tuple[FileType, ...],
    calibration: str | None,
) -> ExportSpec:
    return ExportSpec(
        directory, model, sweep.task, file_types, sweep.data, calibration, sweep.calibration_images, sweep.max_drop,
        allow_code=sweep.allow_code, trust_pickle=sweep.teachers[0].trust_pickle,
    )  # fmt: skip


def _path_part(name: str) -> str:
    return name.replace("/", "-").replace(":", "-")
