"""Black-box teachers: a `torch.export` program or a TorchScript file; nothing of it is known but its answers.

Such a file normalises for itself or it does not; we cannot know, so images in [0, 1] go in as they are unless the user
gives a mean and a standard deviation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError
from compress.models.card import ModelCard
from compress.models.file_safety import validate_program
from compress.models.overrides import ModelOverrides
from compress.models.registry import TASK_BY_OUTPUT_DIMS
from compress.models.segmentation import extract_logits

EXPORTED = "exported"
#: batch sizes tried before a program is believed to take any
PROBE_BATCH_SIZES = (1, 3)
#: what a program raises that does not like its input
PROBE_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError, AttributeError)


class ExportedProgramModel(nn.Module):
    """A program file as a network: images [n, c, h, w] -> logits [n, classes] or [n, classes, h, w]. It knows no
    training mode."""

    def __init__(self, program: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.program = program
        self.training = False

    def train(self, mode: bool = True) -> ExportedProgramModel:
        return self

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        return extract_logits(self.program(x), x)


@dataclass(frozen=True)
class InputSignature:
    """What a program reads, as far as its file says; None: not said, or free."""

    channels: int | None = None
    image_size: tuple[int, int] | None = None


def load_exported_program(path: Path) -> tuple[ExportedProgramModel, InputSignature]:
    """A `.pt2` file. Raises CompressError if it is damaged, may run code, or reads anything but one batch of images."""
    validate_program(path)
    try:
        exported = torch.export.load(path)
        module = exported.module(check_guards=False)
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, AttributeError, OSError) as error:
        raise CompressError(
            f"{path}: cannot be loaded ({first_line(error)}); export it again with this torch."
        ) from error
    return ExportedProgramModel(module), read_signature(path, exported)


def read_signature(path: Path, exported: torch.export.ExportedProgram) -> InputSignature:
    wanted = set(exported.graph_signature.user_inputs)
    inputs = [n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder" and n.name in wanted]
    found = inputs[0] if len(inputs) == 1 else None
    if not isinstance(found, Tensor) or found.dim() != 4 or found.dtype != torch.float32:
        raise CompressError(
            f"{path}: expected a program of one float32 input [n, channels, height, width], found another."
        )
    _, channels, height, width = found.shape
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return InputSignature(channels if isinstance(channels, int) else None, size)


def load_torchscript(path: Path) -> tuple[ExportedProgramModel, InputSignature]:
    """A TorchScript file, which the user must trust: it can run any operator. Raises CompressError if it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces TorchScript's retirement at every load
            module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise CompressError(f"{path}: cannot be loaded as TorchScript ({first_line(error)}); save it again.") from error
    module.eval()
    return ExportedProgramModel(module), InputSignature()


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]


def infer_card(
    model: nn.Module,
    where: str,
    wishes: ModelOverrides,
    signature: InputSignature = InputSignature(),
    *,
    gradients: bool = True,
) -> ModelCard:
    """The card of a network of which only answers, and `gradients`, are known. Images go in as they are, in [0, 1]."""
    size = wishes.image_size or signature.image_size
    if size is None:
        raise UsageError(
            f"{where}: nothing says which image size it reads; give it with --image-size HxW (to distill with "
            "--set task.image_size=[H,W])."
        )
    if signature.image_size not in (None, size):
        height, width = signature.image_size
        raise UsageError(f"{where}: reads images of {height}x{width}, found {size[0]}x{size[1]} asked for.")
    grey = wishes.grayscale if wishes.grayscale is not None else signature.channels == 1
    channels = 1 if grey else 3
    if signature.channels not in (None, channels):
        raise UsageError(f"{where}: reads {signature.channels} channels, expected {channels}.")
    classes, task = probe_output(model, where, size, channels, gradients=gradients)
    return ModelCard(EXPORTED, classes, size, task, mean=(0.0,) * channels, std=(1.0,) * channels, grayscale=grey)


def probe_output(
    model: nn.Module, where: str, image_size: tuple[int, int], channels: int = 3, *, gradients: bool = True
) -> tuple[int, str]:
    """The class count and the task of an unknown network, from answers to small batches.

    Raises CompressError unless it takes any batch size, answers [n, classes] or [n, classes, h, w], and, if `gradients`
    are wanted, lets them through to the images.
    """
    for batch in PROBE_BATCH_SIZES:
        x = torch.rand(batch, channels, *image_size, requires_grad=True)
        try:
            answer = model(x)
        except CompressError:
            raise
        except PROBE_ERRORS as error:
            raise CompressError(
                f"{where}: fails on {describe_images(x)} ({first_line(error)}); {batch_size_advice(batch)}"
            ) from error
        if answer.dim() not in TASK_BY_OUTPUT_DIMS or len(answer) != batch or answer.shape[2:] not in ((), x.shape[2:]):
            raise CompressError(
                f"{where}: answers {list(answer.shape)} to {describe_images(x)}, expected [{batch}, classes], "
                f"or [{batch}, classes, height, width] of a segmenter."
            )
    if not gradients:
        return answer.shape[1], TASK_BY_OUTPUT_DIMS[answer.dim()]
    (gradient,) = torch.autograd.grad(answer.sum(), x, allow_unused=True) if answer.requires_grad else (None,)
    if gradient is None:
        raise CompressError(f"{where}: lets no gradient through to the images; export it without no_grad.")
    return answer.shape[1], TASK_BY_OUTPUT_DIMS[answer.dim()]


def describe_images(x: Tensor) -> str:
    return f"images {list(x.shape)}"


def batch_size_advice(batch: int) -> str:
    if batch == PROBE_BATCH_SIZES[0]:
        return "give the size it expects with --image-size, or export it with dynamic batch (torch.export.Dim)."
    return "export it with a dynamic batch: dynamic_shapes=({0: torch.export.Dim('batch')},)."
