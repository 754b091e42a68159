"""Engines of TensorRT and TensorRT-RTX from ONNX files: one way for both.

The types are in the graph: the network is strongly typed, and no flag of the builder makes anything fp16 or int8. An
engine of TensorRT is built on the GPU that it is for. TensorRT-RTX needs none, and compiles the last step where the
engine runs.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from exporters.engine_options import Options, check, configure, keep_cache, targets, use_cache
from exporters.failure import ExportError, MissingFileError, RunnerError, first_line
from exporters.nvidia import FAILURES, NAMES, Gpu, Kind, Said, gpu_here, hearing, library
from exporters.publishing import sha256, unwritable
from exporters.reading import check_location, decode, metadata_of, tensors_of
from exporters.shapes import Shapes, profile_of
from exporters.sidecar import FORMAT, Description, Port, Profile, Source, obstacle, platform_here, write_description

__all__ = ["Built", "Options", "Shapes", "build"]

#: types of the library -> ours; what is not here, no image and no answer is
TYPES: dict[str, Any] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
#: operators, or types of weights and casts, by which a file that does not name its precision tells it
QUANTISED = {"QuantizeLinear", "DequantizeLinear"}
HALVES = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class Built:
    """An engine that was written, and not yet compared with anything."""

    kind: Kind
    version: str  #: of the library
    gpu: Gpu | None  #: that it was built on
    compute_capabilities: tuple[str, ...]  #: that it was built for; "8.0+": that and what came later
    profile: Profile
    precision: str
    bytes: int
    sha256: str
    timing_cache: str | None  #: "new", "read", or "replaced" and why; None without one
    warnings: tuple[str, ...]  #: in the library's words
    runs_here: bool
    why_not: str | None  #: None if it runs here


@dataclass(frozen=True)
class Job:
    """What is to be built, and with what."""

    trt: Any
    kind: Kind
    source: Path
    model: onnx.ModelProto
    shapes: Shapes
    options: Options

    def refused(self, errors: list[str]) -> ExportError:
        why = "; ".join(errors) or "it gives no reason"
        return ExportError(f"{self.source}: {NAMES[self.kind]} {self.trt.__version__} builds no engine from it: {why}.")


@dataclass(frozen=True)
class Compiled:
    """What the library made of a file."""

    engine: bytes
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    profile: Profile
    timing_cache: str | None


def build(source: Path, draft: Path, *, kind: Kind, shapes: Shapes, options: Options | None = None) -> Built:
    """Build an engine from the ONNX file `source`, write it to `draft`, and what it is to NAME.json beside it.

    Raises ExportError for a library that is missing or too old, a file that it does not take, with all that its parser
    says, shapes that the file contradicts, and options that the library does not have. MissingFileError without a file.
    """
    options = options or Options()
    trt, gpu = library(kind, ExportError), gpu_here()
    check(trt, kind, options, gpu)
    job = Job(trt, kind, source, read(source), shapes, options)
    with hearing(trt) as (logger, said):
        try:
            made = compiled(job, logger, said)
        except FAILURES as error:
            raise job.refused([*said.errors, first_line(error)]) from error
    description = describe(job, made, gpu)
    try:
        draft.write_bytes(made.engine)
        write_description(draft, description)
    except OSError as error:
        raise unwritable(draft, error) from error
    why_not = obstacle(description, made.engine, trt, gpu)
    return Built(
        kind=kind,
        version=description.version,
        gpu=gpu,
        compute_capabilities=description.compute_capabilities,
        profile=made.profile,
        precision=description.precision,
        bytes=len(made.engine),
        sha256=description.sha256,
        timing_cache=made.timing_cache,
        warnings=tuple(said.warnings),
        runs_here=why_not is None,
        why_not=why_not,
    )


def describe(job: Job, made: Compiled, gpu: Gpu | None) -> Description:
    """What stands beside the engine."""
    metadata = metadata_of(job.model)
    return Description(
        format=FORMAT,
        kind=job.kind,
        version=str(job.trt.__version__),
        versions={"onnx": onnx.__version__, "torch": torch.__version__, "python": platform.python_version()},
        platform=platform_here(),
        gpu=gpu,
        compute_capabilities=targets(job.kind, job.options, gpu),
        profiles=(made.profile,),
        inputs=made.inputs,
        outputs=made.outputs,
        sha256=hashlib.sha256(made.engine).hexdigest(),
        source=Source(job.source.name, sha256(job.source)),
        metadata=metadata,
        precision=metadata.get("precision") or precision_of(job.model),
        options=plain(job.options),
    )


def plain(options: Options) -> dict[str, Any]:
    """Without the folder of the timing cache, which is this machine's own."""
    cache = options.timing_cache
    return {**asdict(options), "timing_cache": None if cache is None else cache.name}


def read(source: Path) -> onnx.ModelProto:
    """An ONNX file without its weights, which must lie in its folder. Raises ExportError for what is none."""
    try:
        model = decode(source)
        for tensor in tensors_of(model):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                check_location(source, tensor)
    except MissingFileError:
        raise
    except RunnerError as error:
        raise ExportError(str(error)) from error
    return model


def compiled(job: Job, logger: Any, said: Said) -> Compiled:
    """The engine of a file. Raises ExportError where the library makes none, and what FAILURES names."""
    trt, source, options = job.trt, job.source, job.options
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        raise job.refused(parser_errors(parser) or said.errors)
    names = {value.name: axis_names(value) for value in (*job.model.graph.input, *job.model.graph.output)}
    inputs = ports(source, names, [network.get_input(i) for i in range(network.num_inputs)])
    outputs = ports(source, names, [network.get_output(i) for i in range(network.num_outputs)])
    profile = profile_of(source, images_of(source, inputs), job.shapes)
    config = builder.create_builder_config()
    configure(trt, config, options)
    cache = None if options.timing_cache is None else use_cache(config, options.timing_cache, trt)
    images = network.get_input(0)
    if -1 in tuple(images.shape):
        ranges = builder.create_optimization_profile()
        ranges.set_shape(images.name, profile.least, profile.best, profile.most)
        config.add_optimization_profile(ranges)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise job.refused(said.errors)
    if options.timing_cache is not None:
        keep_cache(config, options.timing_cache)
    return Compiled(bytes(engine), inputs, outputs, profile, cache)


def network_flags(trt: Any) -> int:
    """Strong typing has to be asked for in TensorRT 10; 11 knows nothing else, and may no longer have the flag."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if typed is None else 1 << int(typed)


def parser_errors(parser: Any) -> list[str]:
    """All of them, each with the operator that it is about."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator = f"{error.node_operator()} " if error.node_operator() else ""
        name = f' "{error.node_name()}"' if error.node_name() else ""
        kind = error.code().name.lower().replace("_", " ")
        found.append(f"{operator}(node {error.node()}{name}): {kind}, {' '.join(error.desc().split())}")
    return found


def ports(source: Path, names: dict[str, list[str]], tensors: list[Any]) -> dict[str, Port]:
    """Inputs or outputs. Raises ExportError for a type that no image and no answer has."""
    found = {}
    for tensor in tensors:
        kind = TYPES.get(tensor.dtype.name)
        if kind is None:
            raise ExportError(
                f"{source}: {tensor.name} is of type {tensor.dtype.name}, which no image or answer may be."
            )
        axes = zip(tuple(tensor.shape), itertools.chain(names.get(tensor.name, []), itertools.repeat("")), strict=False)
        found[tensor.name] = Port(tuple(int(n) if n >= 0 else name or "any" for n, name in axes), kind)
    return found


def axis_names(value: onnx.ValueInfoProto) -> list[str]:
    return [dim.dim_param for dim in value.type.tensor_type.shape.dim]


def images_of(source: Path, inputs: dict[str, Port]) -> Port:
    """The one input. Raises ExportError for a file that does not read images."""
    port = next(iter(inputs.values()), None)
    if port is None or len(inputs) != 1 or len(port.shape) != 4 or port.type not in ("float32", "uint8"):
        found = {name: (one.type, list(one.shape)) for name, one in inputs.items()}
        raise ExportError(
            f"{source}: found inputs {found}, expected one of float32 [n, 3, height, width], or of uint8 "
            "[n, height, width, 3]."
        )
    return port


def precision_of(model: onnx.ModelProto) -> str:
    """By what is in the graph, of a file that does not say it."""
    if any(node.op_type in QUANTISED for node in model.graph.node):
        return "int8"
    casts = {part.i for node in model.graph.node if node.op_type == "Cast" for part in node.attribute}
    types = casts | {tensor.data_type for tensor in model.graph.initializer}
    return next((name for kind, name in HALVES.items() if kind in types), "fp32")
