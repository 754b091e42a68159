"""Runs and cells of an experiment as data, and what their directories already hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import config
from compress.data.calibration import SYNTHETIC
from compress.errors import CompressError, UsageError
from compress.experiments.config import FilePrecision, Format, PruningConfig
from compress.files import read_json_object, require_inside, write_text
from profiles.formatting import finite_number
from profiles.records import has_records, read_existing_records, read_records

if TYPE_CHECKING:
    from compress.training.config import DataConfig, TaskConfig, TeacherConfig, TrainConfig
    from compress.training.run_dir import Identity
    from profiles.records import Record

#: in the directory of a run: its exported files; how it was stopped early
FILES, PRUNED = "files.json", "pruned.json"
#: fields of every file in `files.json`, of those that were rejected, and of those that were made
FILE_FIELDS = frozenset({"format", "precision"})
REJECTED_FIELDS = FILE_FIELDS | {"reason"}
MADE_FIELDS = FILE_FIELDS | {"file", "sha256", "bytes", "metrics", "not_run", "is_measured"}
#: in the output directory: the teacher's files; the recipe of every run
TEACHER, RECIPES = "teacher", "recipes"
FileType = tuple[Format, FilePrecision]


@dataclass(frozen=True)
class RunSpec:
    """One training: a student, a method and a seed, in a directory of its own."""

    method: str  #: name in the config
    name: str  #: display name of the method
    student: str
    seed: int
    directory: Path
    train_config: TrainConfig
    steps_from: RunSpec | None = None  #: the run whose step count replaces the time limit

    @property
    def is_finished(self) -> bool:
        """Whether the directory holds the record of a finished training."""
        return has_records(self.directory)

    @property
    def has_local_objects(self) -> bool:
        """Whether the config names modules or data sets that only this process has."""
        config = self.train_config
        specs = [*(teacher.model for teacher in config.teachers), config.student.model]
        specs += [config.data.unlabeled, config.data.labeled, config.data.validation]
        return any(str(spec).startswith(("module:", "dataset:")) for spec in specs)

    def write_recipe(self) -> Path:
        """Write the training recipe of this run beside the run directories and return its path.

        Raises:
            UsageError: the run whose step count is needed has not finished.
        """
        training = replace(self.train_config.training, seed=self.seed)
        if self.steps_from is not None:
            if not self.steps_from.is_finished:
                raise UsageError(f"seed {self.steps_from.seed} has not finished; --same-steps needs its step count.")
            training = replace(training, time_limit=None, steps=self.steps_from.read_steps())
        path = self.directory.parent / RECIPES / f"{self.directory.name}.yaml"
        write_text(path, config.dump_yaml(replace(self.train_config, training=training)))
        return path

    def read_steps(self) -> int:
        """Read how many steps the finished run made."""
        steps = read_records(self.directory)[-1].run.get("steps")
        if type(steps) is not int or steps < 1:
            raise CompressError(f"{self.directory}: found no number of steps in its records; run that job again.")
        return steps


def has_entries(outcome: Mapping[str, Any], kind: str, fields: frozenset[str]) -> bool:
    """Check whether a list of `files.json` has only entries with these fields."""
    entries = outcome.get(kind)
    return isinstance(entries, list) and all(isinstance(one, dict) and one.keys() >= fields for one in entries)


@dataclass(frozen=True)
class ExportSpec:
    """A model and the files that are made of it, in the directory of its records."""

    directory: Path
    model: TeacherConfig
    task: TaskConfig
    file_types: tuple[FileType, ...]
    data: DataConfig
    calibration: str | None = None  #: None: no int8 files
    calibration_images: int = 256
    max_drop: float | None = None
    allow_code: bool = False  #: the run directory in `calibration` may name code of the user
    trust_pickle: bool = False  #: it may trust pickles
    calibration_content: str | None = None  #: hash of the listing of the calibration images, if they are a data set
    identity: Identity | None = None  #: of a teacher, to record with its measurements

    @property
    def consent(self) -> dict[str, bool]:
        """What the run that makes the calibration images may do; the runs of the sweep itself were allowed."""
        is_own = self.calibration == SYNTHETIC
        return {"allow_code": self.allow_code or is_own, "trust_pickle": self.trust_pickle or is_own}

    @property
    def stated_input(self) -> list[Any]:
        """What the user says about the model's input and outputs, as JSON."""
        model, task = self.model, self.task
        stated = [task.image_size, task.resize, model.mean, model.std, model.class_names, model.output, model.ema]
        return [list(one) if isinstance(one, tuple) else one for one in stated]

    @property
    def request(self) -> dict[str, Any]:
        """The settings that existing files must have been made with."""
        return {
            "architecture": self.model.architecture, "trust_pickle": self.model.trust_pickle,
            **({"input": self.stated_input} if any(self.stated_input) else {}),
            "classes": self.task.classes, "validation": self.data.validation, "calibration": self.calibration,
            "calibration_images": self.calibration_images, "max_drop": self.max_drop,
            "calibration_content": self.calibration_content,
        }  # fmt: skip

    def read_outcome(self) -> dict[str, Any]:
        """Read the state of the files; those made with other settings or deleted are left out."""
        outcome = read_json_object(self.directory / FILES)
        is_whole = has_entries(outcome, "made", MADE_FIELDS) and has_entries(outcome, "rejected", REJECTED_FIELDS)
        if not is_whole or outcome.get("request") != self.request:
            return {"request": self.request, "made": [], "rejected": []}
        outcome["made"] = [entry for entry in outcome["made"] if is_file_inside(self.directory, entry["file"])]
        return outcome

    def list_missing(self, outcome: Mapping[str, Any]) -> list[FileType]:
        """Return the file types that were neither made nor rejected."""
        known = {(entry["format"], entry["precision"]) for kind in ("made", "rejected") for entry in outcome[kind]}
        return [pair for pair in self.file_types if pair not in known]

    @property
    def is_complete(self) -> bool:
        """Whether every file was made and measured, or rejected."""
        outcome = self.read_outcome()
        return not self.list_missing(outcome) and all(entry["is_measured"] for entry in outcome["made"])

    def find_record(self) -> Record | None:
        """Return the record of the network in PyTorch; None if there is none yet."""
        records = read_existing_records(self.directory)
        return next((record for record in records if not record.format and record.metrics), None)


def is_file_inside(folder: Path, name: str) -> bool:
    """Whether a file exists and lies in `folder` after links are followed; its name was read from a file."""
    try:
        return require_inside(folder, Path(str(name))).is_file()
    except UsageError:
        return False


@dataclass(frozen=True)
class Cell:
    """One training of a sweep and the files of its student."""

    run: RunSpec
    files: ExportSpec
    pruning: PruningConfig

    @property
    def name(self) -> str:
        """Name of the cell and of its directory."""
        return self.run.directory.name

    def read_pruned(self) -> dict[str, Any] | None:
        """Read where the training was stopped early; None if it was not, or is to continue."""
        if self.pruning.kind == "none" or self.run.is_finished:
            return None
        pruned = read_json_object(self.run.directory / PRUNED)
        is_whole = type(pruned.get("tenth")) is int and finite_number(pruned.get("score")) is not None
        return pruned if is_whole and isinstance(pruned.get("metric"), str) else None

    @property
    def is_done(self) -> bool:
        """Whether the training was pruned, or finished and all files exist."""
        return self.read_pruned() is not None or (self.run.is_finished and self.files.is_complete)

    def read_score(self) -> float | None:
        """Read the score of the student, or the last score of a pruned training."""
        pruned = self.read_pruned()
        if pruned is not None:
            return pruned.get("score")
        record = self.files.find_record() if self.run.is_finished else None
        return None if record is None else next(iter(record.metrics.values()), None)


def require_resume(output_dir: Path, name: str, resume: bool | None) -> None:
    """Raise UsageError if `resume` does not fit what the output directory holds."""
    exists = (output_dir / name).exists()
    if resume is True and not exists:
        raise UsageError(f"{output_dir}: found no {name}, expected an experiment to continue; check --out.")
    if resume is False and exists:
        raise UsageError(f"{output_dir}: holds an experiment already; choose another --out or remove the directory.")


def require_shareable(runs: Sequence[RunSpec], workers: int | None, on: str | None) -> None:
    """Raise UsageError if several workers would need modules or data sets that only this process has."""
    if (on is not None or (workers or 1) > 1) and any(run.has_local_objects for run in runs):
        raise UsageError(
            f"workers: found {workers or on} with a module or a data set of this process, expected 1; give names or "
            "paths, or use one worker."
        )
