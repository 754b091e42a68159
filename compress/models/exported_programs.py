"""`torch.export` programs and TorchScript files as teachers: only their outputs are known.

Such a file may or may not normalize images. Images in [0, 1] go in unchanged unless the user gives a mean and a
standard deviation.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, first_line
from compress.models.card import ASSUMED, SIGMOID_TASKS, ModelCard, check_image_size, with_sources
from compress.models.checkpoints import check_tensors
from compress.models.outputs import (
    LastOperator,
    NamedOutput,
    OutputAdapter,
    OutputRule,
    adapt_outputs,
    as_rows,
    choose_rule,
    find_adapter,
    rule_from_provenance,
    select_output,
    verify_rule,
)
from compress.models.overrides import ModelOverrides
from compress.models.program_archive import read_program
from compress.models.registry import TASK_BY_OUTPUT_DIMS
from compress.models.state_dicts import require_finite
from compress.units import MAX_CLASSES

EXPORTED = "exported"
#: a program must run with both batch sizes
PROBE_BATCH_SIZES = (1, 3)
#: images far outside [0, 1], for which logits leave [0, 1] too
EXTREME_FACTORS = (1e3, -1e3)
#: largest difference of the output for an image alone and in a batch, relative to the largest output; dynamic int8
#: quantization differs by some percent
BATCH_TOLERANCE = 0.05


class ExportedProgramModel(nn.Module):
    """A program as a network: images [n, c, h, w] -> its output. It has no training mode."""

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

    def forward(self, x: Float[Tensor, "n c h w"]) -> object:
        return self.program(x)


class ScriptModel(ExportedProgramModel):
    """A TorchScript file as a network."""

    program: torch.jit.ScriptModule

    def __init__(self, path: Path) -> None:
        super().__init__(read_script(path))
        self.path = path

    def remove_activation(self, rule: OutputRule) -> None:
        """Load the file again without the activation of one output: a graph that has run does not change."""
        program = read_script(self.path)
        graph = simplify_graph(program.graph)
        value, node, position = output_values(graph)[rule.index or 0]
        node.replaceInput(position, next(iter(value.node().inputs())))
        self.program = program


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
    adapt_outputs(model, str(path))
    return model, finish_card(model, str(path), overrides, signature, card)


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
    model = ScriptModel(path)
    adapter = adapt_outputs(model, str(path))
    adapter.operators, adapter.cut = script_operators(model.program), model.remove_activation
    return model, finish_card(model, str(path), overrides, InputSignature(), card)


def read_script(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file in eval mode, with frozen parameters."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces TorchScript's deprecation at every load
            module = torch.jit.load(str(path), map_location="cpu")  # noqa: TID251 - trusted
    except Exception as error:  # as above
        raise CompressError(f"{path}: cannot be loaded as TorchScript ({first_line(error)}); save it again.") from error
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)  # else a copy of the module has parameters that are no leaves
    return module


def simplify_graph(graph: Any) -> Any:
    """Inline the methods of a TorchScript graph and remove branches that are never taken."""
    torch._C._jit_pass_inline(graph)
    torch._C._jit_pass_constant_propagation(graph)
    torch._C._jit_pass_peephole(graph)
    torch._C._jit_pass_dce(graph)
    return graph


def output_values(graph: Any) -> list[tuple[Any, Any, int]]:
    """Every output of a TorchScript graph: its value, the node that returns it, and its position among the inputs."""
    returned = next(iter(graph.outputs()))
    node = returned.node()
    if node.kind() not in ("prim::TupleConstruct", "prim::ListConstruct", "prim::DictConstruct"):
        return [(returned, graph.return_node(), 0)]
    step = 2 if node.kind() == "prim::DictConstruct" else 1  # its inputs are names and values in turn
    return [(value, node, at) for at, value in enumerate(node.inputs()) if (at + 1) % step == 0]


def script_operators(program: torch.jit.ScriptModule) -> dict[int, LastOperator]:
    """The activations that compute the outputs of a TorchScript program, by index."""
    operators = {}
    graph = simplify_graph(program.inlined_graph)  # its values end with it
    for index, (value, _, _) in enumerate(output_values(graph)):
        node = value.node()
        if node.kind() == "aten::sigmoid":
            operators[index] = LastOperator("sigmoid")
        elif node.kind() == "aten::softmax":
            operators[index] = LastOperator("softmax", list(node.inputs())[1].toIValue())
    return operators


def finish_card(
    model: nn.Module, source: str, overrides: ModelOverrides, signature: InputSignature, card: ModelCard | None,
    *, gradients: bool = True,
) -> ModelCard:  # fmt: skip
    """Make `model` return logits as its known card says, or run it and infer the card."""
    if card is None:
        return infer_card(model, source, overrides, signature, gradients=gradients)
    adapter = find_adapter(model)
    assert adapter is not None
    adapter.apply(rule_from_provenance(card.provenance))
    return card


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
        model: The network. It is adapted, so that it returns logits.
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
    classes, task, rule = probe_output(model, source, size, channels, overrides, gradients=gradients)
    return ModelCard(
        EXPORTED, classes, size, task, mean=(0.0,) * channels, std=(1.0,) * channels, grayscale=grayscale,
        provenance=with_sources(rule.as_provenance(), ASSUMED, "mean", "std"),
    )  # fmt: skip


def infer_output(model: nn.Module, card: ModelCard, source: str, overrides: ModelOverrides) -> ModelCard:
    """The card of weights in a network of the user, with the output that it has. See `probe_output`."""
    known = replace(overrides, classes=overrides.classes or card.classes)
    size = overrides.image_size or card.image_size
    classes, task, rule = probe_output(model, source, size, card.channels, known)
    return replace(card, classes=classes, task=task, provenance=card.provenance | rule.as_provenance())


def probe_output(
    model: nn.Module, source: str, image_size: tuple[int, int], channels: int, overrides: ModelOverrides,
    *, gradients: bool = True,
) -> tuple[int, str, OutputRule]:  # fmt: skip
    """Run an unknown network on small batches, and make it return logits.

    Returns:
        Class count, task, and how the logits are made.

    Raises:
        CompressError: It does not accept any batch size; its answer to an image is random or depends on the batch; its
            output cannot become [n, classes] or [n, classes, h, w]; or no gradients reach the images if `gradients`.
        UsageError: Several outputs can be the logits.
    """
    adapter = find_adapter(model) or adapt_outputs(model, source)
    names = overrides.class_names
    known_classes = overrides.classes or (len(names) if names else None)
    images = probe_images(channels, image_size)
    batches = [images[:size] for size in (*PROBE_BATCH_SIZES, PROBE_BATCH_SIZES[-1])]
    with torch.no_grad():
        ordinary = [run_probed(model, adapter.observe, x, source) for x in batches]
        extreme = [observe_extreme(model, adapter, factor * (images - 0.5)) for factor in EXTREME_FACTORS]
    rule = choose_rule(source, overrides.output, known_classes, ordinary, [one for one in extreme if one])
    outputs = [select_output(one, rule.index, known_classes, source) for one in ordinary]
    require_repeatable(outputs, source)
    adapter.classes = known_classes
    adapter.apply(rule)
    x = images[: PROBE_BATCH_SIZES[-1]].clone().requires_grad_(True)
    logits = run_probed(model, lambda network, x: network(x), x, source)
    if not is_plausible_output(logits, x):
        raise CompressError(
            f"{source}: found output {list(logits.shape)} of {logits.dtype} for images {list(x.shape)}, expected "
            f"floating [{len(x)}, classes], or [{len(x)}, classes, height, width] for segmentation"
            f"{'; a detector cannot be used' if logits.dim() == 3 else ''}."
        )
    if bool(logits.isnan().any()):
        raise CompressError(f"{source}: its output for random images has NaN, so the model is damaged; use another.")
    verify_rule(rule, as_rows(outputs[-1], x), logits, source)
    if gradients:
        require_gradients(logits, x, source)
    return logits.shape[1], infer_output_task(logits, rule, source), rule


def probe_images(channels: int, image_size: tuple[int, int]) -> Tensor:
    """Different images in [0, 1]: noise, and dark, bright and graded noise."""
    noise = torch.rand(PROBE_BATCH_SIZES[-1], channels, *image_size, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, image_size[1]).expand_as(noise[0])
    contrasts = [(1.0, torch.zeros_like(ramp)), (0.1, torch.full_like(ramp, 0.1)), (0.3, 0.7 * ramp)]
    return torch.stack([factor * one + base for one, (factor, base) in zip(noise, contrasts, strict=True)])


def run_probed(model: nn.Module, call: Callable[[nn.Module, Tensor], Any], x: Tensor, source: str) -> Any:
    """Call an unknown network. Raises CompressError with advice if it fails on this batch."""
    try:
        return call(model, x)
    except CompressError:
        raise
    except Exception as error:  # programs and modules of the user raise errors of every kind
        raise CompressError(
            f"{source}: fails on images {list(x.shape)} ({probe_error_reason(error)}); {batch_size_advice(len(x))}"
        ) from error


def observe_extreme(model: nn.Module, adapter: OutputAdapter, x: Tensor) -> list[NamedOutput]:
    """The outputs for images outside [0, 1]; none if the network fails on them."""
    try:
        return adapter.observe(model, x)
    except Exception:  # such images occur in this test only
        return []


def require_repeatable(outputs: Sequence[Tensor], source: str) -> None:
    """Refuse networks in training mode: Dropout makes answers random, BatchNorm makes them depend on the batch.

    Args:
        outputs: For one image, for a batch that begins with it, and for this batch again.
        source: Name or path, for errors.
    """
    alone, first, second = (output.detach().float() for output in outputs)
    scale = first[first.isfinite()].abs().max() if bool(first.isfinite().any()) else torch.tensor(0.0)
    for one, other, tolerance in ((first, second, 1e-3), (alone[:1], first[:1], BATCH_TOLERANCE)):
        difference = (one - other).abs() if one.shape == other.shape else torch.tensor([torch.inf])
        if bool((difference[~difference.isnan()] > tolerance * scale + 1e-6).any()):
            when = "in two calls" if tolerance == 1e-3 else "alone and in a batch"
            raise CompressError(
                f"{source}: gives one image different outputs {when}, as in training mode (Dropout, BatchNorm); call "
                "eval() before it is traced or saved."
            )


def require_gradients(logits: Tensor, x: Tensor, source: str) -> None:
    try:
        (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True) if logits.requires_grad else (None,)
    except Exception as error:  # as above
        raise CompressError(
            f"{source}: no gradient reaches the images ({first_line(error)}); export it again."
        ) from error
    if gradient is None:
        raise CompressError(f"{source}: no gradient reaches the images; export it without no_grad.")


def infer_output_task(logits: Tensor, rule: OutputRule, source: str) -> str:
    """The task of a network with these logits. Raises CompressError for several decisions per pixel."""
    task, classes = TASK_BY_OUTPUT_DIMS[logits.dim()], logits.shape[1]
    if rule.activation != "sigmoid" and classes > 1:
        return task
    if task == "segmentation" and classes > 1:
        raise CompressError(
            f"{source}: ends in a sigmoid over {classes} classes per pixel, expected one class per pixel; return the "
            "maps before the sigmoid if only one class applies."
        )
    return SIGMOID_TASKS[task]


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
