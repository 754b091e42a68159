"""`torch.export` programs and TorchScript files as teachers: only their outputs are known.

Such a file may or may not normalize images. Images in [0, 1] go in unchanged unless the user gives a mean and a
standard deviation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, first_line
from compress.models.card import ModelCard
from compress.models.file_safety import validate_program
from compress.models.overrides import ModelOverrides
from compress.models.registry import TASK_BY_OUTPUT_DIMS
from compress.models.segmentation import extract_logits

EXPORTED = "exported"
#: a program must run with both batch sizes
PROBE_BATCH_SIZES = (1, 3)
#: what a program raises for unsuitable input
PROBE_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError, AttributeError)


class ExportedProgramModel(nn.Module):
    """A program as a network: images [n, c, h, w] -> logits [n, classes] or [n, classes, h, w].

    It has no training mode.
    """

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
    """Input of a program, as far as its file declares it; None: undeclared or free."""

    channels: int | None = None
    image_size: tuple[int, int] | None = None


def load_exported_program(path: Path) -> tuple[ExportedProgramModel, InputSignature]:
    """Load a `.pt2` file.

    Raises CompressError if it is damaged, could run code, or has another input than one batch of images.
    """
    validate_program(path)
    try:
        exported = torch.export.load(path)
        module = exported.module(check_guards=False)
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, AttributeError, OSError) as error:
        raise CompressError(
            f"{path}: cannot be loaded ({first_line(error)}); export it again with this version of torch."
        ) from error
    return ExportedProgramModel(module), read_signature(path, exported)


def read_signature(path: Path, exported: torch.export.ExportedProgram) -> InputSignature:
    names = set(exported.graph_signature.user_inputs)
    inputs = [n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder" and n.name in names]
    images = inputs[0] if len(inputs) == 1 else None
    if not isinstance(images, Tensor) or images.dim() != 4 or images.dtype != torch.float32:
        raise CompressError(
            f"{path}: found another input, expected one float32 input [n, channels, height, width]; export it again."
        )
    _, channels, height, width = images.shape
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return InputSignature(channels if isinstance(channels, int) else None, size)


def load_torchscript(path: Path) -> tuple[ExportedProgramModel, InputSignature]:
    """Load a TorchScript file, which the user must trust: it can run any operator.

    Raises CompressError if it is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces TorchScript's deprecation at every load
            module = torch.jit.load(str(path), map_location="cpu")  # noqa: TID251 - trusted
    except (RuntimeError, ValueError, OSError) as error:
        raise CompressError(f"{path}: cannot be loaded as TorchScript ({first_line(error)}); save it again.") from error
    module.eval()
    return ExportedProgramModel(module), InputSignature()


def infer_card(
    model: nn.Module,
    source: str,
    overrides: ModelOverrides,
    signature: InputSignature = InputSignature(),
    *,
    gradients: bool = True,
) -> ModelCard:
    """The card of a network of which only the outputs are known. Its normalization is the identity.

    Args:
        model: The network.
        source: Name or path, for errors.
        overrides: Facts from the user; `image_size` is required if the signature has none.
        signature: Facts from the file.
        gradients: Require gradients of the output with respect to the images.
    """
    size = overrides.image_size or signature.image_size
    if size is None:
        raise UsageError(
            f"{source}: the image size is unknown; give it with --image-size HxW (for distill: "
            "--set task.image_size=[H,W])."
        )
    if signature.image_size not in (None, size):
        height, width = signature.image_size
        raise UsageError(f"{source}: found images of {height}x{width}, expected {size[0]}x{size[1]}.")
    grayscale = overrides.grayscale if overrides.grayscale is not None else signature.channels == 1
    channels = 1 if grayscale else 3
    if signature.channels not in (None, channels):
        raise UsageError(f"{source}: found {signature.channels} input channels, expected {channels}.")
    classes, task = probe_output(model, source, size, channels, gradients=gradients)
    return ModelCard(EXPORTED, classes, size, task, mean=(0.0,) * channels, std=(1.0,) * channels, grayscale=grayscale)


def probe_output(
    model: nn.Module, source: str, image_size: tuple[int, int], channels: int = 3, *, gradients: bool = True
) -> tuple[int, str]:
    """Class count and task of an unknown network, from its outputs for small batches.

    Raises CompressError unless it accepts any batch size, its output is [n, classes] or [n, classes, h, w], and, if
    `gradients` are required, gradients reach the images.
    """
    for batch in PROBE_BATCH_SIZES:
        x = torch.rand(batch, channels, *image_size, requires_grad=True)
        shape = list(x.shape)
        try:
            output = model(x)
        except CompressError:
            raise
        except PROBE_ERRORS as error:
            raise CompressError(
                f"{source}: fails on images {shape} ({first_line(error)}); {batch_size_advice(batch)}"
            ) from error
        if output.dim() not in TASK_BY_OUTPUT_DIMS or len(output) != batch or output.shape[2:] not in ((), x.shape[2:]):
            raise CompressError(
                f"{source}: found output {list(output.shape)} for images {shape}, expected [{batch}, classes], or "
                f"[{batch}, classes, height, width] for segmentation."
            )
    if not gradients:
        return output.shape[1], TASK_BY_OUTPUT_DIMS[output.dim()]
    (gradient,) = torch.autograd.grad(output.sum(), x, allow_unused=True) if output.requires_grad else (None,)
    if gradient is None:
        raise CompressError(f"{source}: no gradient reaches the images; export it without no_grad.")
    return output.shape[1], TASK_BY_OUTPUT_DIMS[output.dim()]


def batch_size_advice(batch: int) -> str:
    if batch == PROBE_BATCH_SIZES[0]:
        return "give its image size with --image-size, or export it with a dynamic batch (torch.export.Dim)."
    return "export it with a dynamic batch: dynamic_shapes=({0: torch.export.Dim('batch')},)."
