"""Text form of the results of `compress profile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.cli.tables import format_megabytes, format_size, format_table

LAYERS = ["layer", "type", "calls", "GMAC", "GFLOP", "share", "parameters", "activations"]
SIZES = ["size", "GMAC", "GFLOP", "M activations", "x pixels", "x cost", "exponent", ""]


def profile(result: Any) -> str:
    """Return the tables of a `ModelProfile` or an `OnnxProfile`."""
    header = f"{result.model}: one image of {format_size(result.input_size)}"
    classes = getattr(result, "classes", None)
    parts = [
        header if classes is None else f"{header}, {classes} classes",
        format_table(onnx_totals(result) if classes is None else model_totals(result), ["cost", "value"]),
        format_table(operator_rows(result.by_operator, result.macs or 1), ["operator", "GMAC", "GFLOP", "share"]),
        "\n".join(uncounted(result)),
    ]
    layers: Sequence[Any] = getattr(result, "layers", ())
    if layers:
        deeper = f" --depth {result.depth + 1} shows more." if result.has_deeper_layers else ""
        note = f"The parts of a layer sum up to it; layers without arithmetic and parameters are omitted.{deeper}"
        parts += [format_table(layer_rows(layers), LAYERS), note]
    if classes is None:
        parts.append(
            "Layers and operations other than products are known for the model that the file was exported from."
        )
    return "\n\n".join([*parts, *size_tables(result)])


def model_totals(result: Any) -> list[list[str]]:
    agreement = ""
    if result.counter != "torch":
        difference = result.macs_torch - result.products
        agreement = f", {difference:+,} MAC" if difference else ", equal"
    rows = [
        [f"multiply-accumulates (by {result.counter})", gmac(result.macs)],
        ["floating-point operations (2 x)", gflop(result.flops)],
        ["MACs of products", gmac(result.products)],
        ["MACs by PyTorch's counter", gmac(result.macs_torch) + agreement],
        ["parameters", f"{result.params / 1e6:.3f} M"],
    ]
    if result.activations is not None:
        rows.append(["activations (outputs of products)", f"{result.activations / 1e6:.3f} M"])
    return [
        *rows,
        ["weights, float32", format_megabytes(result.weight_bytes, 2)],
        ["peak memory of activations", format_megabytes(result.activation_peak_bytes, 2)],
    ]


def onnx_totals(result: Any) -> list[list[str]]:
    types = ", ".join(f"{numbers / 1e6:.3f} M {name}" for name, numbers in result.weights_by_type.items())
    return [
        ["MACs of products", gmac(result.macs)],
        ["floating-point operations (2 x)", gflop(result.flops)],
        ["weights", types or "none"],
        ["activations (outputs of products)", f"{result.activations / 1e6:.3f} M"],
        ["weights as stored", format_megabytes(result.weight_bytes, 2)],
        ["file", format_megabytes(result.file_bytes, 2)],
    ]


def uncounted(result: Any) -> list[str]:
    """Return what the count does not contain."""
    if getattr(result, "counter", "") == "torch":
        return ["fvcore cannot trace this program: counted by PyTorch's counter, products only, without layers."]
    if not result.unsupported:
        return ["All operators are counted."]
    operators = [f"  {name}, {calls} times" for name, calls in result.unsupported.items()]
    return ["NOT counted, so the true cost is higher:", *operators]


def operator_rows(macs: dict[str, int], total: int) -> list[list[str]]:
    return [[name, *both_units(value), f"{value / total:.1%}"] for name, value in macs.items()]


def layer_rows(layers: Sequence[Any]) -> list[list[str]]:
    """Return one row per layer, and one for what a layer computes outside of its parts."""
    total = max(1, layers[0].macs)
    parents = {layer.path.rpartition(".")[0] for layer in layers if layer.path}
    rows = []
    for layer in layers:
        if not (layer.macs or layer.params or layer.shared_params or layer.activations):
            continue
        depth = layer.path.count(".") + 1 if layer.path else 0
        params = f"{layer.params:,}" + (f" + {layer.shared_params:,} shared" if layer.shared_params else "")
        numbers = [*both_units(layer.macs), f"{layer.macs / total:.1%}", params, f"{layer.activations:,}"]
        rows.append(["  " * depth + (layer.path or "(all)"), layer.kind, str(layer.calls), *numbers])
        if layer.path in parents and (layer.own_macs or layer.own_params or layer.own_activations):
            own = [*both_units(layer.own_macs), f"{layer.own_macs / total:.1%}", f"{layer.own_params:,}"]
            name = f"{layer.path} itself" if layer.path else "(itself)"
            rows.append(["  " * (depth + 1) + name, "", "-", *own, f"{layer.own_activations:,}"])
    return rows


def size_tables(result: Any) -> list[str]:
    """Return the cost of other input sizes and which operators do not scale with the number of pixels."""
    if not result.sizes:
        return []
    pixels = result.input_size[0] * result.input_size[1]
    rows = []
    for one in result.sizes:
        if one.macs is None:
            rows.append([format_size(one.size), "-", "-", "-", "-", "-", "-", f"{one.refused}."])
            continue
        activations = "-" if one.activations is None else f"{one.activations / 1e6:.3f}"
        ratios = f"{one.size[0] * one.size[1] / pixels:.3g}", f"{one.macs / (result.macs or 1):.3g}"
        exponent = "-" if one.exponent is None else f"{one.exponent:.3f}"
        rows.append([format_size(one.size), *both_units(one.macs), activations, *ratios, exponent, ""])
    base = format_size(result.input_size)
    note = f"Ratios and exponent (cost ~ pixels ^ exponent) are relative to {base}."
    return [format_table(rows, SIZES), "\n".join([note, *result.growth])]


def both_units(macs: int) -> list[str]:
    return [f"{macs / 1e9:.6f}", f"{2 * macs / 1e9:.6f}"]


def gmac(macs: int) -> str:
    return f"{macs / 1e9:.4f} GMAC"


def gflop(flops: int) -> str:
    return f"{flops / 1e9:.4f} GFLOP"
