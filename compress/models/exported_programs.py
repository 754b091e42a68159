"""`torch.export` programs and TorchScript files as teachers: only their outputs are known.

Such a file may or may not normalize images. Images in [0, 1] go in unchanged unless the user gives a mean and a
standard deviation.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, first_line
from compress.models.card import ModelCard, check_image_size
from compress.models.checkpoints import check_tensors
from compress.models.overrides import ModelOverrides
from compress.models.program_archive import read_program
from compress.models.registry import TASK_BY_OUTPUT_DIMS
from compress.models.segmentation import extract_logits
from compress.models.state_dicts import require_finite
from compress.units import MAX_CLASSES

EXPORTED = "exported"
#: a program must run with both batch sizes
PROBE_BATCH_SIZES = (1, 3)


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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExportedProgramModel:
        """Move the tensors. Raises NotImplementedError for TorchScript and the meta device."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about gradients, which TorchScript's parameters do not have
                return super()._apply(fn, recurse)
        except AssertionError as error:
            raise NotImplementedError("TorchScript holds real tensors") from error

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        return extract_logits(self.program(x), x)


@dataclass(frozen=True)
class InputSignature:
    """Input of a program, as far as its file declares it; None: undeclared or free."""

    channels: int | None = None
    image_size: tuple[int, int] | None = None


def load_exported_program(
    path: Path, overrides: ModelOverrides, *, card: ModelCard | None = None
) -> tuple[ExportedProgramModel, ModelCard]:
    """Load a `.pt2` file; the file itself only if the user trusts it, else an archive of what was checked in it.

    Args:
        path: The file.
        overrides: Facts from the user.
        card: The known card. None: run the program and infer the card.

    Raises:
        CompressError: It is damaged, could run code, or has another input than one batch of images.
        UsageError: The facts do not fit the program.
    """
    content = str(path) if overrides.trust_pickle else read_program(path)
    try:
        with silenced_export_log():
            exported = torch.export.load(content)
            module = exported.module(check_guards=False)
    except Exception as error:  # torch's loader raises errors of every kind for damaged programs
        raise CompressError(
            f"{path}: cannot be loaded ({first_line(error)}); export it again with this version of torch."
        ) from error
    check_tensors({**exported.state_dict, **tensors_in(exported.constants)}, path, allow_empty=True)
    model, signature = ExportedProgramModel(module), read_signature(path, exported)
    return model, card or infer_card(model, str(path), overrides, signature)


@contextlib.contextmanager
def silenced_export_log() -> Iterator[None]:
    """Hide the tracebacks that torch logs before it raises; the error contains the reason."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def tensors_in(values: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


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


def load_torchscript(
    path: Path, overrides: ModelOverrides, *, card: ModelCard | None = None
) -> tuple[ExportedProgramModel, ModelCard]:
    """Load a TorchScript file, which the user must trust: it can run any operator. See `load_exported_program`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces TorchScript's deprecation at every load
            module = torch.jit.load(str(path), map_location="cpu")  # noqa: TID251 - trusted
    except Exception as error:  # as above
        raise CompressError(f"{path}: cannot be loaded as TorchScript ({first_line(error)}); save it again.") from error
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)  # else a copy of the module has parameters that are no leaves
    model = ExportedProgramModel(module)
    return model, card or infer_card(model, str(path), overrides)


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
    check_image_size(size, source)
    if signature.image_size not in (None, size):
        height, width = signature.image_size
        raise UsageError(f"{source}: found images of {height}x{width}, expected {size[0]}x{size[1]}.")
    grayscale = overrides.grayscale if overrides.grayscale is not None else signature.channels == 1
    channels = 1 if grayscale else 3
    if signature.channels not in (None, channels):
        raise UsageError(f"{source}: found {signature.channels} input channels, expected {channels}.")
    require_finite(model, source)
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
        shape = [batch, channels, *image_size]
        try:
            x = torch.rand(*shape, requires_grad=True)
            output = model(x)
        except CompressError:
            raise
        except Exception as error:  # programs and modules of the user raise errors of every kind
            raise CompressError(
                f"{source}: fails on images {shape} ({probe_error_reason(error)}); {batch_size_advice(batch)}"
            ) from error
        if not is_plausible_output(output, x):
            raise CompressError(
                f"{source}: found output {list(output.shape)} of {output.dtype} for images {shape}, expected floating "
                f"[{batch}, classes], or [{batch}, classes, height, width] for segmentation."
            )
        if bool(output.isnan().any()):
            raise CompressError(
                f"{source}: its output for random images has NaN, so the model is damaged; use another."
            )
    if not gradients:
        return output.shape[1], TASK_BY_OUTPUT_DIMS[output.dim()]
    try:
        (gradient,) = torch.autograd.grad(output.sum(), x, allow_unused=True) if output.requires_grad else (None,)
    except Exception as error:  # as above
        raise CompressError(
            f"{source}: no gradient reaches the images ({first_line(error)}); export it again."
        ) from error
    if gradient is None:
        raise CompressError(f"{source}: no gradient reaches the images; export it without no_grad.")
    return output.shape[1], TASK_BY_OUTPUT_DIMS[output.dim()]


def is_plausible_output(output: Tensor, images: Tensor) -> bool:
    """Whether `output` can be the logits of `images`: one row per image, and at least one class."""
    return (
        output.is_floating_point()
        and output.layout == torch.strided
        and output.dim() in TASK_BY_OUTPUT_DIMS
        and len(output) == len(images)
        and 0 < output.shape[1] <= MAX_CLASSES
        and output.shape[2:] in ((), images.shape[2:])
    )


def probe_error_reason(error: Exception) -> str:
    """The reason in an error; TorchScript's interpreter puts it into the last line."""
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines and "TorchScript interpreter" in lines[0] else first_line(error)


def batch_size_advice(batch: int) -> str:
    if batch == PROBE_BATCH_SIZES[0]:
        return "give its image size with --image-size, or export it with a dynamic batch (torch.export.Dim)."
    return "export it with a dynamic batch: dynamic_shapes=({0: torch.export.Dim('batch')},)."
