"""From a config to networks and a run: compatibility checks, defaults and the rules of a run directory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from compress.config import Document, validate
from compress.data import ImageSet, open_images
from compress.data.cache import ImageCache
from compress.engine.accelerator import Accelerator, create_accelerator
from compress.engine.config import TrainingSchedule
from compress.engine.hooks import batchnorm_layers
from compress.engine.logging import ProgressDisplay
from compress.engine.method import Method
from compress.engine.run import Run
from compress.engine.synthesis import Synthesizer, is_synthesizer
from compress.engine.trainable import FrozenModel
from compress.errors import UsageError, suggest_nearest
from compress.files import sha256
from compress.methods import find_method
from compress.models.batchnorm_folding import fold_batchnorm
from compress.models.card import SIGMOID_TASKS, ModelCard, base_task
from compress.models.loading import load_model
from compress.models.model_input import ModelInput, describe_input
from compress.models.network import Network
from compress.models.onnx_teacher import is_black_box
from compress.models.overrides import ModelOverrides
from compress.models.registry import build_model_like
from compress.models.serialization import package_versions, save_model
from compress.own_files import RECIPE
from compress.resources import return_freed_blocks
from compress.tasks import TASKS, task_for_card
from compress.training.config import Size, TaskConfig, TeacherConfig, TrainConfig
from compress.training.data import (
    CachedDataset,
    color_statistics,
    count_classes,
    create_scorer,
    load_training_images,
    load_validation_images,
    select_uncertain_images,
)
from compress.training.run_dir import identify_run, initialize_run_dir, validate_run_dir
from compress.training.stored_recipes import drop_removed
from compress.training.teacher_score import (
    read_teacher_metrics,
    require_useful_teacher,
    score_teacher,
    store_teacher_metrics,
)
from compress.training.trust import require_consent

#: steps of a run without a given length; MosaicKD's paper has 39,200 for CIFAR-100
DEFAULT_STEPS = 10_000
#: pixels of a batch of default size: 256 images of 64x64; about 4 GB with MosaicKD and a ResNet-18
PIXELS_PER_BATCH = 256 * 64 * 64
#: attribute of a method whose images_per_synthesis was not given, so that it may be made to fit the image size
DEFAULT_SYNTHESIS = "has_default_synthesis"
#: task -> student for images up to 64 pixels, and for larger ones
DEFAULT_STUDENTS = {
    "classification": ("wrn16_1", "torchvision/mobilenet_v2"),
    "segmentation": ("deeplab_wrn16_1", "deeplabv3_mobilenet_v2"),
}
#: what a method may use besides logits -> its name in tables
TEACHER_SIGNALS = {"gradients": "gradients", "features": "features", "batchnorm": "BN statistics"}
DATA_SIGNALS = {"unlabeled": "images", "labeled": "labels"}
#: kind of data -> its option
DATA_OPTIONS = {"unlabeled": "--ood", "labeled": "--data"}


@dataclass
class TrainingSetup:
    """A validated config with its networks; no training data is decoded yet."""

    config: TrainConfig
    method: Method
    student: nn.Module
    card: ModelCard  #: of the student
    teachers: list[tuple[Network, ModelCard]]

    @property
    def teacher_input(self) -> ModelInput | None:
        """How the teacher reads images, and where these facts come from; None without a teacher."""
        if not self.teachers:
            return None
        return describe_input(self.config.teachers[0].model, self.teachers[0][1])


def load_config(
    document: Document, *, allow_code: bool = False, trust_pickle: bool = False
) -> tuple[TrainConfig, Method]:
    """Validate a recipe; return its config and method.

    Args:
        document: a recipe file, with the settings of the user over it.
        allow_code: the file may name code of the user; see `require_consent`.
        trust_pickle: the file may say that pickles are trusted.

    Raises:
        UsageError: a setting is wrong; the message names file, line, key and the nearest valid key.
    """
    document = expand_auto_batch(drop_removed(document))
    config = validate(TrainConfig, document)
    require_consent(document, allow_code=allow_code, trust_pickle=trust_pickle)
    name = document.get("method.name", "mosaic")
    try:
        method_class = find_method(str(name))
    except UsageError as error:
        raise document.error("method.name", str(error)) from error
    method = validate(method_class, document, path="method", ignore=("name",))
    makes_images: bool = is_synthesizer(method)
    if makes_images and document.get("method.images_per_synthesis") is None:
        setattr(method, DEFAULT_SYNTHESIS, True)
    config.method = {"name": name, **asdict(method)}
    validate_config(config, method)
    return config, method


def expand_auto_batch(document: Document) -> Document:
    """Return the document with `training.batch_size: auto` as the settings that it stands for."""
    if document.get("training.batch_size") != "auto":
        return document
    return document.merge({"training": {"batch_size": None, "micro_batch": "auto"}}, source="")


def validate_config(config: TrainConfig, method: Method) -> None:
    """Check settings that depend on each other. Raises UsageError."""
    name = config.method["name"]
    if config.task.name is not None and config.task.name not in TASKS:
        raise UsageError(f"task.name: no such task {config.task.name!r}{suggest_nearest(config.task.name, TASKS)}")
    if len(config.teachers) != method.teachers:
        raise UsageError(
            f"teachers: found {len(config.teachers)}, expected {method.teachers} for method {name}"
            f"{'; give --teacher' if method.teachers else '; use `compress train`'}."
        )
    for need in method.needs:
        if getattr(config.data, need) is None:
            raise UsageError(f"data.{need}: missing, but method {name} requires it; give {DATA_OPTIONS[need]}.")
    if "batchnorm" in method.uses and any(teacher.fold_batchnorm for teacher in config.teachers):
        user = "method.bn" if getattr(method, "bn", 0) else f"method {name}"
        raise UsageError(
            f"teachers.fold_batchnorm: found with {user}, which uses the teacher's BatchNorm statistics; folding "
            "removes them. Remove one of the two."
        )
    lengths = [key for key in ("steps", "epochs", "time_limit") if getattr(config.training, key) is not None]
    if len(lengths) != 1:
        found = " and ".join(lengths) or "none"
        raise UsageError(f"training: found {found}, expected one of --steps, --epochs and --time-limit.")
    if config.training.epochs is not None and not method.needs:
        raise UsageError(
            f"training.epochs: found {config.training.epochs:g}, but method {name} uses no images; give --steps or "
            "--time-limit."
        )


def required_signals(method: Method) -> list[str]:
    """List what the method learns from with its settings: data first, then signals of the teacher."""
    return [*(DATA_SIGNALS[need] for need in method.needs), *(TEACHER_SIGNALS[use] for use in method.uses)]


def incompatibility_reason(name: str, method: Method, task: str, teacher: nn.Module | None) -> str | None:
    """Explain why the method cannot learn `task` from `teacher`, and what to do; None if it can."""
    if task not in method.tasks:
        return f"method {name} supports {' and '.join(method.tasks)}, found {task}; see `compress methods`."
    if teacher is None:
        return None
    if method.uses and is_black_box(teacher):
        signals = " and ".join(TEACHER_SIGNALS[use] for use in method.uses)
        return f"method {name} requires the teacher's {signals}; an ONNX file gives logits only. Use kd or balanced."
    if "batchnorm" in method.uses and not batchnorm_layers(teacher):
        is_optional = hasattr(method, "bn") and "batchnorm" not in replace(cast("Any", method), bn=0.0).uses
        return (
            f"method {name} requires BatchNorm statistics, and this teacher has none; "
            f"{'set method.bn to 0, or ' if is_optional else ''}use another method (mosaic, dafl, zskt and dfad "
            "require none)."
        )
    return None


def default_student(task: str, size: Size) -> str:
    """Return the default student: the paper's smallest up to 64 pixels, MobileNetV2 above."""
    return DEFAULT_STUDENTS[base_task(task)][max(size) > 64]


def default_batch_size(preferred: int, size: Size) -> int:
    """Return the method's batch size; for large images the power of two that fits into PIXELS_PER_BATCH."""
    fitting = max(1, PIXELS_PER_BATCH // (size[0] * size[1]))
    return min(preferred, max(8, 2 ** (fitting.bit_length() - 1)))


def prepare_training(config: TrainConfig, method: Method) -> TrainingSetup:
    """Load the teachers and build the student; fill in the settings that follow from the teacher.

    Raises:
        UsageError: the method does not fit the teacher, or a model or data set does not exist.
        CompressError: a checkpoint is damaged.
    """
    teachers = load_teachers(config)
    like = teachers[0][1] if teachers else card_from_labels(config)
    teacher = teachers[0][0] if teachers else None
    reason = incompatibility_reason(config.method["name"], method, like.task, teacher)
    if reason is not None:
        raise UsageError(reason)
    return add_student(config, method, teachers, like)


def load_teachers(config: TrainConfig) -> list[tuple[Network, ModelCard]]:
    """Load the teachers for the task of the config."""
    task = config.task
    return [
        load_model(
            teacher.model,
            ModelOverrides(
                architecture=teacher.architecture, classes=task.classes, image_size=task.image_size, resize=task.resize,
                mean=teacher.mean, std=teacher.std, class_names=teacher.class_names, ema=teacher.ema,
                grayscale=task.grayscale if teacher.grayscale is None else teacher.grayscale, output=teacher.output,
                trust_pickle=teacher.trust_pickle, task=task.name, threshold=task.threshold,
            ),
        )
        for teacher in config.teachers
    ]  # fmt: skip


def card_from_labels(config: TrainConfig) -> ModelCard:
    """Create the card of a model without a teacher: classes and normalization of the labeled data."""
    spec = config.data.labeled
    assert spec is not None  # see validate_config
    images = open_images(spec, root=config.data.root, split="train", labeled=True)
    classes, names, task = count_classes(images, spec), images.class_names, infer_task_of_labels(images)
    wanted = config.task.name or task
    if wanted != task:
        if wanted != SIGMOID_TASKS.get(task) or classes > 2:
            raise UsageError(f"{spec}: found labels of {classes} classes for {task}, expected some for {wanted}.")
        classes, names = 1, names[-1:] if names else None
    if task == "classification" and wanted == task and classes == 1:
        raise UsageError(f"{spec}: found one class, expected two or more; the images of each lie in a folder.")
    if config.task.classes not in (None, classes):
        raise UsageError(f"{spec}: found {classes} classes, expected {config.task.classes} (task.classes).")
    grayscale = bool(config.task.grayscale)
    mean, std = color_statistics(images, grayscale=grayscale)
    is_segmentation = images.open_mask is not None
    return ModelCard(
        "", classes, config.task.image_size or ((64, 64) if is_segmentation else (32, 32)),
        task=wanted, mean=mean, std=std, grayscale=grayscale,
        resize=config.task.resize, class_names=names,
        threshold=config.task.threshold or 0.5,
    )  # fmt: skip


def infer_task_of_labels(images: ImageSet) -> str:
    """Return the task of labeled images, by the kind of their labels."""
    if images.open_mask is not None:
        return "segmentation"
    return "multilabel_classification" if images.labels is not None and images.labels.ndim == 2 else "classification"


def add_student(
    config: TrainConfig, method: Method, teachers: list[tuple[Network, ModelCard]], like: ModelCard
) -> TrainingSetup:
    """Build the student with the task, classes, size and normalization of `like`."""
    config.task = TaskConfig(
        like.task, like.classes, like.image_size, like.grayscale, like.resize, like.decision_threshold
    )
    config.student.model = config.student.model or default_student(like.task, like.image_size)
    torch.manual_seed(config.training.seed)
    student, card = build_model_like(config.student.model, like=like)
    if config.student.weights is not None:
        overrides = ModelOverrides(architecture=config.student.model, classes=like.classes)
        student, initial = load_model(config.student.weights, overrides)
        if is_black_box(student):
            raise UsageError(
                f"student.weights: found the ONNX file {config.student.weights}, which cannot be trained; give a "
                "checkpoint or a model directory."
            )
        card = replace(card, mean=initial.mean, std=initial.std, grayscale=initial.grayscale)
    card.provenance = {
        "method": config.method["name"],
        "teachers": [teacher_provenance(t, c) for t, (_, c) in zip(config.teachers, teachers, strict=True)],
    }
    batch_size = config.training.batch_size or default_batch_size(method.batch_size, like.image_size)
    config.training.batch_size = batch_size
    if getattr(method, DEFAULT_SYNTHESIS, False):
        synthesizer = cast("Synthesizer", method)
        synthesizer.images_per_synthesis = default_batch_size(synthesizer.images_per_synthesis, like.image_size)
        config.method["images_per_synthesis"] = synthesizer.images_per_synthesis
    return TrainingSetup(config, method, student, card, teachers)


def teacher_provenance(teacher: TeacherConfig, card: ModelCard) -> dict[str, Any]:
    path = Path(teacher.model)
    digest = sha256(path) if path.is_file() else card.sha256
    return {"model": teacher.model, "architecture": card.architecture, "sha256": digest}


def create_run(setup: TrainingSetup, run_dir: Path, *, resume: bool | None = None, quiet: bool = False) -> Run:
    """Create the run of a setup: decode the data and write the recipe; `Run.resume` then loads a checkpoint.

    Args:
        setup: from `prepare_training`.
        run_dir: run directory.
        resume: None continues a run of the same recipe and otherwise begins one; True requires a run; False removes
            the old run.
        quiet: show no progress.

    Raises:
        UsageError: the directory holds a run of another recipe, or none with `resume`.
    """
    config = setup.config
    accelerator = create_accelerator(config.training.device, config.training.precision)
    assert config.training.micro_batch != "auto"  # see fit_memory
    accelerator = replace(accelerator, micro_batch=config.training.micro_batch)
    if accelerator.micro_batch is not None:
        return_freed_blocks()
    display = ProgressDisplay(config.method["name"], quiet=quiet or accelerator.rank > 0)
    identity = identify_run(config, [net for net, _ in setup.teachers])
    validate_run_dir(run_dir, config, resume=resume, identity=identity)
    scorer = teacher_metrics = None
    if config.data.validation is not None:
        validation = load_validation_images(config.data, setup.card, progress=display.print_line)
        scorer = create_scorer(validation, setup.card, accelerator)
        if setup.teachers and accelerator.rank == 0:
            known = None if resume is False else read_teacher_metrics(run_dir)
            teacher_metrics = known or measure_teacher(setup, validation, accelerator, display.print_line)
    caches = {
        kind: load_training_images(
            config.data, setup.card, kind, seed=config.training.seed, progress=display.print_line
        )
        for kind in setup.method.needs
    }
    teachers = [FrozenModel(net, accelerator) for net in fold_teachers(setup)]
    if config.data.subset is not None and "unlabeled" in caches:
        caches["unlabeled"] = select_uncertain_images(
            caches["unlabeled"], teachers[0], config.data.subset, task_for_card(setup.card).rows
        )
    accelerator.barrier()
    if accelerator.rank == 0:
        initialize_run_dir(run_dir, config, identity, fresh=resume is False)
        if teacher_metrics is not None:
            store_teacher_metrics(run_dir, teacher_metrics)
    accelerator.barrier()
    batch_size = config.training.batch_size
    assert batch_size is not None  # see add_student
    image_count = len(caches[setup.method.needs[0]]) if setup.method.needs else 0
    return Run(
        run_dir=run_dir, accelerator=accelerator, schedule=config.training, task=task_for_card(setup.card),
        student=setup.student, teachers=teachers,
        sources={kind: CachedDataset(cache) for kind, cache in caches.items()}, batch_size=batch_size,
        steps=count_steps(config.training, image_count), display=display, validate=scorer,
        teacher_metrics=teacher_metrics, save_student=create_student_saver(run_dir, setup),
    )  # fmt: skip


def measure_teacher(
    setup: TrainingSetup, validation: ImageCache, accelerator: Accelerator, progress: Callable[[str], None]
) -> dict[str, float]:
    """Score the teacher before the training. Raises CompressError if it is near chance, unless that is allowed."""
    teacher, data = setup.config.teachers[0], str(setup.config.data.validation)
    net, card = setup.teachers[0]
    score = score_teacher(accelerator.prepare(net).eval(), validation, card, accelerator)
    name, value = next(iter(score.metrics.items()))
    progress(f"Teacher: {name} {value:.4f} on {data}, {score.images} images")
    require_useful_teacher(score, teacher.model, data, allow=teacher.allow_bad_teacher, progress=progress)
    return score.metrics


def fold_teachers(setup: TrainingSetup) -> list[nn.Module]:
    """Return the teachers, with their BatchNorm folded if the config says so."""
    pairs = zip(setup.config.teachers, setup.teachers, strict=True)
    return [fold_batchnorm(net, card.image_size) if t.fold_batchnorm else net for t, (net, card) in pairs]


def count_steps(schedule: TrainingSchedule, image_count: int) -> int | None:
    """Return the number of iterations; None if a time limit ends the run."""
    if schedule.time_limit is not None:
        return None
    if schedule.steps is not None:
        return schedule.steps
    assert schedule.epochs is not None
    assert schedule.batch_size is not None
    return max(1, math.ceil(schedule.epochs * image_count / schedule.batch_size))


def create_student_saver(
    run_dir: Path, setup: TrainingSetup
) -> Callable[[str, nn.Module, dict[str, float], int], None]:
    """Return a function that saves the student as model directory `best` or `last` of the run directory."""

    def save_student(name: str, net: nn.Module, metrics: dict[str, float], step: int) -> None:
        assert isinstance(net, Network)
        made = {"step": step, "recipe": f"../{RECIPE}", "versions": package_versions()}
        card = replace(setup.card, metrics=metrics, provenance=setup.card.provenance | made)
        save_model(run_dir / name, net, card)

    return save_student
