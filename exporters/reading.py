"""ONNX files that may be a stranger's, looked through before a runtime sees them.

Runtimes read what a file tells them to: weights from any path, or from an address in memory (OpenVINO ends with a
segmentation fault there). So where the weights lie is looked at first, and nothing is opened that lies elsewhere.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from exporters.failure import MissingFileError, RunnerError, first_line

#: domains of operators that ONNX itself describes; the first under both of its names
DESCRIBED = {"": "", "ai.onnx": "", "ai.onnx.ml": "ai.onnx.ml"}
#: and those of ONNX Runtime's own, which it knows best itself
RUNTIMES = "com.microsoft"
#: protobuf ends here
LARGEST_BYTES = 2**31
#: numbers in one image, or in one batch of fixed size: beyond it a shape is a mistake or worse
LARGEST_INPUT = 2**31
#: fields of a tensor that hold one number an entry
FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data")
#: types of which several numbers share a byte, by the bits of one
SMALL = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}


def read_model(path: Path) -> ModelProto:
    """The graph in an ONNX file, without such weights as lie in files of their own.

    Raises MissingFileError for no file, RunnerError for one that is damaged or of another kind, whose weights are
    missing or lie outside its folder, whose shapes are absurd, whose graph is circular, or that uses operators which
    nobody here knows. Of what lies outside nothing is opened.
    """
    model = decode(path)
    try:
        look_through(path, model)
    except (ValueError, TypeError, OverflowError, OSError) as error:  # of names that are no text, numbers out of range
        raise damaged(path, printable(first_line(error))) from error
    except RunnerError as error:
        raise RunnerError(printable(str(error))) from error
    return model


def printable(text: str) -> str:
    """Without what a name in a file could do to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def look_through(path: Path, model: ModelProto) -> None:
    tensors = list(tensors_of(model))
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            check_location(path, tensor)
    for tensor in tensors:
        check_size(path, tensor)
    for one in model.graph.input:
        check_shape(path, one)
    check_operators(path, model)
    check_structure(path, model)
    ports = (*model.graph.input, *model.graph.output)
    texts = [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    texts += [text for one in ports for text in (one.name, *(s.dim_param for s in one.type.tensor_type.shape.dim))]
    if not all(isinstance(text, str) for text in texts):
        raise damaged(path, "its names and metadata are no text")


def metadata_of(model: ModelProto) -> dict[str, str]:
    """What a file says of itself, by name."""
    return {entry.key: entry.value for entry in model.metadata_props}


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators; 0 where a file has none of them."""
    return next((entry.version for entry in model.opset_import if entry.domain == ""), 0)


def damaged(path: Path, reason: str) -> RunnerError:
    return RunnerError(
        f"{path}: cannot be loaded as ONNX ({reason}); the file is damaged or another kind: export it again."
    )


def decode(path: Path) -> ModelProto:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected an .onnx file.")
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise damaged(path, f"{size} bytes, of which ONNX holds {LARGEST_BYTES} besides weights in other files")
        content = path.read_bytes()
    except OSError as error:
        raise RunnerError(f"{path}: cannot be read ({error.strerror}).") from error
    if not content:
        raise damaged(path, "it is empty")
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise damaged(path, "it is no whole protobuf message") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise damaged(path, "there is no graph in it")
    return model


def graphs_of(model: ModelProto) -> Iterator[GraphProto]:
    """The graph, those inside its operators and functions, and those of its training."""
    training = [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    pending: list[GraphProto] = [model.graph, *training]
    pending += [graph for function in model.functions for graph in inner(function.node)]
    while pending:
        graph = pending.pop()
        yield graph
        pending += inner(graph.node)


def inner(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for attribute in attributes_of(nodes):
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def attributes_of(nodes: Iterable[NodeProto]) -> Iterator[AttributeProto]:
    return (attribute for node in nodes for attribute in node.attribute)


def nodes_of(model: ModelProto) -> Iterator[NodeProto]:
    for graph in graphs_of(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that is written down in the model, wherever it stands."""
    for graph in graphs_of(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in attributes_of(nodes_of(model)):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse_tensors = [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
        for sparse in (*sparse_tensors, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def check_location(path: Path, tensor: TensorProto) -> None:
    """Weights must lie in the folder of the file, links followed, whichever system's paths are written."""
    location = external(tensor).get("location", "")
    if not location or "\0" in location:
        raise damaged(path, f"the weights {tensor.name!r} lie in another file, and it does not say in which")
    spelt = PureWindowsPath(location)
    folders = {path.parent.resolve(), path.resolve().parent}  # a hub's cache links to a file among its weights
    target = (path.parent / location).resolve()
    if spelt.anchor or ".." in spelt.parts or not any(target.is_relative_to(folder) for folder in folders):
        raise RunnerError(
            f"{path}: the weights {tensor.name!r} are said to lie in {location}, outside the folder of the file; "
            "refused without opening it: put both into one folder and export it again."
        )
    if not target.is_file():
        raise RunnerError(f"{path}: its weights are missing: expected the file {location} beside it.")


def check_size(path: Path, tensor: TensorProto) -> None:
    """As many bytes as the shape says, neither more nor less."""
    if tensor.data_type == TensorProto.STRING:
        return
    shape, kind = list(tensor.dims), TensorProto.DataType.Name(tensor.data_type)
    if any(side < 0 for side in shape) or kind == "UNDEFINED":
        raise damaged(path, f"the weights {tensor.name!r} are {kind} {shape}")
    count = math.prod(shape)
    bits = SMALL.get(kind) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    expected = -(-count * bits // 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        found = available(path, tensor, expected)
    elif tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
    elif kind in SMALL or kind.startswith("COMPLEX"):
        return
    else:
        entries = sum(len(getattr(tensor, field)) for field in FIELDS)
        found = expected if entries == count else entries * bits // 8
    if found != expected:
        raise damaged(path, f"the weights {tensor.name!r} {shape} take {expected} bytes, found {found}")


def available(path: Path, tensor: TensorProto, expected: int) -> int:
    """Bytes of a tensor in a file of its own: those it claims, or those that are there."""
    said = external(tensor)
    try:
        offset, length = int(said.get("offset") or 0), int(said.get("length") or expected)
    except ValueError as error:
        raise damaged(path, f"the place of the weights {tensor.name!r} is no number") from error
    if offset < 0:
        return 0
    if length != expected:
        return length
    return min(length, max(0, (path.parent / said["location"]).stat().st_size - offset))


def check_shape(path: Path, value: onnx.ValueInfoProto) -> None:
    """Fixed sides of an input: positive, and no more of them than a machine can hold."""
    sides = [side.dim_value for side in value.type.tensor_type.shape.dim if side.HasField("dim_value")]
    if any(side < 0 for side in sides) or math.prod(sides) > LARGEST_INPUT:
        raise damaged(path, f"the input {value.name!r} is of size {sides}")


def check_operators(path: Path, model: ModelProto) -> None:
    versions = {DESCRIBED.get(entry.domain, entry.domain): entry.version for entry in model.opset_import}
    own = {(function.domain, function.name) for function in model.functions}
    custom, unknown = set(), set()
    for node in nodes_of(model):
        if (node.domain, node.op_type) in own or node.domain.startswith(RUNTIMES):
            continue
        domain = DESCRIBED.get(node.domain)
        if domain is None:
            custom.add(f"{node.domain}.{node.op_type}")
        elif not onnx.defs.has(node.op_type, max(1, versions.get(domain, 1)), domain):
            unknown.add(node.op_type)
    if custom:
        raise RunnerError(
            f"{path}: uses {', '.join(sorted(custom))}, custom operators whose code is in no runtime here; export the "
            "network without them."
        )
    if unknown:
        raise RunnerError(
            f"{path}: uses {', '.join(sorted(unknown))}, which ONNX (opset {versions.get('', '?')}) does not know; "
            "export the network without."
        )


def check_structure(path: Path, model: ModelProto) -> None:
    """ONNX's own checker, on the graph without its weights: their bytes would be copied, and are looked at above."""
    bones = ModelProto(ir_version=max(4, model.ir_version))
    bones.opset_import.extend(model.opset_import)
    bones.functions.extend(model.functions)
    graph = bones.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(in_order(path, model.graph))
    graph.input.extend(model.graph.input)
    known = {one.name for one in model.graph.input}
    weights = [(one.name, one.data_type, one.dims) for one in model.graph.initializer]
    weights += [(one.values.name, one.values.data_type, one.dims) for one in model.graph.sparse_initializer]
    graph.input.extend(helper.make_tensor_value_info(*one) for one in weights if one[0] not in known)
    for one in model.graph.output:
        out = graph.output.add()
        out.CopyFrom(one)
        if out.type.HasField("tensor_type") and not out.type.tensor_type.HasField("shape"):
            out.type.tensor_type.shape.SetInParent()  # runtimes find it out; the checker wants to be told
    try:
        onnx.checker.check_model(bones)
    except onnx.checker.ValidationError as error:
        raise damaged(path, first_line(error).rstrip(".")) from error


def in_order(path: Path, graph: GraphProto) -> list[NodeProto]:
    """The operators, each after those it reads from: the checker insists, runtimes sort for themselves."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    given = {one.name for one in (*graph.input, *graph.initializer)} | {s.values.name for s in graph.sparse_initializer}
    for node in graph.node:
        if missing := [name for name in node.input if name and name not in given and name not in maker]:
            raise damaged(path, f"{node.op_type} {node.name} reads {missing[0]!r}, which nothing gives")
    needs = {i: {maker[name] for name in read_by(node) if name in maker} for i, node in enumerate(graph.node)}
    try:
        return [graph.node[i] for i in graphlib.TopologicalSorter(needs).static_order()]
    except graphlib.CycleError as error:
        circle = ", ".join(graph.node[i].name or graph.node[i].op_type for i in error.args[1][1:5])
        raise damaged(path, f"its graph is circular: {circle}") from error


def read_by(node: NodeProto) -> Iterator[str]:
    """Names that an operator reads, those in graphs inside it too."""
    yield from node.input
    for graph in inner([node]):
        for one in graph.node:
            yield from read_by(one)
