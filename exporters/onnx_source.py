"""An ONNX file as the source of an export: what lies before and behind its graph is exported from PyTorch and joined.

The joined graph is verified like every other one, against the same file in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, helper
from torch import Tensor, nn

from compress.errors import first_line
from exporters.errors import ExportError
from exporters.onnx_validation import model_opset
from exporters.torch_exporters import INPUT_NAME, GraphSignature

#: prefixes of the names in the parts of a joined graph
BEFORE, GRAPH, AFTER = "before_", "graph_", "after_"
QUANTIZED_OPERATORS = {
    "QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
#: writes a module as ONNX: module, images, opset, signature
TorchExporter = Callable[[nn.Module, Tensor, int, GraphSignature], ModelProto]


@dataclass(frozen=True)
class OnnxSource:
    """A float32 graph with one input and one output, and what computes its input and from its output."""

    graph: ModelProto
    run: Callable[[Tensor], Tensor]  #: runs the graph
    before: nn.Module | None  #: images in [0, 1] -> input of the graph; None: they are the same
    after: nn.Module | None  #: output of the graph -> logits; None: they are the same

    @property
    def opset(self) -> int:
        return model_opset(self.graph)


def require_float32(model: ModelProto) -> None:
    """Raise ExportError for a graph in another precision, which a conversion would not start from."""
    operators = {node.op_type for node in model.graph.node} & QUANTIZED_OPERATORS
    types = {tensor.data_type for tensor in model.graph.initializer}
    half = types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    if operators or half:
        what = f"int8 operators ({sorted(operators)[0]})" if operators else "weights in half precision"
        raise ExportError(f"found {what}, expected a graph in fp32; export from the fp32 file.")


def join_model(
    source: OnnxSource, before: nn.Module | None, after: nn.Module | None, images: Tensor, output: Tensor, opset: int,
    signature: GraphSignature, export: TorchExporter,
) -> ModelProto:  # fmt: skip
    """Join a graph with the modules around it.

    Args:
        source: The graph.
        before: Module from the files' images to the input of the graph; None: they are the same.
        after: Module from the output of the graph to the files' outputs; None: they are the same.
        images: Images as the files take them.
        output: The output of the graph for them.
        opset: ONNX opset of the result.
        signature: Outputs and open axes of the result.
        export: Exports a module.

    Raises:
        ExportError: The graph cannot be converted to this opset.
    """
    graph = convert_opset(source.graph, opset)
    parts = [(GRAPH, graph)]
    if before is not None:
        inner = GraphSignature(signature.batch, signature.height, (GRAPH,))
        parts.insert(0, (BEFORE, export(before, images, opset, inner)))
    if after is not None:
        outer = GraphSignature(signature.batch, None if output.dim() < 4 else signature.height, signature.outputs)
        parts.append((AFTER, export(after, output, opset, outer)))
    joined = chain([onnx.compose.add_prefix(part, prefix) for prefix, part in parts])
    rename_value(joined.graph, joined.graph.input[0].name, INPUT_NAME)
    for value, name in zip(list(joined.graph.output), signature.outputs, strict=True):
        rename_value(joined.graph, value.name, name)
    if before is None:
        set_shape(joined.graph.input[0], [*images.shape], signature)
    if after is None:
        set_shape(joined.graph.output[0], [*output.shape], signature)
    return joined


def convert_opset(model: ModelProto, opset: int) -> ModelProto:
    """A copy in another opset, without shapes of intermediate tensors."""
    if model_opset(model) == opset:
        converted = ModelProto()
        converted.CopyFrom(model)
    else:
        try:
            converted = onnx.version_converter.convert_version(model, opset)
        except Exception as error:  # the converter raises errors of every kind for operators that it does not know
            raise ExportError(
                f"opset {model_opset(model)} of the file cannot be converted to {opset} ({first_line(error)})"
            ) from error
    del converted.graph.value_info[:]
    return converted


def chain(parts: list[ModelProto]) -> ModelProto:
    """Connect the output of each part to the input of the next."""
    joined = parts[0]
    for part in parts[1:]:
        rename_value(part.graph, part.graph.input[0].name, joined.graph.output[0].name)
        del joined.graph.output[:]
        joined.graph.output.extend(part.graph.output)
        for field in ("node", "initializer", "sparse_initializer", "value_info"):
            getattr(joined.graph, field).extend(getattr(part.graph, field))
        joined.functions.extend(part.functions)
        domains = {entry.domain for entry in joined.opset_import}
        joined.opset_import.extend(entry for entry in part.opset_import if entry.domain not in domains)
        joined.ir_version = max(joined.ir_version, part.ir_version)
    return joined


def rename_value(graph: GraphProto, old: str, new: str) -> None:
    """Rename a tensor in a graph and in the graphs of its control flow."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == old:
            value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                rename_value(inner, old, new)


def set_shape(value: onnx.ValueInfoProto, shape: list[int], signature: GraphSignature) -> None:
    """Replace the shape of an input or output, with the open axes of the signature."""
    names = signature.axes
    if len(shape) < 4:
        names = {axis: name for axis, name in names.items() if axis == 0}
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [names.get(i, n) for i, n in enumerate(shape)]))
