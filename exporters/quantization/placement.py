"""Where int8 begins and ends in a graph: which nodes are quantized, and which read unquantized values.

Layers are convolutions and products with constant weights. Nodes between two layers can stay in int8, and do where the
scheme's runtime benefits. Nodes before the first layer (preprocessing) and after the last (softmax, top-k) stay as they
are.

A layer that stays in fp32 reads its input unquantized, so the nodes between it and the neighboring layers stay in fp32
as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto, NodeProto, TensorProto

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")
#: operators whose output does not depend on the values of the input
SHAPE_OPERATORS = ("Shape", "Size")
#: operators that the rounding of their input replaces: unsigned values whose lowest is zero are never below it
ABSORBED_OPERATORS = ("Relu", "Clip")


@dataclass(frozen=True)
class Placement:
    """Names of nodes and tensors."""

    nodes: frozenset[str]  #: quantized nodes
    unquantized_tensors: frozenset[str]  #: inputs and outputs of quantized nodes that are not rounded
    unquantized_readers: frozenset[str]  #: nodes that read values from before the rounding


class NodeGraph:
    """The nodes of a model, connected by their inputs and outputs."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.weights = {each.name: each for each in model.graph.initializer}
        self.outputs = {each.name for each in model.graph.output}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in set(node.input):
                self.consumers.setdefault(name, []).append(node)

    def predecessors(self, node: NodeProto) -> list[NodeProto]:
        return [self.producers[name] for name in node.input if name in self.producers]

    def successors(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that read a node's values, not only its shape."""
        readers = [reader for name in node.output for reader in self.consumers.get(name, ())]
        return [reader for reader in readers if reader.op_type not in SHAPE_OPERATORS]

    @cached_property
    def layers(self) -> list[str]:
        """Names of layers in order. A product before the first convolution belongs to the preprocessing."""
        layers = [node for node in self.nodes if node.op_type in LAYER_OPERATORS and self.has_weights(node)]
        convolutions = [node for node in layers if node.op_type == "Conv"]
        after = self.reachable_nodes(convolutions, forward=True)
        before = self.reachable_nodes(convolutions, forward=False)
        return [node.name for node in layers if node.op_type == "Conv" or node.name not in before or node.name in after]

    def has_weights(self, node: NodeProto) -> bool:
        weight = self.weights.get(node.input[1])
        return weight is not None and weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1

    def reachable_nodes(self, starts: list[NodeProto], *, forward: bool) -> set[str]:
        """Return the names of nodes after (before) any of `starts`."""
        reached: set[str] = set()
        pending = list(starts)
        while pending:
            node = pending.pop()
            for other in self.successors(node) if forward else self.predecessors(node):
                if other.name not in reached and other.op_type not in SHAPE_OPERATORS:
                    reached.add(other.name)
                    pending.append(other)
        return reached

    @cached_property
    def interior_nodes(self) -> set[str]:
        """Names of the nodes between two layers."""
        starts = [node for node in self.nodes if node.name in set(self.layers)]
        between = self.reachable_nodes(starts, forward=True) & self.reachable_nodes(starts, forward=False)
        return between - set(self.layers)

    def has_several_inputs(self, node: NodeProto) -> bool:
        return len({name for name in node.input if name in self.producers}) > 1

    @cached_property
    def adjacent_layers(self) -> dict[str, set[str]]:
        """Interior node -> the layers next to it, with only single-input nodes in between."""
        layers = set(self.layers)
        return {
            node.name: {
                *self.iter_adjacent_layers(node, layers, forward=True),
                *self.iter_adjacent_layers(node, layers, forward=False),
            }
            for node in self.nodes
            if node.name in self.interior_nodes
        }

    def iter_adjacent_layers(self, node: NodeProto, layers: set[str], *, forward: bool) -> Iterator[str]:
        pending, seen = [node], {node.name}
        while pending:
            current = pending.pop()
            for other in self.successors(current) if forward else self.predecessors(current):
                if other.name in layers:
                    yield other.name
                elif (
                    other.name in self.interior_nodes and not self.has_several_inputs(other) and other.name not in seen
                ):
                    seen.add(other.name)
                    pending.append(other)


def place_qdq(
    graph: NodeGraph, layers: Collection[str], intermediate: Collection[str], *, quantizes_outputs: bool
) -> Placement:
    """Choose which nodes are quantized.

    Args:
        graph: The fp32 graph.
        layers: Names of the layers to quantize.
        intermediate: Operators that are quantized between quantized layers.
        quantizes_outputs: Round outputs of layers as well, for runtimes whose int8 kernels write int8. Otherwise only
            the inputs of layers are rounded, and of a sum that the runtime fuses into the layer before it, the other
            addend.
    """
    quantized = set(layers)
    nodes, fp32_readers = set(quantized), set(graph.layers) - quantized
    for node in reversed(graph.nodes):
        if node.name not in graph.interior_nodes:
            continue
        if needs_fp32_input(graph, node, quantized, fp32_readers):
            fp32_readers.add(node.name)
        elif node.op_type in intermediate:
            nodes.add(node.name)
    if quantizes_outputs:
        unquantized = frozenset(iter_unquantized_outputs(graph, nodes, fp32_readers))
        return Placement(frozenset(nodes), unquantized, frozenset(fp32_readers))
    addends = {node.name: find_fused_addend(graph, node) for node in graph.nodes if node.name in nodes - quantized}
    nodes -= {name for name, addend in addends.items() if addend is None}
    others = frozenset(node.name for node in graph.nodes) - nodes
    return Placement(frozenset(nodes), frozenset(addend for addend in addends.values() if addend is not None), others)


def needs_fp32_input(graph: NodeGraph, node: NodeProto, quantized: set[str], fp32_readers: set[str]) -> bool:
    """Return whether an interior node lies before a layer in fp32."""
    adjacent = graph.adjacent_layers[node.name]
    if not adjacent <= quantized or not (adjacent or quantized == set(graph.layers)):
        return True
    readers = [reader.name in fp32_readers for reader in graph.successors(node)]
    return any(readers) if node.op_type in ABSORBED_OPERATORS else bool(readers) and all(readers)


def iter_unquantized_outputs(graph: NodeGraph, nodes: set[str], fp32_readers: set[str]) -> Iterator[str]:
    """Yield outputs of quantized nodes that only fp32 nodes read, and the output of a last product.

    The kernel of a last product returns fp32.
    """
    for node in graph.nodes:
        if node.name in nodes:
            is_product = node.op_type in ("Gemm", "MatMul")
            is_last = is_product and not graph.reachable_nodes([node], forward=True) & set(graph.layers)
            for name in node.output:
                readers = graph.consumers.get(name, ())
                is_fp32 = bool(readers) and all(reader.name in fp32_readers for reader in readers)
                if is_last or (is_fp32 and name not in graph.outputs):
                    yield name


def find_fused_addend(graph: NodeGraph, node: NodeProto) -> str | None:
    """Return the addend of a sum of two that comes from a layer and has no other reader, or None."""
    addends = [name for name in node.input if name in graph.producers]
    for name in addends if node.op_type == "Add" and len(addends) == 2 else ():
        if graph.producers[name].name in set(graph.layers) and len(graph.consumers[name]) == 1:
            return name
    return None
