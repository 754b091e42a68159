"""Validation of ONNX files of unknown origin before a runtime reads them.

Runtimes read weights from any path, or from any address in memory, that a file specifies (OpenVINO crashes there). So
the location of weights is validated first, and no file outside the model's directory is opened.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compress.errors import first_line
from compress.files import sanitize
from exporters.errors import RunnerError, damaged_file_error, require_file
from exporters.seal import check_seal, seal_file

#: domains of operators that ONNX defines -> canonical name
ONNX_DOMAINS = {"": "", "ai.onnx": "", "ai.onnx.ml": "ai.onnx.ml"}
#: domain of ONNX Runtime's own operators, which it validates itself
ORT_DOMAIN = "com.microsoft"
#: size limit of protobuf
MAX_BYTES = 2**31
#: numbers in one image, or in one batch of fixed size; a larger shape is an error or an attack
MAX_INPUT_NUMBERS = 2**31
#: fields of a tensor that hold one number per entry
NUMBER_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data")
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
#: types with several numbers per byte -> bits per number
SUBBYTE_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}


def read_model(path: Path) -> ModelProto:
    """Read and validate an ONNX file, without weights in separate files.

    Args:
        path: File of unknown origin. Nothing outside its directory is opened.

    Raises:
        MissingFileError: There is no such file.
        RunnerError: The file is damaged or of another kind, its weights are missing or outside its directory, its
            shapes are absurd, its graph is cyclic, or its operators are unknown.

    Example:
        >>> from pathlib import Path
        >>> read_model(Path("missing.onnx"))
        Traceback (most recent call last):
        exporters.errors.MissingFileError: missing.onnx: no such file; expected an .onnx file.
    """
    model = decode_model(path)
    try:
        validate_model(path, model)
        check_seal(path, weight_files(path, model))
    except (ValueError, TypeError, OverflowError, OSError) as error:  # names that are no text, numbers out of range
        raise damaged_file_error(path, sanitize(first_line(error))) from error
    except RunnerError as error:
        raise RunnerError(sanitize(str(error))) from error
    return model


def validate_model(path: Path, model: ModelProto) -> None:
    """Raise RunnerError if a model is unsafe or damaged; see `read_model`."""
    tensors = list(iter_tensors(model))
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            validate_location(path, tensor)
    for tensor in tensors:
        validate_size(path, tensor)
    for tensor in model.graph.initializer:
        validate_finite(path, tensor)
    for one in model.graph.input:
        validate_input_shape(path, one)
    validate_operators(path, model)
    validate_structure(path, model)
    ports = (*model.graph.input, *model.graph.output)
    texts = [text for entry in model.metadata_props for text in (entry.key, entry.value)]
    texts += [text for one in ports for text in (one.name, *(s.dim_param for s in one.type.tensor_type.shape.dim))]
    if not all(isinstance(text, str) for text in texts):
        raise damaged_file_error(path, "names or metadata are not text")


def weight_files(path: Path, model: ModelProto) -> set[Path]:
    """The files beside `path` that contain weights of its model."""
    outside = (tensor for tensor in iter_tensors(model) if tensor.data_location == TensorProto.EXTERNAL)
    return {path.parent / external_data(tensor)["location"] for tensor in outside}


def seal_model(path: Path) -> None:
    """Seal an ONNX file that has just been written (see `exporters.seal`)."""
    seal_file(path, weight_files(path, decode_model(path)))


def model_metadata(model: ModelProto) -> dict[str, str]:
    """Return the metadata of a file."""
    return {entry.key: entry.value for entry in model.metadata_props}


def model_opset(model: ModelProto) -> int:
    """Return the version of ONNX's operators; 0 if a file has none of them."""
    return next((entry.version for entry in model.opset_import if entry.domain == ""), 0)


def decode_model(path: Path) -> ModelProto:
    """Read an ONNX file without validating its content."""
    require_file(path, "an .onnx file")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise damaged_file_error(
                path, f"{size} bytes, but ONNX allows {MAX_BYTES}, with larger weights in other files"
            )
        content = path.read_bytes()
    except OSError as error:
        raise RunnerError(f"{path}: cannot be read ({error.strerror}).") from error
    if not content:
        raise damaged_file_error(path, "it is empty")
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise damaged_file_error(path, "not a complete protobuf message") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise damaged_file_error(path, "it contains no graph")
    return model


def iter_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Yield the graph, the graphs inside its operators and functions, and those of its training."""
    training = [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    pending: list[GraphProto] = [model.graph, *training]
    pending += [graph for function in model.functions for graph in iter_subgraphs(function.node)]
    while pending:
        graph = pending.pop()
        yield graph
        pending += iter_subgraphs(graph.node)


def iter_subgraphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for attribute in iter_attributes(nodes):
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def iter_attributes(nodes: Iterable[NodeProto]) -> Iterator[AttributeProto]:
    return (attribute for node in nodes for attribute in node.attribute)


def iter_nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in iter_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def iter_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor that is stored in the model."""
    for graph in iter_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in iter_attributes(iter_nodes(model)):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse_tensors = [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
        for sparse in (*sparse_tensors, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def external_data(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def validate_location(path: Path, tensor: TensorProto) -> None:
    """Raise RunnerError if weights lie outside the file's directory, with links resolved, for paths of any system."""
    location = external_data(tensor).get("location", "")
    if not location or "\0" in location:
        raise damaged_file_error(path, f"the weights {tensor.name!r} lie in another file that has no name")
    pure = PureWindowsPath(location)
    directories = {path.parent.resolve(), path.resolve().parent}  # a hub's cache consists of links
    target = (path.parent / location).resolve()
    if pure.anchor or ".." in pure.parts or not any(target.is_relative_to(directory) for directory in directories):
        raise RunnerError(
            f"{path}: the weights {tensor.name!r} lie in {location}, outside the directory of the file, so it is not "
            "opened; put both into one directory and export it again."
        )
    if not target.is_file():
        raise RunnerError(f"{path}: its weights are missing; expected the file {location} beside it.")


def validate_size(path: Path, tensor: TensorProto) -> None:
    """Raise RunnerError if the size of a tensor differs from its shape."""
    if tensor.data_type == TensorProto.STRING:
        return
    shape, kind = list(tensor.dims), TensorProto.DataType.Name(tensor.data_type)
    if any(side < 0 for side in shape) or kind == "UNDEFINED":
        raise damaged_file_error(path, f"the weights {tensor.name!r} are {kind} {shape}")
    count = math.prod(shape)
    bits = SUBBYTE_BITS.get(kind) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    expected = -(-count * bits // 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        found = available_bytes(path, tensor, expected)
    elif tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
    elif kind in SUBBYTE_BITS or kind.startswith("COMPLEX"):
        return
    else:
        entries = sum(len(getattr(tensor, field)) for field in NUMBER_FIELDS)
        found = expected if entries == count else entries * bits // 8
    if found != expected:
        raise damaged_file_error(path, f"the weights {tensor.name!r} {shape} take {expected} bytes, found {found}")


def validate_finite(path: Path, tensor: TensorProto) -> None:
    """Raise RunnerError if weights contain NaN. A scalar can be a constant of an operator."""
    if tensor.data_type not in FLOAT_TYPES or not tensor.dims:
        return
    if tensor.data_location == TensorProto.EXTERNAL:  # onnx does not follow the links of a hub's cache
        entries, kind = external_data(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
        offset = int(entries.get("offset") or 0)
        values = np.fromfile(path.parent / entries["location"], kind, math.prod(tensor.dims), offset=offset)
    else:
        values = numpy_helper.to_array(tensor)
    if np.isnan(values.astype(np.float32, copy=False)).any():
        raise RunnerError(f"{path}: the weights {tensor.name!r} have NaN, so the model is damaged; use another.")


def available_bytes(path: Path, tensor: TensorProto, expected: int) -> int:
    """Return the bytes of a tensor in a separate file: the specified number, or fewer if the file is shorter."""
    entries = external_data(tensor)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or expected)
    except ValueError as error:
        raise damaged_file_error(path, f"offset or length of the weights {tensor.name!r} is not a number") from error
    if offset < 0:
        return 0
    if length != expected:
        return length
    return min(length, max(0, (path.parent / entries["location"]).stat().st_size - offset))


def validate_input_shape(path: Path, value: onnx.ValueInfoProto) -> None:
    """Raise RunnerError if the fixed axes of an input are negative or absurdly large."""
    sides = [side.dim_value for side in value.type.tensor_type.shape.dim if side.HasField("dim_value")]
    if any(side < 0 for side in sides) or math.prod(sides) > MAX_INPUT_NUMBERS:
        raise damaged_file_error(path, f"the input {value.name!r} is of size {sides}")


def validate_operators(path: Path, model: ModelProto) -> None:
    """Raise RunnerError for custom operators and operators that the opset does not have."""
    versions = {ONNX_DOMAINS.get(entry.domain, entry.domain): entry.version for entry in model.opset_import}
    own = {(function.domain, function.name) for function in model.functions}
    custom, unknown = set(), set()
    for node in iter_nodes(model):
        if (node.domain, node.op_type) in own or node.domain.startswith(ORT_DOMAIN):
            continue
        domain = ONNX_DOMAINS.get(node.domain)
        if domain is None:
            custom.add(f"{node.domain}.{node.op_type}")
        elif not onnx.defs.has(node.op_type, max(1, versions.get(domain, 1)), domain):
            unknown.add(node.op_type)
    if custom:
        raise RunnerError(
            f"{path}: found custom operators {', '.join(sorted(custom))}, which no runtime here has; export "
            "without them."
        )
    if unknown:
        raise RunnerError(
            f"{path}: found operators {', '.join(sorted(unknown))}, which opset {versions.get('', '?')} lacks; "
            "export the network without them."
        )


def validate_structure(path: Path, model: ModelProto) -> None:
    """Run ONNX's checker on the graph without its weights, because it would copy their bytes."""
    skeleton = ModelProto(ir_version=max(4, model.ir_version))
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(topological_order(path, model.graph))
    graph.input.extend(model.graph.input)
    known = {one.name for one in model.graph.input}
    weights = [(one.name, one.data_type, one.dims) for one in model.graph.initializer]
    weights += [(one.values.name, one.values.data_type, one.dims) for one in model.graph.sparse_initializer]
    graph.input.extend(helper.make_tensor_value_info(*one) for one in weights if one[0] not in known)
    for one in model.graph.output:
        out = graph.output.add()
        out.CopyFrom(one)
        if out.type.HasField("tensor_type") and not out.type.tensor_type.HasField("shape"):
            out.type.tensor_type.shape.SetInParent()  # runtimes infer it, but the checker requires it
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        raise damaged_file_error(path, first_line(error).rstrip(".")) from error


def topological_order(path: Path, graph: GraphProto) -> list[NodeProto]:
    """Return the operators, each after its inputs: the checker requires that, while runtimes sort themselves."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    given = {one.name for one in (*graph.input, *graph.initializer)} | {s.values.name for s in graph.sparse_initializer}
    for node in graph.node:
        if missing := [name for name in node.input if name and name not in given and name not in producer]:
            raise damaged_file_error(path, f"{node.op_type} {node.name} reads {missing[0]!r}, which has no producer")
    needs = {i: {producer[name] for name in iter_inputs(node) if name in producer} for i, node in enumerate(graph.node)}
    try:
        return [graph.node[i] for i in graphlib.TopologicalSorter(needs).static_order()]
    except graphlib.CycleError as error:
        cycle = ", ".join(graph.node[i].name or graph.node[i].op_type for i in error.args[1][1:5])
        raise damaged_file_error(path, f"its graph is cyclic: {cycle}") from error


def iter_inputs(node: NodeProto) -> Iterator[str]:
    """Yield the names of an operator's inputs, and of those in its subgraphs."""
    yield from node.input
    for graph in iter_subgraphs([node]):
        for one in graph.node:
            yield from iter_inputs(one)
