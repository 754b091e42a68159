"""Configuration of a sweep and of a comparison, validated before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from compress import config
from compress.config import Document, setting
from compress.config.quantities import BatchSize, ByteSize, Count, Duration, PositiveFloat, Seed
from compress.engine.config import TrainingSchedule
from compress.errors import UsageError, suggest_nearest
from compress.methods import METHODS, find_method
from compress.models.registry import infer_task
from compress.training.config import DataConfig, StudentConfig, TaskConfig, TeacherConfig, TrainConfig
from compress.training.recipes import KEYS, TEACHER_KEYS, find_recipe, nest_keys
from compress.training.trust import require_consent

#: number of seeds, not a seed
Seeds = Annotated[int, Field(gt=0, le=1000)]
Format = Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
FilePrecision = Literal["fp32", "fp16", "bf16", "int8"]
C = TypeVar("C", bound="ExperimentConfig")

#: argument of `compress.sweep` and `compress.compare` -> recipe key
ARGUMENT_KEYS = {
    **{name: f"teachers.0.{key}" for name, key in TEACHER_KEYS.items()},
    **{name: KEYS[name] for name in ("classes", "image_size", "resize", "grayscale")}, "unlabeled": "data.unlabeled",
    "labeled": "data.labeled", "validation": "data.validation", "label_order": "data.label_order",
    "data_root": "data.root",
    "time_limit": "training.time_limit", "steps": "training.steps", "batch_size": "training.batch_size",
    "precision": "training.precision", "device": "training.device", "prune": "pruning.kind",
    "max_latency": "limits.latency_ms", "max_gflop": "limits.gflop", "max_size": "limits.size",
    "max_energy": "limits.energy_mj",
}  # fmt: skip
#: config file in the output directory of a sweep
SWEEP_FILE = "sweep.yaml"


@dataclass
class Resources:
    """Resources that one run reserves when several runs share machines."""

    cpus: Count | None = setting(None, "CPU cores per run. Default: the cores divided by the workers; 1 on a cluster.")
    gpus: Annotated[float, Field(ge=0, le=1000)] | None = setting(None, "GPUs per run. Default: 1, if there are any.")


@dataclass
class PruningConfig:
    """Which trainings are stopped early because others of the same student do better."""

    kind: Literal["none", "median", "asha"] = setting("none", "Pruning algorithm; none: every training finishes.")
    startup_trials: Count = setting(1, "Trainings of a student that must finish before median stops one.")
    warmup: Annotated[int, Field(ge=1, le=9)] = setting(3, "Tenths of the budget before the first decision.")
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = setting(
        2, "asha: one of this many continues after each rung."
    )


@dataclass
class LimitsConfig:
    """Maximum cost of the recommended model."""

    latency_ms: PositiveFloat | None = setting(None, "Maximum median latency of a batch, in ms.")
    gflop: PositiveFloat | None = setting(None, "Maximum GFLOP per image.")
    size: ByteSize | None = setting(None, "Maximum size of the file, in bytes or with a unit.")
    energy_mj: PositiveFloat | None = setting(None, "Maximum energy per image, in mJ.")


@dataclass(kw_only=True)
class ExperimentConfig:
    """Settings that a sweep and a comparison share. The sections are those of a training recipe."""

    teachers: Annotated[list[TeacherConfig], Field(min_length=1, max_length=1)] = setting(
        description="The trained model, as a list of one."
    )
    methods: dict[str, dict[str, Any] | None] | list[str] = setting(
        description="Method names, or a mapping from name to settings."
    )
    task: TaskConfig = setting(factory=TaskConfig, description="Task of all networks.")
    data: DataConfig = setting(factory=DataConfig, description="Images of all runs.")
    training: TrainingSchedule = setting(
        factory=TrainingSchedule, description="Schedule of every run, without its seed."
    )
    seeds: Seeds | list[Seed] = setting(1, "Number of seeds, or a list of seeds.")
    resources: Resources = setting(factory=Resources, description="Resources per run.")

    @property
    def method_settings(self) -> dict[str, dict[str, Any]]:
        """Settings that were given, by method."""
        if isinstance(self.methods, list):
            return {name: {} for name in dict.fromkeys(self.methods)}
        return {name: settings or {} for name, settings in self.methods.items()}

    @property
    def seed_list(self) -> list[int]:
        """The seeds, each once."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(dict.fromkeys(self.seeds))

    def create_train_config(self, method: str, student: str | None = None) -> TrainConfig:
        """Create the training config of one method."""
        settings = {"name": method, **self.method_settings.get(method, {})}
        return TrainConfig(self.task, self.teachers, StudentConfig(student), self.data, settings, self.training)


@dataclass(kw_only=True)
class SweepConfig(ExperimentConfig):
    """Contents of `sweep.yaml`: students x methods x seeds are trained, then exported and measured."""

    students: Annotated[list[str], Field(min_length=1)] = setting(description="Student architectures.")
    formats: list[Format] = setting(factory=lambda: ["onnx"], description="File formats of every student.")
    precisions: list[FilePrecision] = setting(factory=lambda: ["fp32"], description="Precisions of the files.")
    calibration: str = setting("synthetic", "Images for int8: a data set, or synthetic (images of the run itself).")
    calibration_images: Count = setting(256, "Number of calibration images.")
    max_drop: Annotated[float, Field(ge=0)] | None = setting(
        None, "Maximum loss of a file in percentage points. Default: the tolerance of its precision."
    )
    pruning: PruningConfig = setting(factory=PruningConfig, description="Early stopping of trainings.")
    limits: LimitsConfig = setting(factory=LimitsConfig, description="Maximum cost of the recommended model.")
    batch_sizes: list[BatchSize] = setting(factory=lambda: [1, 8], description="Batch sizes that are timed.")
    duration: Duration = setting(1.0, "Time per file and batch size, in seconds or with a unit.")
    allow_code: bool = field(default=False, init=False)  #: consent to code that files name; no recipe can give it

    @property
    def file_types(self) -> list[tuple[Format, FilePrecision]]:
        """(format, precision) of every file that is made of a student."""
        return [(one, other) for one in dict.fromkeys(self.formats) for other in dict.fromkeys(self.precisions)]


@dataclass(kw_only=True)
class ComparisonConfig(ExperimentConfig):
    """Settings of a comparison: one student, several methods, the same budget."""

    seeds: Seeds | list[Seed] = setting(3, "Number of seeds, or a list of seeds.")
    student: str | None = setting(None, "Architecture of every student. Default: a small one for the image size.")
    same_steps: bool = setting(False, "Later seeds run the steps of the first seed instead of its time.")


def load_sweep_config(document: Document, *, allow_code: bool = False, trust_pickle: bool = False) -> SweepConfig:
    """Validate a sweep recipe.

    Args:
        document: A recipe file, with the settings of the user over it.
        allow_code: The file may name code of the user; see `require_consent`.
        trust_pickle: The file may say that pickles are trusted.

    Raises:
        UsageError: a setting is wrong; names its line, key and the nearest valid name.
    """
    loaded = _load_config(SweepConfig, document, allow_code=allow_code, trust_pickle=trust_pickle)
    loaded.allow_code = allow_code
    for i, student in enumerate(loaded.students):
        try:
            infer_task(student)
        except UsageError as error:
            raise document.error(f"students.{i}", str(error)) from error
    loaded.students = list(dict.fromkeys(loaded.students))
    return loaded


def load_comparison_config(document: Document) -> ComparisonConfig:
    """Validate the settings of a comparison; see `load_sweep_config`."""
    loaded = _load_config(ComparisonConfig, document)
    if loaded.same_steps and loaded.training.time_limit is None:
        raise document.error(
            "same_steps", "found with training.steps, which are the same already; remove it or use training.time_limit."
        )
    return loaded


def resolve_sweep_config(
    recipe: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    allow_code: bool = False,
    **arguments: Any,
) -> SweepConfig:
    """Load a sweep recipe with arguments and settings on top.

    Args:
        recipe: A YAML file or the name of a shipped recipe. Default: `sweep.yaml` in `output_dir`, if it exists.
        output_dir: Directory of the sweep.
        settings: `KEY=VALUE` or `METHOD.KEY=VALUE`, or a mapping from such keys to values.
        allow_code: The recipe may name code of the user.
        **arguments: Arguments of `compress.sweep`, or dotted recipe keys. None keeps the value of the recipe.
            `methods` may be a list of names; the settings that the recipe has for them are kept.

    Raises:
        UsageError: a setting is wrong.
    """
    if recipe is None and output_dir is not None and (Path(output_dir) / SWEEP_FILE).exists():
        recipe = Path(output_dir) / SWEEP_FILE
    empty = config.document_from_mapping({}, source="")
    document = empty if recipe is None else config.load_yaml(find_recipe(recipe))
    merged = _merge_arguments(SweepConfig, document, arguments, settings)
    return load_sweep_config(merged, allow_code=allow_code, trust_pickle=bool(arguments.get("trust_pickle")))


def resolve_comparison_config(
    *, settings: Mapping[str, Any] | Sequence[str] = (), **arguments: Any
) -> ComparisonConfig:
    """Create a comparison config from arguments of `compress.compare`; see `resolve_sweep_config`."""
    empty = config.document_from_mapping({}, source="")
    return load_comparison_config(_merge_arguments(ComparisonConfig, empty, arguments, settings))


def _merge_arguments(
    cls: type[ExperimentConfig], document: Document, arguments: Mapping[str, Any],
    settings: Mapping[str, Any] | Sequence[str],
) -> Document:  # fmt: skip
    given = {ARGUMENT_KEYS.get(name, name): value for name, value in arguments.items() if value is not None}
    if any(f"training.{name}" in given for name in ("steps", "time_limit")):
        given = {"training.steps": None, "training.time_limit": None, **given}
    named = document.get("methods")
    if isinstance(named, list) and all(isinstance(name, str) for name in named):
        lines = [document.locate(("methods", i)) for i in range(len(named))]
        document = document.merge({"methods": {}}, document.locate(("methods",)))
        for name, line in zip(named, lines, strict=True):
            document = document.merge({"methods": {name: {}}}, line)
    methods = given.pop("methods", None)
    if methods is not None:
        methods = list(METHODS) if methods == "all" else methods
        names = methods.split(",") if isinstance(methods, str) else methods
        known = document.get("methods")
        known = known if isinstance(known, dict) else {}
        chosen = {name.strip(): known.get(name.strip()) or {} for name in names}
        document = document.merge({"methods": None}, "").merge({"methods": chosen}, "--methods")
    teacher = {key: given.pop(key) for key in list(given) if key.startswith("teachers.0.")}
    teacher = {key.removeprefix("teachers.0."): value for key, value in teacher.items() if value is not False}
    if teacher:
        document = document.merge({"teachers": {"0": teacher} if document.get("teachers") else [teacher]}, "")
    document = document.merge(nest_keys(given), "")
    if isinstance(settings, Mapping):
        settings = [f"{key}={json.dumps(config.to_plain(value))}" for key, value in settings.items()]
    for item in settings:
        known = document.get("methods")
        document = document.merge(_parse_override(cls, item, known if isinstance(known, dict) else {}), "--set")
    return document


def _parse_override(cls: type[ExperimentConfig], item: str, methods: Mapping[str, Any]) -> dict[str, Any]:
    """Parse `mosaic.bn=10` for one method, or `data.views=1` for all runs."""
    path, _, text = item.partition("=")
    names = sorted({*methods, *METHODS}, key=len, reverse=True)
    owner = next((name for name in names if path.startswith(f"{name}.")), None)
    sections = [one.name for one in fields(cls)]
    if owner in methods:
        value = config.parse_overrides([f"method.value={text}"])["method"]["value"]
        return {"methods": {owner: {path.removeprefix(f"{owner}."): value}}}
    if owner is not None:
        raise UsageError(f"--set {item}: method {owner} does not take part; add it to --methods or remove the setting.")
    first = path.partition(".")[0]
    if first not in sections:
        hint = suggest_nearest(first, [*names, *sections]) or "."
        raise UsageError(f"--set {item}: found {first!r}, expected METHOD.KEY=VALUE or SECTION.KEY=VALUE{hint}")
    return config.parse_overrides([item])


def _load_config(cls: type[C], document: Document, *, allow_code: bool = False, trust_pickle: bool = False) -> C:
    from compress.training.setup import expand_auto_batch  # imports torch

    loaded = config.validate(cls, expand_auto_batch(document))
    require_consent(document, allow_code=allow_code, trust_pickle=trust_pickle)
    for one in fields(cls):
        if getattr(loaded, one.name) in ([], {}):
            raise document.error(one.name, "found nothing, expected at least one.")
    training = loaded.training
    if (training.steps is None) == (training.time_limit is None):
        count = "none" if training.steps is None else "both"
        raise document.error(
            "training", f"found {count} of steps and time_limit, expected one: the budget of each run."
        )
    if training.epochs is not None:
        raise document.error("training.epochs", "epochs differ between methods; give training.steps or time_limit.")
    if training.seed != 0:
        raise document.error("training.seed", f"found {training.seed}; give seeds: [{training.seed}] instead.")
    if loaded.data.validation is None:
        raise document.error("data.validation", "missing; expected labeled images to measure on.")
    for name, settings in loaded.method_settings.items():
        path = ("methods", name) if isinstance(loaded.methods, dict) else ("methods",)
        _validate_method(name, settings, document.locate(path))
    return loaded


def _validate_method(name: str, settings: Mapping[str, Any], source: str) -> None:
    try:
        kind = find_method(name)
    except UsageError as error:
        raise UsageError(": ".join(part for part in (source, "methods", str(error)) if part)) from error
    label = name if "." not in name else "method"
    document = config.document_from_mapping({"methods": {label: settings}}, source)
    config.validate(kind, document, path=f"methods.{label}")
