"""fp16 and bf16 written into the graph: runtimes with strongly typed networks take the precision from nowhere else.

A tensor keeps its name where it is float32; its low twin has the precision's name behind it. So two graphs can be
compared tensor by tensor.
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

from exporters.failure import ExportError
from exporters.graph import write
from exporters.reading import metadata_of, opset_of

Low = Literal["fp16", "bf16"]
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
#: operators with learned weights: before the first of them pictures are prepared, which needs whole precision
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
#: operators that sum many values, divide by small ones, have float32 inputs by definition, or make values from nothing
KEPT = {
    "BatchNormalization", "Cast", "ConstantOfShape", "CumSum", "Einsum", "Exp", "GroupNormalization",
    "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "Pow", "Range", "Reciprocal",
    "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Resize",
    "Softmax", "Softplus", "Sqrt", "TopK", "Upsample",
}  # fmt: skip
#: greatest |value| that float16 may have to hold: half of what it can
MOST = 32752.0
#: bf16 convolutions stand in the operators' types from here on
BF16_OPSET = 22


@dataclass(frozen=True)
class Typed:
    """A graph in two precisions."""

    precision: Low
    low: int  #: operators in it
    kept: dict[str, str]  #: operators after the first weighted one that stay in float32 -> why


def retype(
    source: Path,
    draft: Path,
    precision: Low,
    *,
    keep: Collection[str] = (),
    ranges: Mapping[str, float] | None = None,
    emulate: bool = False,
) -> Typed:
    """Write `source`, a float32 graph, with its weighted operators and what follows them in `precision`.

    Inputs and outputs stay as they are, and so do the operators of KEPT, those named in `keep`, and for fp16 those that
    give or take values beyond MOST: weights, or tensors of `ranges` (name -> greatest |value| seen). `emulate`: every
    low tensor is float32 rounded to `precision`, for runtimes without kernels for it; the arithmetic in between is then
    better than the real one's. Raises ExportError for a graph with branches or loops.
    """
    model = onnx.load(source)
    for node in model.graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ExportError(f"{source}: has a branch or loop ({node.op_type}), which is not turned into {precision}.")
    if precision == "bf16" and not emulate:
        model = raised(model)
    pass_ = Pass(model, precision, set(keep), dict(ranges or {}), emulate)
    found = pass_.run()
    if not found.low:
        raise ExportError(f"{source}: has no operator that could be in {precision} (kept: {said(found.kept)}).")
    props = metadata_of(model)
    onnx.helper.set_model_props(model, props | {"precision": precision})
    del model.graph.value_info[:]
    write(model, draft)
    return found


class Typing:
    """A float32 graph of which files in `precision` are made that differ in the layers they keep."""

    def __init__(self, source: Path, precision: Low, ranges: Mapping[str, float], *, emulate: bool) -> None:
        """Raises ExportError where a layer has no name to be kept by."""
        self.source, self.ranges, self.emulate = source, ranges, emulate
        self.precision: Low = precision
        graph = onnx.load(source, load_external_data=False).graph
        weights = {one.name for one in graph.initializer}
        layers = [node for node in graph.node if node.op_type in WEIGHTED and weights.intersection(node.input)]
        self.layers = [node.name for node in layers]
        if "" in self.layers:
            nameless = layers[self.layers.index("")]
            raise ExportError(
                f"{source}: the {nameless.op_type} that gives {nameless.output[0]} has no name to be kept in fp32 by; "
                "export the network again."
            )

    def write(self, draft: Path, keep: Collection[str] = ()) -> Typed:
        """All layers but those to keep. Raises ExportError as `retype` does."""
        return retype(self.source, draft, self.precision, keep=keep, ranges=self.ranges, emulate=self.emulate)

    def put(self, draft: Path, layers: Collection[str]) -> Typed:
        """These layers, and what stands between layers."""
        return self.write(draft, [name for name in self.layers if name not in set(layers)])


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at an opset whose convolutions know bf16."""
    if opset_of(model) >= BF16_OPSET:
        return model
    props = metadata_of(model)
    model = onnx.version_converter.convert_version(model, BF16_OPSET)
    onnx.helper.set_model_props(model, props)
    return model


def said(kept: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {why}" for name, why in list(kept.items())[:3]) or "nothing"


@dataclass
class Pass:
    """One walk over the graph's operators in their order."""

    model: onnx.ModelProto
    precision: Low
    keep: set[str]
    ranges: dict[str, float]
    emulate: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)  #: the new graph so far
    there: set[str] = field(default_factory=set)  #: float tensors that it has, low twins included
    begun: set[str] = field(default_factory=set)  #: tensors after the first weighted operator
    kept: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        constants_to_weights(graph)
        self.weights = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
        self.floats = float_tensors(self.model) | set(self.weights)
        self.there = {one.name for one in graph.input} | set(self.weights)

    def run(self) -> Typed:
        graph = self.model.graph
        low = 0
        for node in graph.node:
            if any(name in self.begun for name in node.input) or self.weighted(node):
                self.begun.update(node.output)
            why = self.why_kept(node)
            low += why is None
            if why and node.op_type != "Cast" and node.output[0] in self.begun and node.output[0] in self.floats:
                self.kept[node.name] = why
            self.add(node, "" if why else self.precision)
        for output in graph.output:
            self.need(output.name)
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in graph.node for name in node.input}
        unused = [one for one in graph.initializer if one.name not in used]
        for one in unused:
            graph.initializer.remove(one)
        return Typed(self.precision, low, self.kept)

    def weighted(self, node: onnx.NodeProto) -> bool:
        return node.op_type in WEIGHTED and any(name in self.weights for name in node.input)

    def why_kept(self, node: onnx.NodeProto) -> str | None:
        """Why an operator stays in float32; None if it does not."""
        if node.output[0] not in self.begun or not self.floats.intersection(node.output):
            return "prepares the images"
        if node.name in self.keep:
            return "asked for"
        if node.op_type in KEPT or node.domain not in ("", "ai.onnx"):
            return f"{node.op_type} loses too much"
        if self.precision == "fp16":
            for name in (*node.input, *node.output):
                reach = self.reach(name)
                if reach > MOST:
                    return f"{name} reaches {reach:.3g}, beyond half of what fp16 holds"
        return None

    def reach(self, name: str) -> float:
        if name in self.weights:
            return float(np.abs(numpy_helper.to_array(self.weights[name])).max(initial=0.0))
        return self.ranges.get(name, 0.0)

    def add(self, node: onnx.NodeProto, suffix: str) -> None:
        """The operator, with the twins of its float tensors that it needs."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in self.floats:
                new.input[i] = self.need(name, suffix)
        for i, name in enumerate(node.output):
            if name in self.floats:
                new.output[i] = twin(name, suffix)
                self.there.add(new.output[i])
        self.nodes.append(new)
        if suffix and self.emulate:
            self.round(new)

    def need(self, name: str, suffix: str = "") -> str:
        """The name of a float tensor's twin, which is made from the other one where there is none yet."""
        wanted = twin(name, suffix)
        if wanted in self.there:
            return wanted
        self.there.add(wanted)
        if name in self.weights and suffix:
            self.model.graph.initializer.append(self.lowered(self.weights[name], wanted))
            return wanted
        other = twin(name, "" if suffix else self.precision)
        if self.emulate and suffix:
            self.cast(other, wanted + "_cast", TYPES[self.precision])
            self.cast(wanted + "_cast", wanted, TensorProto.FLOAT)
        elif self.emulate:
            self.nodes.append(helper.make_node("Identity", [other], [wanted], name=f"{wanted}_identity"))
        else:
            self.cast(other, wanted, TYPES[self.precision] if suffix else TensorProto.FLOAT)
        return wanted

    def lowered(self, weight: TensorProto, name: str) -> TensorProto:
        """A weight in the precision; where it is emulated, rounded to it."""
        values = numpy_helper.to_array(weight)
        low = helper.make_tensor(name, TYPES[self.precision], values.shape, values.ravel().tolist())
        return numpy_helper.from_array(rounded(low), name) if self.emulate else raw(low)

    def cast(self, name: str, to: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [name], [to], name=f"{to}_cast", to=kind))

    def round(self, node: onnx.NodeProto) -> None:
        """Let the outputs of an operator in float32 be rounded to the precision."""
        for i, name in enumerate(node.output):
            if name in self.there and name.endswith(f"_{self.precision}"):
                self.nodes[-1].output[i] = f"{name}_exact"
                self.cast(f"{name}_exact", f"{name}_low", TYPES[self.precision])
                self.cast(f"{name}_low", name, TensorProto.FLOAT)


def twin(name: str, suffix: str) -> str:
    return f"{name}_{suffix}" if suffix else name


def rounded(low: TensorProto) -> NDArray[np.float32]:
    return numpy_helper.to_array(low).astype(np.float32)


def raw(low: TensorProto) -> TensorProto:
    """The same values, kept as bytes."""
    return numpy_helper.from_array(numpy_helper.to_array(low), low.name)


def constants_to_weights(graph: onnx.GraphProto) -> None:
    """Make float constants initializers, so that there is one kind of weight."""
    for node in list(graph.node):
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type == "Constant" and value is not None and value.data_type == TensorProto.FLOAT:
            weight = graph.initializer.add()
            weight.CopyFrom(value)
            weight.name = node.output[0]
            graph.node.remove(node)


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors, by shape inference."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = [*graph.value_info, *graph.input, *graph.output]
    return {one.name for one in known if one.type.tensor_type.elem_type == TensorProto.FLOAT}
