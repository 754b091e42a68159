"""The plan: all settings of a run, checked before anything is spent; and from it the run itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import nn

from compress import config
from compress.data import open_images
from compress.engine.accelerator import create_accelerator
from compress.engine.config import TrainingSchedule
from compress.engine.logging import ProgressDisplay
from compress.engine.hooks import batchnorm_layers
from compress.engine.method import Method
from compress.engine.run import Run
from compress.engine.trainable import FrozenModel
from compress.errors import UsageError, suggest_nearest
from compress.files import sha256, write_text
from compress.methods import find_method
from compress.models.onnx_teacher import is_black_box
from compress.models.card import ModelCard
from compress.models.serialization import WEIGHTS_FILE, package_versions, save_model
from compress.models.batchnorm_folding import fold_batchnorm
from compress.models.loading import build_model_like, load_model
from compress.models.network import Network
from compress.training.data import (
    CachedDataset,
    DataConfig,
    color_statistics,
    count_classes,
    create_scorer,
    image_cache_dir,
    load_training_images,
    load_validation_images,
    select_highest_entropy,
)
from compress.tasks import TASKS, task_for_card

Size = tuple[int, int]
Positive = Annotated[int, Field(gt=0)]


#: what a method may take from the teacher besides its answers -> how it is called in a table
TEACHER_SIGNALS = {"gradients": "gradients", "features": "features", "batchnorm": "BN statistics"}
DATA_SIGNALS = {"unlabeled": "images", "labeled": "labels"}


def required_signals(method: Method) -> list[str]:
    """What the method learns from, with its settings: data first, then what it takes from the teacher."""
    return [*(DATA_SIGNALS[need] for need in method.needs), *(TEACHER_SIGNALS[use] for use in method.uses)]


def incompatibility_reason(name: str, method: Method, task: str, teacher: nn.Module | None) -> str | None:
    """One sentence saying why the method cannot learn `task` from `teacher`, and what to do; None where it can."""
    if task not in method.tasks:
        made_for = " and ".join(method.tasks)
        return f"method {name} is made for {made_for}, and the teacher is for {task}; see `compress methods`."
    if teacher is None:
        return None
    if method.uses and is_black_box(teacher):
        wanted = " and ".join(TEACHER_SIGNALS[use] for use in method.uses)
        return (
            f"method {name} needs the teacher's {wanted}, and an ONNX file gives answers only; use kd or balanced, "
            "which need no more."
        )
    if "batchnorm" in method.uses and not batchnorm_layers(teacher):
        without = hasattr(method, "bn") and "batchnorm" not in replace(cast("Any", method), bn=0.0).uses
        way = "set method.bn to 0, or " if without else ""
        return (
            f"method {name} needs the statistics of BatchNorm layers, and this teacher has none; {way}use another "
            "method (mosaic, dafl, zskt and dfad need none)."
        )
    return None


@dataclass
class TaskConfig:
    """What is answered. Taken from the teacher where there is one."""

    name: str = "classification"  #: a name in TASKS; taken from the teacher or the labeled data
    classes: Positive | None = None  #: number of classes; None: as the teacher or the labeled data say
    image_size: Size | None = None  #: (height, width) in pixels; None: as the teacher says, or 32x32
    grayscale: bool | None = None  #: networks turn pictures grey first; None: as the teacher says
    resize: Positive | None = None  #: short side in pixels before cropping; None: as the teacher says


@dataclass
class TeacherConfig:
    """A trained model, and what its file does not say of itself."""

    model: str  #: embedded/NAME, a model folder, a checkpoint, a program, torchvision/NAME, timm/NAME
    architecture: str | None = None  #: architecture of a bare state dict; None: recognised
    mean: tuple[float, ...] | None = None  #: normalisation it was trained with, of values in [0, 1]
    std: tuple[float, ...] | None = None  #: normalisation it was trained with
    grayscale: bool | None = None  #: it reads grey images
    trust_pickle: bool = False  #: load a full pickle, which can run code
    fold_batchnorm: bool = False  #: fold BatchNorm into the convolutions before it: same answers, less work; not with method.bn


@dataclass
class StudentConfig:
    """The network that is trained."""

    model: str | None = None  #: architecture; None: a small one that suits the image size
    weights: str | None = None  #: start from this model instead of random weights


@dataclass
class TrainConfig:
    """Everything that `recipe.yaml` says."""

    task: TaskConfig = field(default_factory=TaskConfig)
    teachers: list[TeacherConfig] = field(default_factory=list)
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: dict[str, Any] = field(default_factory=lambda: {"name": "mosaic"})
    training: TrainingSchedule = field(default_factory=TrainingSchedule)


@dataclass
class TrainingSetup:
    """A checked plan with its networks, before data is decoded."""

    config: TrainConfig
    method: Method
    student: nn.Module
    card: ModelCard  #: of the student
    teachers: list[tuple[Network, ModelCard]]


def load_config(document: config.Document) -> tuple[TrainConfig, Method]:
    """The plan and its method from a recipe. Raises UsageError naming the key, the line and the nearest key."""
    plan = config.validate(TrainConfig, document)
    name = document.get("method.name", "mosaic")
    try:
        kind = find_method(str(name))
    except UsageError as error:
        raise document.error("method.name", str(error)) from error
    method = config.validate(kind, document, path="method", ignore=("name",))
    plan.method = {"name": name, **asdict(method)}
    validate_config(plan, method)
    return plan, method


def validate_config(plan: TrainConfig, method: Method) -> None:
    """Refuse what cannot work. Raises UsageError saying what to give."""
    if plan.task.name not in TASKS:
        raise UsageError(f"task.name: no such task {plan.task.name!r}{suggest_nearest(plan.task.name, TASKS)}")
    if len(plan.teachers) != method.teachers:
        raise UsageError(
            f"teachers: found {len(plan.teachers)}, expected {method.teachers} for method {plan.method['name']}"
            f"{'; give --teacher' if method.teachers else '; use `compress train`'}."
        )
    option = {"unlabeled": "--ood", "labeled": "--data"}
    for need in method.needs:
        if getattr(plan.data, need) is None:
            raise UsageError(f"data.{need}: method {plan.method['name']} needs it; give {option[need]}.")
    if "batchnorm" in method.uses and any(teacher.fold_batchnorm for teacher in plan.teachers):
        who = "method.bn" if getattr(method, "bn", 0) else f"method {plan.method['name']}"
        raise UsageError(
            f"teachers.fold_batchnorm: found with {who}, which looks at the teacher's BatchNorm statistics, and folding "
            "removes them; leave one of the two out."
        )
    endings = [name for name in ("steps", "epochs", "time_limit") if getattr(plan.training, name) is not None]
    if len(endings) != 1:
        found = " and ".join(endings) if endings else "none"
        raise UsageError(f"pace: found {found}, expected one of --steps, --epochs and --time-limit.")
    if plan.training.epochs is not None and not method.needs:
        raise UsageError(
            f"pace.epochs: found {plan.training.epochs:g}, but method {plan.method['name']} draws no images, so there is "
            "nothing to pass over; give --steps or --time-limit."
        )


#: length of a run for which the user gives none; MosaicKD's paper has 39,200 iterations for CIFAR-100
DEFAULT_STEPS = 10_000
#: of a batch whose size the user does not give: 256 images of 64x64; about 4 GB with MosaicKD and a ResNet-18
PIXELS_PER_BATCH = 256 * 64 * 64
#: task -> the student of images up to 64 pixels, and of larger ones
DEFAULT_STUDENTS = {
    "classification": ("wrn16_1", "torchvision/mobilenet_v2"),
    "segmentation": ("deeplab_wrn16_1", "deeplabv3_mobilenet_v2"),
}


def default_student(task: str, size: Size) -> str:
    """A small network that suits the task and the images: the paper's smallest up to 64 pixels, MobileNetV2 above."""
    return DEFAULT_STUDENTS[task][max(size) > 64]


def default_batch_size(preferred: int, size: Size) -> int:
    """The method's batch size, or for large images the power of two whose pixels fit into PIXELS_PER_BATCH."""
    fitting = max(1, PIXELS_PER_BATCH // (size[0] * size[1]))
    return min(preferred, max(8, 2 ** (fitting.bit_length() - 1)))


def prepare_training(plan: TrainConfig, method: Method) -> TrainingSetup:
    """Load the teachers and make the student; fill in what the teacher knows."""
    teachers = load_teachers(plan)
    like = teachers[0][1] if teachers else card_from_labels(plan)
    problem = incompatibility_reason(plan.method["name"], method, like.task, teachers[0][0] if teachers else None)
    if problem is not None:
        raise UsageError(problem)
    return add_student(plan, method, teachers, like)


def load_teachers(plan: TrainConfig) -> list[tuple[Network, ModelCard]]:
    """The teachers of a plan, as its task wants them. Raises what `load_model` raises."""
    task = plan.task
    return [
        load_model(
            t.model, architecture=t.architecture, classes=task.classes, image_size=task.image_size, resize=task.resize,
            mean=t.mean, std=t.std, grayscale=t.grayscale, trust_pickle=t.trust_pickle,
        )
        for t in plan.teachers
    ]  # fmt: skip


def card_from_labels(plan: TrainConfig) -> ModelCard:
    """The card of a model without a teacher: classes and normalisation from the labeled data themselves."""
    spec = plan.data.labeled
    assert spec is not None  # `check` saw to it
    images = open_images(spec, root=plan.data.root, split="train", labeled=True)
    classes = count_classes(images, spec)
    if plan.task.classes not in (None, classes):
        raise UsageError(f"{spec}: found {classes} classes, expected {plan.task.classes} (task.classes).")
    grey = bool(plan.task.grayscale)
    mean, std = color_statistics(images, grey=grey)
    task = "classification" if images.open_mask is None else "segmentation"
    size = plan.task.image_size or ((32, 32) if images.open_mask is None else (64, 64))
    return ModelCard(
        "", classes, size, task=task, mean=mean, std=std, grayscale=grey, resize=plan.task.resize,
        class_names=images.class_names,
    )  # fmt: skip


def add_student(plan: TrainConfig, method: Method, teachers: list[tuple[Network, ModelCard]], like: ModelCard) -> TrainingSetup:
    """The prepared plan whose student has the task, classes, size and normalisation of `like`."""
    plan.task = TaskConfig(like.task, like.classes, like.image_size, like.grayscale, like.resize)
    plan.student.model = plan.student.model or default_student(like.task, like.image_size)
    torch.manual_seed(plan.training.seed)
    student, card = build_model_like(plan.student.model, like=like)
    if plan.student.weights is not None:
        student, old = load_model(plan.student.weights, architecture=plan.student.model, classes=like.classes)
        if is_black_box(student):
            raise UsageError(
                f"student.weights: {plan.student.weights} is an ONNX file, which cannot be trained further; give a "
                "checkpoint or a model folder."
            )
        card = replace(card, mean=old.mean, std=old.std, grey=old.grayscale)
    card.provenance = {
        "method": plan.method["name"],
        "teachers": [teacher_provenance(t, c) for t, (_, c) in zip(plan.teachers, teachers, strict=True)],
    }
    plan.training.batch_size = plan.training.batch_size or default_batch_size(method.batch_size, like.image_size)
    return TrainingSetup(plan, method, student, card, teachers)


def teacher_provenance(teacher: TeacherConfig, card: ModelCard) -> dict[str, Any]:
    path = Path(teacher.model)
    digest = sha256(path) if path.is_file() else card.sha256
    return {"model": teacher.model, "architecture": card.architecture, "sha256": digest}


# The run.


def create_run(ready: TrainingSetup, folder: Path, *, resume: bool | None = None, quiet: bool = False) -> Run:
    """The run of a prepared plan in `folder`: new, or the same one going on.

    `resume` None goes on where the folder holds this very recipe, and begins where it holds none; True insists on
    going on; False begins anew and forgets the old run. Raises UsageError where the folder holds another recipe.
    """
    plan = ready.config
    place = create_accelerator(plan.training.device, plan.training.precision)
    display = ProgressDisplay(plan.method["name"], quiet=quiet or place.rank > 0)
    validate_run_dir(folder, plan, resume=resume)
    validate = None
    if plan.data.validation is not None:
        found = load_validation_images(
            plan.data.validation, ready.card, root=plan.data.root, folder=image_cache_dir(plan.data.cache_dir),
            max_unreadable=plan.data.max_unreadable, say=display.print_line,
        )  # fmt: skip
        validate = create_scorer(found, ready.card, place)
    cached = {
        kind: load_training_images(plan.data, ready.card, kind, seed=plan.training.seed, say=display.print_line)
        for kind in ready.method.needs
    }
    teachers = [FrozenModel(net, place) for net in fold_teachers(ready)]
    if plan.data.subset is not None and "unlabeled" in cached:
        cached["unlabeled"] = select_highest_entropy(cached["unlabeled"], teachers[0], plan.data.subset)
    place.barrier()
    if place.rank == 0:
        initialize_run_dir(folder, plan, fresh=resume is False)
    place.barrier()
    batch_size = plan.training.batch_size
    assert batch_size is not None
    first = cached[ready.method.needs[0]] if ready.method.needs else None
    return Run(
        run_dir=folder, accelerator=place, schedule=plan.training,
        task=task_for_card(ready.card),
        student=ready.student, teachers=teachers, sources={k: CachedDataset(c) for k, c in cached.items()},
        batch_size=batch_size, steps=count_steps(plan.training, len(first) if first is not None else 0), display=display,
        validate=validate, save_student=create_student_saver(folder, ready),
    )  # fmt: skip


def fold_teachers(ready: TrainingSetup) -> list[nn.Module]:
    """The teachers as they are asked: with their BatchNorm folded where the plan says so."""
    pairs = zip(ready.config.teachers, ready.teachers, strict=True)
    return [fold_batchnorm(net, card.image_size) if t.fold_batchnorm else net for t, (net, card) in pairs]


def count_steps(pace: TrainingSchedule, images: int) -> int | None:
    if pace.time_limit is not None:
        return None
    if pace.steps is not None:
        return pace.steps
    assert pace.epochs is not None
    assert pace.batch_size is not None
    return max(1, math.ceil(pace.epochs * images / pace.batch_size))


RECIPE = "recipe.yaml"
#: settings that do not change what is computed, or only where
LOCATION_KEYS = ("pace.device", "data.cache", "data.root", "pace.keep", "pace.log", "pace.save")


def validate_run_dir(folder: Path, plan: TrainConfig, *, resume: bool | None) -> None:
    """Refuse, before anything is spent or written, a folder of another recipe, or one without the run to go on with."""
    recipe = folder / RECIPE
    if recipe.exists() and resume is not False:
        old = config.load_yaml(recipe)
        different = config_differences(config.to_plain(plan), old.data)
        if different:
            raise UsageError(
                f"{folder}: holds a run of another recipe ({'; '.join(different[:3])}); choose another --out, "
                f"give the same settings to go on, or --fresh to replace it."
            )
    elif resume:
        raise UsageError(f"{folder}: there is no run to resume; leave --resume out to begin one.")


def initialize_run_dir(folder: Path, plan: TrainConfig, *, fresh: bool) -> None:
    """Make a checked `folder` this plan's: its recipe is written there, and if `fresh` the run before is forgotten."""
    recipe = folder / RECIPE
    if fresh:
        clear_run_dir(folder)
    if not recipe.exists():
        head = f"# {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; " + ", ".join(f"{k} {v}" for k, v in package_versions().items())
        write_text(recipe, f"{head}\n{config.dump_yaml(plan)}")


def config_differences(new: Mapping[str, Any], old: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings that differ, as `pace.steps: 10 there, 20 here`."""
    found: list[str] = []
    for key in [*new, *(k for k in old if k not in new)]:
        name, mine, theirs = f"{path}{key}", new.get(key), old.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += config_differences(mine, theirs, f"{name}.")
        elif mine != theirs and name not in LOCATION_KEYS:
            found.append(f"{name}: {theirs!r} there, {mine!r} here")
    return found


def clear_run_dir(folder: Path) -> None:
    """Remove what a run of ours left in `folder`, and nothing else."""
    import shutil

    for name in ("checkpoints", "images", "pool", "tensorboard", "best", "last"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", RECIPE, "record.json", "records.jsonl", "pool.png", "overlays.npz", "overlays.png"):
        (folder / name).unlink(missing_ok=True)


def create_student_saver(folder: Path, ready: TrainingSetup) -> Callable[[str, nn.Module, dict[str, float], int], None]:
    """A function that writes the student as a model folder `best` or `last` in the run's folder."""

    def keep(name: str, net: nn.Module, metrics: dict[str, float], step: int) -> None:
        assert isinstance(net, Network)
        made = {**ready.card.provenance, "step": step, "recipe": f"../{RECIPE}", "versions": package_versions()}
        save_model(folder / name, net, replace(ready.card, metrics=metrics, provenance=made))

    return keep


__all__ = ["WEIGHTS_FILE", "Prepared", "TrainConfig", "open_run", "prepare_training", "read_plan"]
