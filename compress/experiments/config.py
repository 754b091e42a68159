"""The plan of a sweep: which students, methods, seeds and files, under which budget; all checked before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress import config
from compress.engine.place import Precision
from compress.errors import UsageError
from compress.methods import find_method
from compress.models import task_of
from compress.units import BYTES, SECONDS, Unit, parse

Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Format = Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
Narrow = Literal["fp32", "fp16", "bf16", "int8"]


def in_units(unit: Unit, kind: Callable[[float], float]) -> Callable[[Any], Any]:
    """What turns `90s` into 90; numbers go through, for the type to judge. Raises ValueError."""

    def read(value: Any) -> Any:
        try:
            return kind(parse(value, unit)) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"{error}.") from error

    return read


Duration = Annotated[Positive, BeforeValidator(in_units(SECONDS, float))]
Bytes = Annotated[Count, BeforeValidator(in_units(BYTES, round))]


@dataclass
class BudgetPlan:
    """What each training may take: one of `steps` and `time_limit`, the same for all."""

    steps: Count | None = None  #: iterations of the method
    time_limit: Duration | None = None  #: seconds of training, instead
    batch_size: Count | None = None  #: images a batch; None: each method's own
    precision: Precision = "auto"  #: of training: 32, bf16 or 16
    device: str = "auto"  #: cpu, cuda or cuda:N


@dataclass
class PrunePlan:
    """Which trainings are stopped early: those that do worse than others of the same student."""

    kind: Literal["none", "median", "asha"] = "none"  #: none: every training goes to its end
    startup: Count = 1  #: median: trainings of the student that must have ended before one is judged
    warmup: Annotated[int, Field(ge=1, le=9)] = 3  #: tenths of the budget before the first judgement
    factor: Annotated[int, Field(ge=2)] = 2  #: asha: of so many that come to a rung one goes on to the next


@dataclass
class LimitsPlan:
    """The most that the model to ship may cost; None: any."""

    max_latency: Positive | None = None  #: ms, median of a batch where most were timed
    max_gflop: Positive | None = None  #: of one image
    max_size: Bytes | None = None  #: of the file
    max_energy: Positive | None = None  #: mJ an image


@dataclass
class SweepPlan:
    """Everything that `sweep.yaml` says."""

    teacher: str  #: the trained model, as for `compress distill`
    val: str  #: labelled images to measure on; never trained on
    students: Annotated[list[str], Field(min_length=1)]  #: architectures; see `compress models`
    methods: dict[str, dict[str, Any] | None] | list[str]  #: names, or each with its settings; see `compress methods`
    budget: BudgetPlan  #: of each training
    teacher_arch: str | None = None  #: architecture of a bare state dict, where it is not recognised
    classes: Annotated[int, Field(ge=2)] | None = None  #: class count, checked against the teacher's
    trust_pickle: bool = False  #: load a teacher that is a full pickle, which can run code
    ood: str | None = None  #: unlabelled pictures, for the methods that learn from some
    data: str | None = None  #: labelled images, for the methods that need them
    data_root: Path | None = None  #: where data sets known by name lie
    seeds: Count | list[Seed] = 1  #: how many runs of each student by each method, or which seeds
    formats: list[Format] = field(default_factory=lambda: ["onnx"])  #: of the files
    precisions: list[Narrow] = field(default_factory=lambda: ["fp32"])  #: of the files
    calibration: str = "synthetic"  #: images for int8: data, or synthetic: the run's own where its method makes some
    calibration_images: Count = 256  #: how many
    max_drop: Annotated[float, Field(ge=0)] | None = None  #: points a file may lose; None: as it may differ
    set: list[str] = field(default_factory=list)  #: `mosaic.bn=10` for one method, `data.views=1` for all
    prune: PrunePlan = field(default_factory=PrunePlan)
    limits: LimitsPlan = field(default_factory=LimitsPlan)
    batch_sizes: list[Count] = field(default_factory=lambda: [1, 8])  #: images at a time when the files are timed
    duration: Duration = 1.0  #: seconds that each of them is timed at each batch size

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Method -> its settings that are given."""
        if isinstance(self.methods, list):
            return {name: {} for name in dict.fromkeys(self.methods)}
        return {name: found or {} for name, found in self.methods.items()}

    @property
    def chosen_seeds(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(dict.fromkeys(self.seeds))

    @property
    def files(self) -> list[tuple[str, str]]:
        """(format, precision) of each file that is made of a student."""
        return [(one, other) for one in dict.fromkeys(self.formats) for other in dict.fromkeys(self.precisions)]


def read_sweep(document: config.Document) -> SweepPlan:
    """The checked plan. Raises UsageError naming the line, the key, and the nearest one there is."""
    plan = config.validate(SweepPlan, document)
    for name in ("methods", "formats", "precisions", "batch_sizes", "seeds"):
        if getattr(plan, name) in ([], {}):
            raise document.error(name, "found nothing, expected at least one.")
    endings = [name for name in ("steps", "time_limit") if getattr(plan.budget, name) is not None]
    if len(endings) != 1:
        found = "both" if endings else "none"
        raise document.error("budget", f"found {found} of steps and time_limit, expected one: what every training has.")
    for i, student in enumerate(plan.students):
        try:
            task_of(student)
        except UsageError as error:
            raise document.error(f"students.{i}", str(error)) from error
    plan.students = list(dict.fromkeys(plan.students))
    for name, given in plan.settings.items():
        place = ("methods", name) if isinstance(plan.methods, dict) else ("methods",)
        check_method(name, given, document.place(place))
    return plan


def check_method(name: str, given: dict[str, Any], place: str) -> None:
    """Raises UsageError where there is no such method, or no such setting of it."""
    try:
        kind = find_method(name)
    except UsageError as error:
        raise UsageError(": ".join(part for part in (place, "methods", str(error)) if part)) from error
    label = name if "." not in name else "method"
    config.validate(kind, config.from_mapping({"methods": {label: given}}, where=place), path=f"methods.{label}")
