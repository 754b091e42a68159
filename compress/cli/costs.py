"""The tables of `compress profile`, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.cli.tables import format_table

if TYPE_CHECKING:
    from compress.models.card import ModelCard
    from profiles.flops.counter import FlopCount
    from profiles.flops.input_size import InputSizeCost
    from profiles.flops.layers import Layer
    from profiles.flops.onnx import OnnxCost
    from profiles.latency.tensor_memory import MemoryUse


LAYERS = ["layer", "type", "calls", "GMAC", "GFLOP", "share", "parameters", "activations"]
SIZES = ["size", "GMAC", "GFLOP", "M activations", "times pixels", "times cost", "exponent", ""]


def describe(
    model: str,
    card: ModelCard,
    cost: FlopCount,
    need: MemoryUse,
    *,
    layers: Sequence[Layer],
    depth: int,
    sizes: list[InputSizeCost],
    own: InputSizeCost,
) -> str:
    """Everything about one image of a network in PyTorch; of its layers those down to `depth`."""
    from profiles.flops.layers import limit_depth

    height, width = card.image_size
    parts = [
        f"{model}: {card.classes} classes, one image of {height}x{width}",
        format_table(whole(cost, need), ["cost", "value"]),
        format_table(by_operator(cost.by_operator, cost.macs), ["operator", "GMAC", "GFLOP", "share"]),
        "\n".join(left_out(cost)),
    ]
    if layers:
        parts += [format_table(by_layer(limit_depth(layers, depth)), LAYERS), adding_up(layers, depth)]
    return "\n\n".join([*parts, *by_size(sizes, own)])


def whole(cost: FlopCount, need: MemoryUse) -> list[list[str]]:
    rows = [
        [f"multiply-accumulates (by {cost.counter})", giga(cost.macs, "GMAC")],
        ["floating point operations (2 x)", giga(cost.flops, "GFLOP")],
        ["of these in products", giga(cost.products, "GMAC")],
        ["the same by torch's counter", giga(cost.macs_torch, "GMAC") + agreement(cost)],
        ["parameters", f"{cost.params / 1e6:.3f} M"],
    ]
    if cost.activations is not None:
        rows.append(["activations (numbers that products make)", f"{cost.activations / 1e6:.3f} M"])
    return [
        *rows,
        ["model, float32", f"{need.weight_bytes / 1e6:.2f} MB"],
        ["memory of activations at its peak", f"{need.activation_peak_bytes / 1e6:.2f} MB"],
    ]


def agreement(cost: FlopCount) -> str:
    """Whether both counters say the same of products; of a program only one of them does."""
    if cost.counter == "torch":
        return ""
    return ", equal" if cost.products == cost.macs_torch else f", {cost.macs_torch - cost.products:+,} MAC"


def by_operator(macs: dict[str, int], total: int) -> list[list[str]]:
    return [[name, *both(value), f"{value / total:.1%}"] for name, value in macs.items()]


def left_out(cost: FlopCount) -> list[str]:
    """What the count does not hold, by name."""
    if cost.counter == "torch":
        return ["fvcore cannot trace this program: the count is torch's, which knows products only; no layers."]
    if not cost.unsupported:
        return ["No operator left out."]
    calls = [f"  {name}, {times} times" for name, times in cost.unsupported.items()]
    return ["NOT counted by fvcore, so the true cost is higher:", *calls]


def by_layer(layers: Sequence[Layer]) -> list[list[str]]:
    """A row a layer; of one whose parts have rows of their own, one more for what is done between them."""
    total = max(1, layers[0].macs)
    parents = {layer.path.rpartition(".")[0] for layer in layers if layer.path}
    rows = []
    for layer in layers:
        if not layer.has_cost:
            continue
        name = layer.path or "(all)"
        params = f"{layer.params:,}" + (f" + {layer.shared_params:,} shared" if layer.shared_params else "")
        numbers = [*both(layer.macs), f"{layer.macs / total:.1%}", params, f"{layer.activations:,}"]
        rows.append([indented(layer, name), layer.kind, str(layer.calls), *numbers])
        if layer.path in parents and (layer.own_macs or layer.own_params or layer.own_activations):
            own = [*both(layer.own_macs), f"{layer.own_macs / total:.1%}", f"{layer.own_params:,}"]
            itself = f"{layer.path} itself" if layer.path else "(itself)"
            rows.append([indented(layer, itself, 1), "", "-", *own, f"{layer.own_activations:,}"])
    return rows


def indented(layer: Layer, name: str, more: int = 0) -> str:
    return "  " * (layer.depth + more) + name


def adding_up(layers: Sequence[Layer], depth: int) -> str:
    deeper = any(layer.depth > depth and layer.has_cost for layer in layers)
    more = f" --depth {depth + 1} shows more." if deeper else ""
    return f"The parts of a layer add up to it; layers without arithmetic and parameters have no row.{more}"


def by_size(rows: list[InputSizeCost], own: InputSizeCost) -> list[str]:
    """The cost of other sizes beside the model's own, and what is not proportional to pixels."""
    if not rows:
        return []
    from profiles.flops.input_size import describe_growth, scaling_exponent

    lines = []
    for row in rows:
        name = f"{row.size[0]}x{row.size[1]}"
        if row.macs is None:
            lines.append([name, "-", "-", "-", "-", "-", "-", f"{row.error}."])
            continue
        e = scaling_exponent(own.macs or 0, row.macs, own.pixels, row.pixels)
        made = "-" if row.activations is None else f"{row.activations / 1e6:.3f}"
        times = f"{row.pixels / own.pixels:.3g}", f"{row.macs / (own.macs or 1):.3g}"
        lines.append([name, *both(row.macs), made, *times, "-" if e is None else f"{e:.3f}", ""])
    base = f"{own.size[0]}x{own.size[1]}"
    said = describe_growth(rows, own)
    if not said and any(row.macs is not None and row.pixels != own.pixels for row in rows):
        said = ["All of it is in proportion to pixels."]
    about = f"Pixels, cost and exponent (cost ~ pixels ^ exponent) are those beside {base}."
    return [format_table(lines, SIZES), "\n".join([about, *said])]


def describe_file(spec: str, cost: OnnxCost, file_bytes: int, sizes: list[InputSizeCost], own: InputSizeCost) -> str:
    """Everything about one image of an ONNX file."""
    types = ", ".join(f"{numbers / 1e6:.3f} M {name}" for name, numbers in cost.weights_by_type.items())
    rows = [
        ["multiply-accumulates in products", giga(cost.macs, "GMAC")],
        ["floating point operations (2 x)", giga(cost.flops, "GFLOP")],
        ["weights", types or "none"],
        ["activations (numbers that products make)", f"{cost.activations / 1e6:.3f} M"],
        ["weights as stored", f"{cost.weight_bytes / 1e6:.2f} MB"],
        ["file", f"{file_bytes / 1e6:.2f} MB"],
    ]
    height, width = cost.input_size
    missing = [f"  {name}, {times} times" for name, times in cost.unsupported.items()]
    return "\n\n".join(
        [
            f"{spec}: one image of {height}x{width}, every operator as ONNX Runtime runs it",
            format_table(rows, ["cost", "value"]),
            format_table(by_operator(cost.by_operator, cost.macs or 1), ["operator", "GMAC", "GFLOP", "share"]),
            "\n".join(["NOT counted, so the true cost is higher:", *missing] if missing else ["No product left out."]),
            "Layers, and what is beside products, are known of the model that it was exported from: profile that.",
            *by_size(sizes, own),
        ]
    )


def both(macs: int) -> list[str]:
    """GMAC and GFLOP."""
    return [f"{macs / 1e9:.6f}", f"{2 * macs / 1e9:.6f}"]


def giga(count: int, unit: str) -> str:
    return f"{count / 1e9:.4f} {unit}"
