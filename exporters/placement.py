"""Where in a graph int8 begins and ends: which nodes are quantised, and who reads the values as they were before.

Layers are convolutions and products with constant weights. What lies between two of them can stay in int8, and does
where the scheme's runtime gains by it. What comes before the first layer (a picture's preparation) and after the last
(softmax, best labels) stays as it is.

A layer that is left in fp32 reads its input unrounded, so what leads there from the layers next to it is left as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto, NodeProto, TensorProto

LAYERS = ("Conv", "Gemm", "MatMul")
#: whose output says nothing of the values that came in
BLIND = ("Shape", "Size")
#: that disappear in the rounding of what they read: with zero as the lowest of unsigned values none is below
ABSORBED = ("Relu", "Clip")


@dataclass(frozen=True)
class Placement:
    """Names of nodes and tensors."""

    nodes: frozenset[str]  #: quantised
    plain: frozenset[str]  #: tensors that a quantised node writes or reads, and that are not rounded on its account
    raw: frozenset[str]  #: nodes that read values as they were before rounding


class Graph:
    """The nodes of a model by what they read and write."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.weights = {each.name: each for each in model.graph.initializer}
        self.outputs = {each.name for each in model.graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in set(node.input):
                self.consumers.setdefault(name, []).append(node)

    def before(self, node: NodeProto) -> list[NodeProto]:
        """Whose values a node reads."""
        return [self.producer[name] for name in node.input if name in self.producer]

    def after(self, node: NodeProto) -> list[NodeProto]:
        """Who reads a node's values."""
        readers = [reader for name in node.output for reader in self.consumers.get(name, ())]
        return [reader for reader in readers if reader.op_type not in BLIND]

    @cached_property
    def layers(self) -> list[str]:
        """In order. A product before the first convolution, where there is one, prepares pictures."""
        found = [node for node in self.nodes if node.op_type in LAYERS and self.has_weights(node)]
        convolutions = self.reached([node for node in found if node.op_type == "Conv"], forward=True)
        fed = self.reached([node for node in found if node.op_type == "Conv"], forward=False)
        return [
            node.name for node in found if node.op_type == "Conv" or node.name not in fed or node.name in convolutions
        ]

    def has_weights(self, node: NodeProto) -> bool:
        weight = self.weights.get(node.input[1])
        return weight is not None and weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1

    def reached(self, starts: list[NodeProto], *, forward: bool) -> set[str]:
        """Names of the nodes behind (before) any of `starts`, themselves not counted unless behind another."""
        found: set[str] = set()
        left = list(starts)
        while left:
            node = left.pop()
            for other in self.after(node) if forward else self.before(node):
                if other.name not in found and other.op_type not in BLIND:
                    found.add(other.name)
                    left.append(other)
        return found

    @cached_property
    def inner(self) -> set[str]:
        """Names of the nodes between two layers."""
        starts = [node for node in self.nodes if node.name in set(self.layers)]
        between = self.reached(starts, forward=True) & self.reached(starts, forward=False)
        return between - set(self.layers)

    def joins(self, node: NodeProto) -> bool:
        """Whether a node reads the values of several."""
        return len({name for name in node.input if name in self.producer}) > 1

    @cached_property
    def near(self) -> dict[str, set[str]]:
        """Inner node -> the layers next to it, with nothing but nodes of one input in between."""
        layers = set(self.layers)
        return {
            node.name: {*self.next_layers(node, layers, forward=True), *self.next_layers(node, layers, forward=False)}
            for node in self.nodes
            if node.name in self.inner
        }

    def next_layers(self, node: NodeProto, layers: set[str], *, forward: bool) -> Iterator[str]:
        left, seen = [node], {node.name}
        while left:
            here = left.pop()
            for other in self.after(here) if forward else self.before(here):
                if other.name in layers:
                    yield other.name
                elif other.name in self.inner and not self.joins(other) and other.name not in seen:
                    seen.add(other.name)
                    left.append(other)


def place(graph: Graph, layers: Collection[str], between: Collection[str], *, outputs: bool) -> Placement:
    """Quantise `layers`, and of the operators `between` them those next to quantised layers only.

    `outputs`: what a layer writes is rounded too, as a runtime wants whose int8 kernels write int8. Without, rounded is
    what layers read; of a sum, which such a runtime computes in the kernel of the layer before it, the other term.
    """
    quantised = set(layers)
    nodes, raw = set(quantised), set(graph.layers) - quantised
    for node in reversed(graph.nodes):
        if node.name not in graph.inner:
            continue
        if reads_raw(graph, node, quantised, raw):
            raw.add(node.name)
        elif node.op_type in between:
            nodes.add(node.name)
    if outputs:
        return Placement(frozenset(nodes), frozenset(unrounded(graph, nodes, raw)), frozenset(raw))
    terms = {node.name: fused_term(graph, node) for node in graph.nodes if node.name in nodes - quantised}
    nodes -= {name for name, term in terms.items() if term is None}
    others = frozenset(node.name for node in graph.nodes) - nodes
    return Placement(frozenset(nodes), frozenset(term for term in terms.values() if term is not None), others)


def reads_raw(graph: Graph, node: NodeProto, quantised: set[str], raw: set[str]) -> bool:
    """Whether a node between layers stands in the way to a layer in fp32."""
    near = graph.near[node.name]
    if not near <= quantised or not (near or quantised == set(graph.layers)):
        return True
    readers = [reader.name in raw for reader in graph.after(node)]
    return any(readers) if node.op_type in ABSORBED else bool(readers) and all(readers)


def unrounded(graph: Graph, nodes: set[str], raw: set[str]) -> Iterator[str]:
    """What quantised nodes write for readers in fp32 alone; and the answer of a last product: its kernel gives fp32."""
    for node in graph.nodes:
        if node.name in nodes:
            last = node.op_type in ("Gemm", "MatMul") and not graph.reached([node], forward=True) & set(graph.layers)
            for name in node.output:
                readers = graph.consumers.get(name, ())
                alone = bool(readers) and all(reader.name in raw for reader in readers)
                if last or (alone and name not in graph.outputs):
                    yield name


def fused_term(graph: Graph, node: NodeProto) -> str | None:
    """Of a sum of two: the term that comes straight from a layer and goes nowhere else. None where there is none."""
    terms = [name for name in node.input if name in graph.producer]
    for name in terms if node.op_type == "Add" and len(terms) == 2 else ():
        if graph.producer[name].name in set(graph.layers) and len(graph.consumers[name]) == 1:
            return name
    return None
