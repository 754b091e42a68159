"""`compress profile`: what one image costs in arithmetic, parameters and memory, by layer and by size."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.old_options import common, emit, model_options, parse_size, record_option
from compress.errors import CompressError, UsageError
from compress.measure import append_measurement

if TYPE_CHECKING:
    from torch import nn

    from compress.predictor import Predictor
    from profiles.flops.counter import FlopCount
    from profiles.flops.input_size import InputSizeCost
    from profiles.flops.layers import Layer
    from profiles.flops.onnx import OnnxCost
    from profiles.latency.tensor_memory import MemoryUse

Size = tuple[int, int]
#: what a record keeps of the count
RECORDED = ("macs", "flops", "params", "activations", "macs_torch", "unsupported")
#: options that say how to read a checkpoint, of which an ONNX file needs none
OF_CHECKPOINTS = {"arch": "--arch", "classes": "--classes", "ema": "--ema", "trust_pickle": "--trust-pickle"}


def parse_sizes(context: click.Context, option: click.Parameter, value: str | None) -> list[Size]:
    """`128x128,256` -> [(128, 128), (256, 256)]."""
    found = [parse_size(context, option, part) for part in (value or "").split(",") if part.strip()]
    if value is not None and not found:
        raise click.BadParameter(f"found {value!r}, expected sizes in pixels, for example 128x128,256x256")
    return list(dict.fromkeys(size for size in found if size is not None))


@click.command()
@click.argument("model")
@click.option("--depth", type=click.IntRange(min=0), help="Layers within layers, in the table of layers [default: 1].")
@click.option("--sizes", callback=parse_sizes, metavar="HxW,...", help="Count images of these sizes as well.")
@model_options
@record_option
@common
def profile(
    model: str, depth: int | None, sizes: list[Size], record: Path | None, as_json: bool, **wishes: Any
) -> None:
    """Count MACs, FLOPs, parameters and memory of MODEL: a folder, a checkpoint, an ONNX file, or the name of an
    architecture. What is counted, and what is not: docs/costs.md.

    \b
    Example:
      compress profile wrn40_2 --classes 100 --depth 2
      compress profile torchvision/resnet50 --sizes 128x128,256x256,512x512
    """
    path = Path(model).expanduser()
    if path.suffix.lower() == ".onnx":
        result, text = of_file(path, model, sizes, unwanted(depth, record, wishes), wishes)
    else:
        refuse_compiled(path, model)
        result, text = of_network(model, 1 if depth is None else depth, sizes, record, wishes)
    emit(result, as_json=as_json, text=text)


def refuse_compiled(path: Path, model: str) -> None:
    """Raises UsageError for a file that was made for a runtime which does not tell its arithmetic."""
    from exporters.runtimes import SUFFIXES

    if path.suffix.lower() in SUFFIXES and path.is_file():
        raise UsageError(
            f"{model}: made for a runtime that does not tell its arithmetic; expected a PyTorch model, or the ONNX "
            "file that it was made from."
        )


def of_network(
    model: str, depth: int, sizes: list[Size], record: Path | None, wishes: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """What to print of a network in PyTorch: as JSON, and for people."""
    from compress.cli.costs import describe
    from compress.predictor import load_predictor
    from profiles.flops.input_size import InputSizeCost, count_flops_by_size
    from profiles.flops.layers import limit_depth

    opened = load_predictor(model, untrained=True, **wishes)
    size = opened.card.image_size
    cost, need = counted(opened)
    if record is not None:
        append_measurement(record, opened, **{key: getattr(cost, key) for key in RECORDED})
    own = InputSizeCost(size, cost.macs, cost.flops, cost.activations, cost.by_operator)
    per_pixel = need.activation_peak_bytes / own.pixels
    rows = count_flops_by_size(opened.network, sizes, pixel_bytes=per_pixel)
    layers = beneath(opened.network, cost)
    result = {
        "model": model,
        "architecture": opened.card.architecture,
        "classes": opened.card.classes,
        "input_size": size,
        "trained": opened.is_trained,
        **{key: value for key, value in vars(cost).items() if key != "layers"},
        **asdict(need),
        "layers": [as_row(layer) for layer in limit_depth(layers, depth)],
        **({"sizes": [at(row, own) for row in rows]} if rows else {}),
    }
    text = describe(model, opened.card, cost, need, layers=layers, depth=depth, sizes=rows, own=own)
    return result, text


def counted(opened: Predictor) -> tuple[FlopCount, MemoryUse]:
    """Raises UsageError for a network that refuses images of the size that it is asked to read."""
    import torch

    from profiles.flops.counter import count_flops
    from profiles.latency.tensor_memory import measure_memory

    height, width = opened.card.image_size
    network, example = opened.network, (torch.zeros(1, 3, height, width),)
    try:
        return count_flops(network, example), measure_memory(network, example)
    except CompressError:
        raise
    except Exception as error:  # a network may be anybody's code, and refuse a size by whatever it likes
        from profiles.flops.input_size import first_error_line

        raise UsageError(
            f"{opened.spec}: refuses images of {height}x{width} ({first_error_line(error)}); give a size that it takes with "
            "--input-size HxW."
        ) from error


def beneath(network: nn.Module, cost: FlopCount) -> list[Layer]:
    """The layers as the file of the weights names them: without the normalisation before them, which costs nothing."""
    from compress.models.network import Network
    from profiles.flops.layers import select_subtree

    return select_subtree(cost.layers, "body") if isinstance(network, Network) else list(cost.layers)


def as_row(layer: Layer) -> dict[str, Any]:
    return {**vars(layer), "flops": 2 * layer.macs}


def at(row: InputSizeCost, own: InputSizeCost) -> dict[str, Any]:
    from profiles.flops.input_size import scaling_exponent

    between = None if row.macs is None else scaling_exponent(own.macs or 0, row.macs, own.pixels, row.pixels)
    return {**vars(row), "by_operator": row.by_operator or {}, "exponent": between, "refused": row.error or None}


def unwanted(depth: int | None, record: Path | None, wishes: dict[str, Any]) -> list[str]:
    """Options that have no meaning for an ONNX file."""
    given = [name for key, name in OF_CHECKPOINTS.items() if wishes.get(key)]
    return given + ["--depth"] * (depth is not None) + ["--record"] * (record is not None)


def of_file(
    path: Path, spec: str, sizes: list[Size], unwanted: list[str], wishes: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """What to print of an ONNX file: as JSON, and for people."""
    from compress.cli.costs import describe_file
    from exporters.onnx_validation import read_model

    model = read_model(path)
    if unwanted:
        raise UsageError(
            f"{spec}: an ONNX file has operators, no layers, and says itself what it is; leave out "
            f"{', '.join(unwanted)}, or profile the model that it was exported from."
        )
    cost = graph_of(path, model, wishes.get("image_size"))
    rows = [graph_at(path, model, size) for size in sizes]
    own = graph_row(cost)
    result = {
        "model": spec,
        **asdict(cost),
        "file_bytes": file_bytes(path, model),
        **({"sizes": [at(row, own) for row in rows]} if rows else {}),
    }
    return result, describe_file(spec, cost, result["file_bytes"], rows, own)


def graph_of(path: Path, model: Any, wanted: Size | None) -> OnnxCost:
    """At the size wanted, else at the one that the file takes, else at the one that it was trained for."""
    from compress.models.metadata import card_from_metadata
    from exporters.onnx_validation import model_metadata
    from profiles.flops.onnx import OnnxCostError, count_onnx_flops

    card = card_from_metadata(model_metadata(model), path)
    usual = card.image_size if card is not None else None
    try:
        return count_onnx_flops(path, model, wanted, otherwise=usual)
    except OnnxCostError as error:
        raise UsageError(f"{path}: {error}.") from error


def graph_at(path: Path, model: Any, size: Size) -> InputSizeCost:
    from profiles.flops.input_size import InputSizeCost
    from profiles.flops.onnx import OnnxCostError, count_onnx_flops

    try:
        return graph_row(count_onnx_flops(path, model, size))
    except OnnxCostError as error:
        return InputSizeCost(size, error=str(error))


def graph_row(cost: OnnxCost) -> InputSizeCost:
    from profiles.flops.input_size import InputSizeCost

    return InputSizeCost(cost.input_size, cost.macs, cost.flops, cost.activations, cost.by_operator)


def file_bytes(path: Path, model: Any) -> int:
    """Bytes of the file, and of those in which weights lie beside it."""
    from exporters.onnx_validation import external_data, iter_tensors

    beside = {path.parent / external_data(tensor)["location"] for tensor in iter_tensors(model) if tensor.external_data}
    return sum(part.stat().st_size for part in {path, *beside})
