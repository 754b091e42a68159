"""Trial of both networks on a few images, before a run begins: do they read its image size and batch?"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compress.engine.trainable import eval_mode
from compress.errors import CompressError, UsageError, first_line, is_out_of_memory
from compress.models.card import ModelCard
from compress.models.pretrained import default_preprocessing
from compress.training.setup import TrainingSetup

#: images of a trial; networks treat larger batches alike
TRIAL_IMAGES = 2


def check_networks(setup: TrainingSetup, *, devices: int = 1) -> None:
    """Call the teachers, and the student in training mode, on random images of the run's size.

    Args:
        setup: from `prepare_training`.
        devices: number of processes that share a batch.

    Raises:
        UsageError: a network does not read the images or the batch, or the outputs of both have different shapes.
    """
    shapes = check_teachers(setup)
    name = setup.config.student.model or setup.card.architecture
    shape = check_student(setup, name, devices)
    for teacher, expected in shapes.items():
        if shape[1:] != expected[1:]:
            raise UsageError(
                f"{name}: found outputs {list(shape[1:])} for an image of {format_side(setup.card)}, expected "
                f"{list(expected[1:])} as of the teacher {teacher}; choose another --student."
            )


def check_teachers(setup: TrainingSetup) -> dict[str, torch.Size]:
    """Return the shape of each teacher's output. Raises UsageError if one does not read the images."""
    pairs = zip(setup.config.teachers, setup.teachers, strict=True)
    return {teacher.model: check_teacher(net, card, teacher.model) for teacher, (net, card) in pairs}


def check_teacher(net: nn.Module, card: ModelCard, name: str) -> torch.Size:
    """Return the shape of the teacher's output for some images. Raises UsageError if it does not read them."""
    advice = f"give the size that it was trained with by --image-size{size_hint(card)}"
    with explain_failure(f"{name}: does not read images of {format_side(card)}", advice), eval_mode(net):
        return net(card.example_input(TRIAL_IMAGES)).shape


def check_student(setup: TrainingSetup, name: str, devices: int) -> torch.Size:
    """Return the shape of the student's output in training mode. Raises UsageError if it does not read the batch."""
    card, schedule = setup.card, setup.config.training
    student = copy.deepcopy(setup.student).train()
    owner = "teacher" if setup.teachers else "run"
    failure = f"{name}: does not train on images of {format_side(card)}, the size of the {owner}"
    with explain_failure(failure, f"choose another --student, or --image-size{size_hint(card)}"):
        shape = call_student(student, card.example_input(TRIAL_IMAGES))
    if (schedule.batch_size or 1) // devices > 1:  # micro-batches have two images or more
        return shape
    try:
        call_student(student, card.example_input())
    except ValueError as error:  # BatchNorm has no variance of one value
        raise UsageError(
            f"training.batch_size: found {schedule.batch_size}, so that {name} reads single images, which it cannot "
            f"train on ({reason(error)}); give --batch-size {2 * devices} or more."
        ) from error
    return shape


@contextlib.contextmanager
def explain_failure(failure: str, advice: str) -> Iterator[None]:
    """Raise UsageError for what a network raises, except for sentences of this package and an exhausted memory."""
    try:
        yield
    except CompressError:
        raise
    except Exception as error:  # whatever an unknown network raises
        if is_out_of_memory(error):
            raise
        raise UsageError(f"{failure} ({reason(error)}); {advice}.") from error


def call_student(student: nn.Module, images: Tensor) -> torch.Size:
    """Return the shape of the output for images, without a change of the random state."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        output = student(images)
    if not isinstance(output, Tensor):
        raise TypeError(f"it returns a {type(output).__name__} in training mode")
    return output.shape


def reason(error: Exception) -> str:
    return first_line(error).rstrip(".")


def format_side(card: ModelCard) -> str:
    height, width = card.image_size
    return f"{height}x{width}"


def size_hint(card: ModelCard) -> str:
    """Return the usual image size of an architecture of the libraries as the value of an option; else nothing."""
    if not card.architecture.startswith(("torchvision/", "timm/")):
        return ""
    height, width = default_preprocessing(card.architecture, grayscale=card.grayscale).image_size
    return "" if (height, width) == tuple(card.image_size) else f" {height}x{width}"
