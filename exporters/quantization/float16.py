"""fp16 and bf16 written into the graph, because runtimes with strongly typed networks take the precision from it.

A float32 tensor keeps its name; its low-precision copy has the precision's name appended. So two graphs can be compared
tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError
from exporters.onnx_validation import model_metadata, model_opset
from exporters.torch_exporters import save_model

LowPrecision = Literal["fp16", "bf16"]
ONNX_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
#: operators with weights; images are preprocessed before the first of them, which needs float32
WEIGHTED_OPERATORS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
#: operators that sum many values, divide by small ones, have float32 inputs by definition, or create values
FP32_OPERATORS = {
    "BatchNormalization", "Cast", "ConstantOfShape", "CumSum", "Einsum", "Exp", "GroupNormalization",
    "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "Pow", "Range", "Reciprocal",
    "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Resize",
    "Softmax", "Softplus", "Sqrt", "TopK", "Upsample",
}  # fmt: skip
#: largest |value| that an fp16 tensor may hold: half of the largest fp16 number
FP16_LIMIT = 32752.0
#: first opset whose convolutions take bf16
BF16_OPSET = 22


@dataclass(frozen=True)
class Float16Result:
    """A graph in fp16 or bf16."""

    precision: LowPrecision  #: "fp16" or "bf16"
    converted: int  #: number of operators in that precision
    kept_fp32: dict[str, str]  #: operators after the first weighted one that stay in float32 -> reason


def convert_float16(
    source: Path,
    path: Path,
    precision: LowPrecision,
    *,
    keep: Collection[str] = (),
    ranges: Mapping[str, float] | None = None,
    emulate: bool = False,
) -> Float16Result:
    """Convert the weighted operators of a float32 graph, and the operators after them. Inputs and outputs stay float32.

    Args:
        source: The float32 file.
        path: The file to write.
        precision: "fp16" or "bf16".
        keep: Names of operators that stay in float32, besides FP32_OPERATORS.
        ranges: Name of a tensor -> its largest |value|; for fp16, operators with larger values than FP16_LIMIT stay in
            float32.
        emulate: Keep every tensor in float32, rounded to `precision`, for runtimes without kernels for it. The
            arithmetic in between is then more accurate than the real one.

    Raises:
        ExportError: The graph has branches or loops, or no operator to convert.
    """
    model = onnx.load(source)
    for node in model.graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ExportError(f"{source}: found a branch or loop ({node.op_type}), which {precision} does not support.")
    if precision == "bf16" and not emulate:
        model = raise_opset(model)
    result = Float16Pass(model, precision, set(keep), dict(ranges or {}), emulate).run()
    if not result.converted:
        kept = format_kept(result.kept_fp32)
        raise ExportError(f"{source}: found no operator to convert to {precision} (in float32: {kept}).")
    metadata = model_metadata(model)
    onnx.helper.set_model_props(model, metadata | {"precision": precision})
    del model.graph.value_info[:]
    save_model(model, path)
    return result


class Float16Session:
    """A float32 graph, to make files in `precision` that keep different layers in float32."""

    def __init__(self, source: Path, precision: LowPrecision, ranges: Mapping[str, float], *, emulate: bool) -> None:
        """Read the layers. Raise ExportError if one has no name."""
        self.source, self.ranges, self.emulate = source, ranges, emulate
        self.precision: LowPrecision = precision
        graph = onnx.load(source, load_external_data=False).graph
        weights = {one.name for one in graph.initializer}
        layers = [
            node for node in graph.node if node.op_type in WEIGHTED_OPERATORS and weights.intersection(node.input)
        ]
        self.layers = [node.name for node in layers]
        if "" in self.layers:
            nameless = layers[self.layers.index("")]
            raise ExportError(
                f"{source}: the {nameless.op_type} with output {nameless.output[0]} has no name; export it again."
            )

    def write(self, path: Path, keep: Collection[str] = ()) -> Float16Result:
        """Write a file with all layers converted except those to keep."""
        return convert_float16(self.source, path, self.precision, keep=keep, ranges=self.ranges, emulate=self.emulate)

    def write_layers(self, path: Path, layers: Collection[str]) -> Float16Result:
        """Write a file with these layers converted, and the operators between layers."""
        return self.write(path, [name for name in self.layers if name not in set(layers)])


def raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert the model to an opset whose convolutions take bf16."""
    if model_opset(model) >= BF16_OPSET:
        return model
    metadata = model_metadata(model)
    model = onnx.version_converter.convert_version(model, BF16_OPSET)
    onnx.helper.set_model_props(model, metadata)
    return model


def format_kept(kept: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:3]) or "none"


@dataclass
class Float16Pass:
    """One pass over the operators of a graph in their order."""

    model: onnx.ModelProto
    precision: LowPrecision
    keep: set[str]
    ranges: dict[str, float]
    emulate: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)  #: the new graph so far
    available: set[str] = field(default_factory=set)  #: its float tensors, with low-precision copies
    after_first_layer: set[str] = field(default_factory=set)  #: tensors after the first weighted operator
    kept_fp32: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        constants_to_weights(graph)
        self.weights = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
        self.floats = float_tensors(self.model) | set(self.weights)
        self.available = {one.name for one in graph.input} | set(self.weights)

    def run(self) -> Float16Result:
        graph = self.model.graph
        converted = 0
        for node in graph.node:
            if any(name in self.after_first_layer for name in node.input) or self.has_float_weights(node):
                self.after_first_layer.update(node.output)
            reason = self.keep_reason(node)
            converted += reason is None
            is_reported = node.output[0] in self.after_first_layer and node.output[0] in self.floats
            if reason and node.op_type != "Cast" and is_reported:
                self.kept_fp32[node.name] = reason
            self.add_node(node, "" if reason else self.precision)
        for output in graph.output:
            self.require_tensor(output.name)
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in graph.node for name in node.input}
        for weight in [one for one in graph.initializer if one.name not in used]:
            graph.initializer.remove(weight)
        return Float16Result(self.precision, converted, self.kept_fp32)

    def has_float_weights(self, node: onnx.NodeProto) -> bool:
        return node.op_type in WEIGHTED_OPERATORS and any(name in self.weights for name in node.input)

    def keep_reason(self, node: onnx.NodeProto) -> str | None:
        """Return why an operator stays in float32, or None."""
        if node.output[0] not in self.after_first_layer or not self.floats.intersection(node.output):
            return "preprocesses the images"
        if node.name in self.keep:
            return "requested"
        if node.op_type in FP32_OPERATORS or node.domain not in ("", "ai.onnx"):
            return f"{node.op_type} loses too much accuracy"
        if self.precision == "fp16":
            for name in (*node.input, *node.output):
                magnitude = self.max_magnitude(name)
                if magnitude > FP16_LIMIT:
                    return f"{name} reaches {magnitude:.3g}, more than half of the largest fp16 number"
        return None

    def max_magnitude(self, name: str) -> float:
        if name in self.weights:
            return float(np.abs(numpy_helper.to_array(self.weights[name])).max(initial=0.0))
        return self.ranges.get(name, 0.0)

    def add_node(self, node: onnx.NodeProto, suffix: str) -> None:
        """Add an operator with the copies of its float tensors that it needs."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in self.floats:
                new.input[i] = self.require_tensor(name, suffix)
        for i, name in enumerate(node.output):
            if name in self.floats:
                new.output[i] = low_precision_name(name, suffix)
                self.available.add(new.output[i])
        self.nodes.append(new)
        if suffix and self.emulate:
            self.round_outputs(new)

    def require_tensor(self, name: str, suffix: str = "") -> str:
        """Return the name of a tensor's copy in a precision, and add a cast if it does not exist."""
        required = low_precision_name(name, suffix)
        if required in self.available:
            return required
        self.available.add(required)
        if name in self.weights and suffix:
            self.model.graph.initializer.append(self.convert_weight(self.weights[name], required))
            return required
        other = low_precision_name(name, "" if suffix else self.precision)
        if self.emulate and suffix:
            self.add_cast(other, required + "_cast", ONNX_TYPES[self.precision])
            self.add_cast(required + "_cast", required, TensorProto.FLOAT)
        elif self.emulate:
            self.nodes.append(helper.make_node("Identity", [other], [required], name=f"{required}_identity"))
        else:
            self.add_cast(other, required, ONNX_TYPES[self.precision] if suffix else TensorProto.FLOAT)
        return required

    def convert_weight(self, weight: TensorProto, name: str) -> TensorProto:
        """Return a weight in the precision, or rounded to it if it is emulated."""
        values = numpy_helper.to_array(weight)
        low = helper.make_tensor(name, ONNX_TYPES[self.precision], values.shape, values.ravel().tolist())
        return numpy_helper.from_array(rounded_values(low), name) if self.emulate else as_raw_tensor(low)

    def add_cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind))

    def round_outputs(self, node: onnx.NodeProto) -> None:
        """Round the float32 outputs of an operator to the precision."""
        for i, name in enumerate(node.output):
            if name in self.available and name.endswith(f"_{self.precision}"):
                self.nodes[-1].output[i] = f"{name}_exact"
                self.add_cast(f"{name}_exact", f"{name}_low", ONNX_TYPES[self.precision])
                self.add_cast(f"{name}_low", name, TensorProto.FLOAT)


def low_precision_name(name: str, suffix: str) -> str:
    return f"{name}_{suffix}" if suffix else name


def rounded_values(low: TensorProto) -> NDArray[np.float32]:
    return numpy_helper.to_array(low).astype(np.float32)


def as_raw_tensor(low: TensorProto) -> TensorProto:
    """Return the same values stored as bytes."""
    return numpy_helper.from_array(numpy_helper.to_array(low), low.name)


def constants_to_weights(graph: onnx.GraphProto) -> None:
    """Turn float constants into initializers, so that there is one kind of weight."""
    for node in list(graph.node):
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type == "Constant" and value is not None and value.data_type == TensorProto.FLOAT:
            weight = graph.initializer.add()
            weight.CopyFrom(value)
            weight.name = node.output[0]
            graph.node.remove(node)


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the names of float32 tensors, by shape inference."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = [*graph.value_info, *graph.input, *graph.output]
    return {one.name for one in known if one.type.tensor_type.elem_type == TensorProto.FLOAT}
