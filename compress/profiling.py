"""MACs, FLOPs, parameters and memory of one model; the implementation of `compress.profile`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError, UsageError
from compress.measure import append_measurement
from compress.predictor import Predictor, Progress, load_predictor
from profiles.flops.layers import Layer

if TYPE_CHECKING:
    from torch import nn

    from compress.models.model_input import ModelInput
    from profiles.flops.counter import FlopCount
    from profiles.flops.input_size import InputSizeCost
    from profiles.flops.onnx import OnnxCost

Size = tuple[int, int]
#: fields of the count that a record keeps
RECORDED = ("macs", "flops", "params", "activations", "macs_torch", "unsupported")
#: arguments that describe a checkpoint and have no meaning for an ONNX file
CHECKPOINT_OPTIONS = {"arch": "--arch", "classes": "--classes", "ema": "--ema", "trust_pickle": "--trust-pickle"}


@dataclass(frozen=True)
class SizeProfile:
    """Cost of one image of another size."""

    size: Size  #: height, width
    macs: int | None  #: MACs; None if the size was refused
    flops: int | None  #: twice the MACs
    activations: int | None  #: values that products compute
    by_operator: dict[str, int]  #: MACs by operator
    exponent: float | None  #: e in cost ~ pixels ^ e, relative to `input_size`; None for the same number of pixels
    refused: str | None  #: why this size cannot be counted


@dataclass(frozen=True)
class LayerProfile(Layer):
    """A layer with its FLOPs."""

    flops: int = 0  #: twice the MACs


@dataclass(frozen=True)
class ModelProfile:
    """Cost of one image in a network."""

    model: str  #: as given
    architecture: str  #: architecture of the model
    classes: int  #: number of classes
    input_size: Size  #: height, width
    is_trained: bool  #: False for an architecture given by name
    input: ModelInput  #: how the model reads images, and where these facts come from
    macs: int  #: multiply-accumulates by fvcore
    flops: int  #: twice the MACs
    params: int  #: parameters, shared ones counted once
    macs_torch: int  #: MACs by PyTorch's counter, which counts products only
    products: int  #: MACs of products by fvcore; equal to `macs_torch` if both counters agree
    activations: int | None  #: values that products compute; None if fvcore cannot trace the program
    unsupported: dict[str, int]  #: operators that are not counted -> calls
    by_operator: dict[str, int]  #: MACs by operator
    counter: str  #: "fvcore", or "torch" if fvcore cannot trace the program
    weight_bytes: int  #: bytes of the float32 weights
    activation_peak_bytes: int  #: peak bytes of live activations
    peak_bytes: int  #: weights, input and activations together
    depth: int  #: depth of `layers`
    has_deeper_layers: bool  #: whether there are layers below `depth`
    layers: list[LayerProfile]  #: layers down to `depth`, the whole network first; empty if fvcore cannot trace it
    sizes: list[SizeProfile] = field(default_factory=list)  #: cost of other input sizes
    growth: list[str] = field(default_factory=list)  #: which operators do not scale with the number of pixels


@dataclass(frozen=True)
class OnnxProfile:
    """Cost of one image in an ONNX file."""

    model: str  #: as given
    input_size: Size  #: height, width
    macs: int  #: MACs of products, as ONNX Runtime runs them
    flops: int  #: twice the MACs
    activations: int  #: values that products compute
    params: int  #: values stored as weights; int8 files store scales among them
    weight_bytes: int  #: bytes of the weights
    weights_by_type: dict[str, int]  #: ONNX type -> number of values
    by_operator: dict[str, int]  #: MACs by ONNX operator
    unsupported: dict[str, int]  #: operators that may contain products that are not counted -> number
    file_bytes: int  #: bytes of the file and its external weights
    sizes: list[SizeProfile] = field(default_factory=list)  #: cost of other input sizes
    growth: list[str] = field(default_factory=list)  #: which operators do not scale with the number of pixels


def profile(
    model: Any, *, depth: int | None, sizes: Sequence[Size], record: Path | None, progress: Progress,
    image_size: Size | None = None, **overrides: Any,
) -> ModelProfile | OnnxProfile:  # fmt: skip
    """Count one image; see `compress.profile`."""
    from exporters.runtimes import SUFFIXES

    path = Path(model).expanduser() if isinstance(model, str | Path) else None
    if path is not None and path.suffix.lower() == ".onnx":
        ignored = [option for key, option in CHECKPOINT_OPTIONS.items() if overrides.get(key)]
        ignored += ["--depth"] * (depth is not None) + ["--record"] * (record is not None)
        return profile_onnx(path, str(model), image_size, sizes, ignored)
    if path is not None and path.suffix.lower() in SUFFIXES and path.is_file():
        raise UsageError(
            f"{model}: found a compiled file, whose arithmetic is unknown; expected a PyTorch model, or the ONNX file "
            "that it was built from."
        )
    predictor = load_predictor(model, untrained=True, progress=progress, image_size=image_size, **overrides)
    return profile_network(predictor, 1 if depth is None else depth, sizes, record)


def profile_network(predictor: Predictor, depth: int, sizes: Sequence[Size], record: Path | None) -> ModelProfile:
    from profiles.flops.input_size import InputSizeCost, count_flops_by_size
    from profiles.flops.layers import limit_depth

    size = predictor.card.image_size
    cost, memory = count_costs(predictor)
    if record is not None:
        append_measurement(record, predictor, **{key: getattr(cost, key) for key in RECORDED})
    own = InputSizeCost(size, cost.macs, cost.flops, cost.activations, cost.by_operator)
    per_pixel = memory.activation_peak_bytes / own.pixels
    others = count_flops_by_size(predictor.network, sizes, pixel_bytes=per_pixel)
    layers = named_layers(predictor.network, cost)
    counts = {key: value for key, value in vars(cost).items() if key != "layers"}
    return ModelProfile(
        predictor.spec, predictor.card.architecture, predictor.card.classes, size, predictor.is_trained,
        predictor.input, **counts, **asdict(memory), depth=depth,
        has_deeper_layers=any(one.depth > depth and one.has_cost for one in layers),
        layers=[LayerProfile(**vars(one), flops=2 * one.macs) for one in limit_depth(layers, depth)],
        sizes=[profile_size(one, own) for one in others], growth=growth_notes(others, own),
    )  # fmt: skip


def growth_notes(others: Sequence[InputSizeCost], own: InputSizeCost) -> list[str]:
    from profiles.flops.input_size import describe_growth

    notes = describe_growth(list(others), own)
    if not notes and any(one.macs is not None and one.pixels != own.pixels for one in others):
        return ["The whole cost is proportional to the number of pixels."]
    return notes


def count_costs(predictor: Predictor) -> Any:
    """Return FLOPs and memory. Raises UsageError if the network does not accept the input size."""
    import torch

    from profiles.flops.counter import count_flops
    from profiles.flops.input_size import first_error_line
    from profiles.latency.tensor_memory import measure_memory

    height, width = predictor.card.image_size
    network, example = predictor.network, (torch.zeros(1, 3, height, width),)
    try:
        return count_flops(network, example), measure_memory(network, example)
    except CompressError:
        raise
    except Exception as error:  # third-party code may raise anything for a wrong input size
        raise UsageError(
            f"{predictor.spec}: does not accept images of {height}x{width} ({first_error_line(error)}); give another "
            "size with --input-size HxW."
        ) from error


def named_layers(network: nn.Module, cost: FlopCount) -> list[Layer]:
    """Return the layers with the names of the weight file, without the normalization, which costs nothing."""
    from compress.models.network import Network
    from profiles.flops.layers import select_subtree

    return select_subtree(cost.layers, "body") if isinstance(network, Network) else list(cost.layers)


def profile_size(one: InputSizeCost, own: InputSizeCost) -> SizeProfile:
    from profiles.flops.input_size import scaling_exponent

    exponent = None if one.macs is None else scaling_exponent(own.macs or 0, one.macs, own.pixels, one.pixels)
    return SizeProfile(
        one.size, one.macs, one.flops, one.activations, one.by_operator or {}, exponent, one.error or None
    )


def profile_onnx(
    path: Path, spec: str, size: Size | None, sizes: Sequence[Size], ignored: Sequence[str]
) -> OnnxProfile:
    """Count an ONNX file. Raises UsageError for options that need layers or a checkpoint."""
    from compress.models.metadata import card_from_metadata
    from exporters.onnx_validation import model_metadata, read_model
    from profiles.flops.input_size import InputSizeCost
    from profiles.flops.onnx import OnnxCostError, count_onnx_flops

    model = read_model(path)
    if ignored:
        raise UsageError(
            f"{spec}: {', '.join(ignored)} have no effect on an ONNX file; remove them, or profile the model that it "
            "was exported from."
        )
    card = card_from_metadata(model_metadata(model), path)
    try:
        cost = count_onnx_flops(path, model, size, otherwise=card.image_size if card is not None else None)
    except OnnxCostError as error:
        raise UsageError(f"{path}: {error}.") from error

    def count_size(other: Size) -> InputSizeCost:
        try:
            return onnx_size_cost(count_onnx_flops(path, model, other))
        except OnnxCostError as error:
            return InputSizeCost(other, error=str(error))

    own, others = onnx_size_cost(cost), [count_size(other) for other in sizes]
    return OnnxProfile(
        spec, **asdict(cost), file_bytes=count_file_bytes(path, model),
        sizes=[profile_size(one, own) for one in others], growth=growth_notes(others, own),
    )  # fmt: skip


def onnx_size_cost(cost: OnnxCost) -> InputSizeCost:
    from profiles.flops.input_size import InputSizeCost

    return InputSizeCost(cost.input_size, cost.macs, cost.flops, cost.activations, cost.by_operator)


def count_file_bytes(path: Path, model: Any) -> int:
    """Return the bytes of the file and of its external weights."""
    from exporters.onnx_validation import external_data, iter_tensors

    external = {path.parent / external_data(one)["location"] for one in iter_tensors(model) if one.external_data}
    return sum(part.stat().st_size for part in {path, *external})
