"""The plan: all settings of a run, checked before anything is spent; and from it the run itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from compress import config
from compress.data import open_images
from compress.engine.display import Display
from compress.engine.method import Method
from compress.engine.pace import Pace
from compress.engine.place import open_place
from compress.engine.player import Frozen
from compress.engine.run import Run
from compress.errors import UsageError, nearest
from compress.files import sha256, write_text
from compress.methods import find_method
from compress.models.blackbox import is_black_box
from compress.models.card import Card
from compress.models.folder import WEIGHTS, save_model, versions
from compress.models.folding import folded
from compress.models.loading import load_model, new_model
from compress.models.network import Network
from compress.requirements import obstacle
from compress.sources import (
    CachedSource,
    DataPlan,
    cache_folder,
    colour_statistics,
    count_classes,
    ood_subset,
    scorer,
    training_images,
    validation_images,
)
from compress.tasks import TASKS, task_of

Size = tuple[int, int]
Positive = Annotated[int, Field(gt=0)]


@dataclass
class TaskPlan:
    """What is answered. Taken from the teacher where there is one."""

    kind: str = "classification"  #: a name in TASKS; taken from the teacher or the labelled data
    classes: Positive | None = None  #: number of classes; None: as the teacher or the labelled data say
    image_size: Size | None = None  #: (height, width) in pixels; None: as the teacher says, or 32x32
    grey: bool | None = None  #: networks turn pictures grey first; None: as the teacher says
    resize: Positive | None = None  #: short side in pixels before cropping; None: as the teacher says


@dataclass
class TeacherPlan:
    """A trained model, and what its file does not say of itself."""

    model: str  #: embedded/NAME, a model folder, a checkpoint, a program, torchvision/NAME, timm/NAME
    arch: str | None = None  #: architecture of a bare state dict; None: recognised
    mean: tuple[float, ...] | None = None  #: normalisation it was trained with, of values in [0, 1]
    std: tuple[float, ...] | None = None  #: normalisation it was trained with
    grey: bool | None = None  #: it reads grey images
    trust_pickle: bool = False  #: load a full pickle, which can run code
    fold: bool = False  #: fold BatchNorm into the convolutions before it: same answers, less work; not with method.bn


@dataclass
class StudentPlan:
    """The network that is trained."""

    model: str | None = None  #: architecture; None: a small one that suits the image size
    weights: str | None = None  #: start from this model instead of random weights


@dataclass
class Plan:
    """Everything that `recipe.yaml` says."""

    task: TaskPlan = field(default_factory=TaskPlan)
    teachers: list[TeacherPlan] = field(default_factory=list)
    student: StudentPlan = field(default_factory=StudentPlan)
    data: DataPlan = field(default_factory=DataPlan)
    method: dict[str, Any] = field(default_factory=lambda: {"name": "mosaic"})
    pace: Pace = field(default_factory=Pace)


@dataclass
class Prepared:
    """A checked plan with its networks, before data is decoded."""

    plan: Plan
    method: Method
    student: nn.Module
    card: Card  #: of the student
    teachers: list[tuple[Network, Card]]


def read_plan(document: config.Document) -> tuple[Plan, Method]:
    """The plan and its method from a recipe. Raises UsageError naming the key, the line and the nearest key."""
    plan = config.validate(Plan, document)
    name = document.get("method.name", "mosaic")
    try:
        kind = find_method(str(name))
    except UsageError as error:
        raise document.error("method.name", str(error)) from error
    method = config.validate(kind, document, path="method", ignore=("name",))
    plan.method = {"name": name, **asdict(method)}
    check(plan, method)
    return plan, method


def check(plan: Plan, method: Method) -> None:
    """Refuse what cannot work. Raises UsageError saying what to give."""
    if plan.task.kind not in TASKS:
        raise UsageError(f"task.kind: no such task {plan.task.kind!r}{nearest(plan.task.kind, TASKS)}")
    if len(plan.teachers) != method.teachers:
        raise UsageError(
            f"teachers: found {len(plan.teachers)}, expected {method.teachers} for method {plan.method['name']}"
            f"{'; give --teacher' if method.teachers else '; use `compress train`'}."
        )
    option = {"unlabelled": "--ood", "labelled": "--data"}
    for need in method.needs:
        if getattr(plan.data, need) is None:
            raise UsageError(f"data.{need}: method {plan.method['name']} needs it; give {option[need]}.")
    if "batchnorm" in method.uses and any(teacher.fold for teacher in plan.teachers):
        who = "method.bn" if getattr(method, "bn", 0) else f"method {plan.method['name']}"
        raise UsageError(
            f"teachers.fold: found with {who}, which looks at the teacher's BatchNorm statistics, and folding "
            "removes them; leave one of the two out."
        )
    endings = [name for name in ("steps", "epochs", "time_limit") if getattr(plan.pace, name) is not None]
    if len(endings) != 1:
        found = " and ".join(endings) if endings else "none"
        raise UsageError(f"pace: found {found}, expected one of --steps, --epochs and --time-limit.")
    if plan.pace.epochs is not None and not method.needs:
        raise UsageError(
            f"pace.epochs: found {plan.pace.epochs:g}, but method {plan.method['name']} draws no images, so there is "
            "nothing to pass over; give --steps or --time-limit."
        )


#: length of a run for which the user gives none; MosaicKD's paper has 39,200 iterations for CIFAR-100
DEFAULT_STEPS = 10_000
#: of a batch whose size the user does not give: 256 images of 64x64; about 4 GB with MosaicKD and a ResNet-18
PIXELS_PER_BATCH = 256 * 64 * 64
#: task -> the student of images up to 64 pixels, and of larger ones
STUDENTS = {
    "classification": ("wrn16_1", "torchvision/mobilenet_v2"),
    "segmentation": ("deeplab_wrn16_1", "deeplabv3_mobilenet_v2"),
}


def default_student(task: str, size: Size) -> str:
    """A small network that suits the task and the images: the paper's smallest up to 64 pixels, MobileNetV2 above."""
    return STUDENTS[task][max(size) > 64]


def default_batch_size(preferred: int, size: Size) -> int:
    """The method's batch size, or for large images the power of two whose pixels fit into PIXELS_PER_BATCH."""
    fitting = max(1, PIXELS_PER_BATCH // (size[0] * size[1]))
    return min(preferred, max(8, 2 ** (fitting.bit_length() - 1)))


def prepare(plan: Plan, method: Method) -> Prepared:
    """Load the teachers and make the student; fill in what the teacher knows."""
    teachers = load_teachers(plan)
    like = teachers[0][1] if teachers else card_from_labels(plan)
    problem = obstacle(plan.method["name"], method, like.task, teachers[0][0] if teachers else None)
    if problem is not None:
        raise UsageError(problem)
    return with_student(plan, method, teachers, like)


def load_teachers(plan: Plan) -> list[tuple[Network, Card]]:
    """The teachers of a plan, as its task wants them. Raises what `load_model` raises."""
    task = plan.task
    return [
        load_model(
            t.model, arch=t.arch, classes=task.classes, image_size=task.image_size, resize=task.resize,
            mean=t.mean, std=t.std, grey=t.grey, trust_pickle=t.trust_pickle,
        )
        for t in plan.teachers
    ]  # fmt: skip


def card_from_labels(plan: Plan) -> Card:
    """The card of a model without a teacher: classes and normalisation from the labelled data themselves."""
    spec = plan.data.labelled
    assert spec is not None  # `check` saw to it
    images = open_images(spec, root=plan.data.root, split="train", labelled=True)
    classes = count_classes(images, spec)
    if plan.task.classes not in (None, classes):
        raise UsageError(f"{spec}: found {classes} classes, expected {plan.task.classes} (task.classes).")
    grey = bool(plan.task.grey)
    mean, std = colour_statistics(images, grey=grey)
    task = "classification" if images.masks is None else "segmentation"
    size = plan.task.image_size or ((32, 32) if images.masks is None else (64, 64))
    return Card(
        "", classes, size, task=task, mean=mean, std=std, grey=grey, resize=plan.task.resize,
        class_names=images.class_names,
    )  # fmt: skip


def with_student(plan: Plan, method: Method, teachers: list[tuple[Network, Card]], like: Card) -> Prepared:
    """The prepared plan whose student has the task, classes, size and normalisation of `like`."""
    plan.task = TaskPlan(like.task, like.classes, like.image_size, like.grey, like.resize)
    plan.student.model = plan.student.model or default_student(like.task, like.image_size)
    torch.manual_seed(plan.pace.seed)
    student, card = new_model(plan.student.model, like=like)
    if plan.student.weights is not None:
        student, old = load_model(plan.student.weights, arch=plan.student.model, classes=like.classes)
        if is_black_box(student):
            raise UsageError(
                f"student.weights: {plan.student.weights} is an ONNX file, which cannot be trained further; give a "
                "checkpoint or a model folder."
            )
        card = replace(card, mean=old.mean, std=old.std, grey=old.grey)
    card.provenance = {
        "method": plan.method["name"],
        "teachers": [provenance(t, c) for t, (_, c) in zip(plan.teachers, teachers, strict=True)],
    }
    plan.pace.batch_size = plan.pace.batch_size or default_batch_size(method.batch_size, like.image_size)
    return Prepared(plan, method, student, card, teachers)


def provenance(teacher: TeacherPlan, card: Card) -> dict[str, Any]:
    path = Path(teacher.model)
    digest = sha256(path) if path.is_file() else card.sha256
    return {"model": teacher.model, "architecture": card.architecture, "sha256": digest}


# The run.


def open_run(ready: Prepared, folder: Path, *, resume: bool | None = None, quiet: bool = False) -> Run:
    """The run of a prepared plan in `folder`: new, or the same one going on.

    `resume` None goes on where the folder holds this very recipe, and begins where it holds none; True insists on
    going on; False begins anew and forgets the old run. Raises UsageError where the folder holds another recipe.
    """
    plan = ready.plan
    place = open_place(plan.pace.device, plan.pace.precision)
    display = Display(plan.method["name"], quiet=quiet or place.rank > 0)
    check_folder(folder, plan, resume=resume)
    validate = None
    if plan.data.validation is not None:
        found = validation_images(
            plan.data.validation, ready.card, root=plan.data.root, folder=cache_folder(plan.data.cache),
            max_bad=plan.data.max_bad, say=display.say,
        )  # fmt: skip
        validate = scorer(found, ready.card, place)
    cached = {
        kind: training_images(plan.data, ready.card, kind, seed=plan.pace.seed, say=display.say)
        for kind in ready.method.needs
    }
    teachers = [Frozen(net, place) for net in asked(ready)]
    if plan.data.subset is not None and "unlabelled" in cached:
        cached["unlabelled"] = ood_subset(cached["unlabelled"], teachers[0], plan.data.subset)
    place.barrier()
    if place.rank == 0:
        settle_folder(folder, plan, fresh=resume is False)
    place.barrier()
    batch_size = plan.pace.batch_size
    assert batch_size is not None
    first = cached[ready.method.needs[0]] if ready.method.needs else None
    return Run(
        folder=folder, place=place, pace=plan.pace,
        task=task_of(ready.card),
        student=ready.student, teachers=teachers, sources={k: CachedSource(c) for k, c in cached.items()},
        batch_size=batch_size, steps=steps_of(plan.pace, len(first) if first is not None else 0), display=display,
        validate=validate, keep_student=student_keeper(folder, ready),
    )  # fmt: skip


def asked(ready: Prepared) -> list[nn.Module]:
    """The teachers as they are asked: with their BatchNorm folded where the plan says so."""
    pairs = zip(ready.plan.teachers, ready.teachers, strict=True)
    return [folded(net, card.image_size) if t.fold else net for t, (net, card) in pairs]


def steps_of(pace: Pace, images: int) -> int | None:
    if pace.time_limit is not None:
        return None
    if pace.steps is not None:
        return pace.steps
    assert pace.epochs is not None
    assert pace.batch_size is not None
    return max(1, math.ceil(pace.epochs * images / pace.batch_size))


RECIPE = "recipe.yaml"
#: settings that do not change what is computed, or only where
FREE = ("pace.device", "data.cache", "data.root", "pace.keep", "pace.log", "pace.save")


def check_folder(folder: Path, plan: Plan, *, resume: bool | None) -> None:
    """Refuse, before anything is spent or written, a folder of another recipe, or one without the run to go on with."""
    recipe = folder / RECIPE
    if recipe.exists() and resume is not False:
        old = config.read_yaml(recipe)
        different = differences(config.plain(plan), old.data)
        if different:
            raise UsageError(
                f"{folder}: holds a run of another recipe ({'; '.join(different[:3])}); choose another --out, "
                f"give the same settings to go on, or --fresh to replace it."
            )
    elif resume:
        raise UsageError(f"{folder}: there is no run to resume; leave --resume out to begin one.")


def settle_folder(folder: Path, plan: Plan, *, fresh: bool) -> None:
    """Make a checked `folder` this plan's: its recipe is written there, and if `fresh` the run before is forgotten."""
    recipe = folder / RECIPE
    if fresh:
        forget(folder)
    if not recipe.exists():
        head = f"# {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; " + ", ".join(f"{k} {v}" for k, v in versions().items())
        write_text(recipe, f"{head}\n{config.dump(plan)}")


def differences(new: Mapping[str, Any], old: Mapping[str, Any], path: str = "") -> list[str]:
    """Settings that differ, as `pace.steps: 10 there, 20 here`."""
    found: list[str] = []
    for key in [*new, *(k for k in old if k not in new)]:
        name, mine, theirs = f"{path}{key}", new.get(key), old.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += differences(mine, theirs, f"{name}.")
        elif mine != theirs and name not in FREE:
            found.append(f"{name}: {theirs!r} there, {mine!r} here")
    return found


def forget(folder: Path) -> None:
    """Remove what a run of ours left in `folder`, and nothing else."""
    import shutil

    for name in ("checkpoints", "pictures", "pool", "tensorboard", "best", "last"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", RECIPE, "record.json", "records.jsonl", "pool.png", "overlays.npz", "overlays.png"):
        (folder / name).unlink(missing_ok=True)


def student_keeper(folder: Path, ready: Prepared) -> Callable[[str, nn.Module, dict[str, float], int], None]:
    """A function that writes the student as a model folder `best` or `last` in the run's folder."""

    def keep(name: str, net: nn.Module, metrics: dict[str, float], step: int) -> None:
        assert isinstance(net, Network)
        made = {**ready.card.provenance, "step": step, "recipe": f"../{RECIPE}", "versions": versions()}
        save_model(folder / name, net, replace(ready.card, metrics=metrics, provenance=made))

    return keep


__all__ = ["WEIGHTS", "Plan", "Prepared", "open_run", "prepare", "read_plan"]
