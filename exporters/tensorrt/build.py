"""Engines of TensorRT and TensorRT-RTX from ONNX files.

The graph determines the types: the network is strongly typed, and no builder flag turns anything into fp16 or int8. A
TensorRT engine is built on the GPU that it is for. TensorRT-RTX needs no GPU to build and compiles the last step where
the engine runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from compress.errors import first_line
from compress.files import sha256
from exporters.cuda import Gpu, detect_gpu
from exporters.errors import ExportError, MissingFileError, RunnerError
from exporters.onnx_validation import decode_model, iter_tensors, model_metadata, validate_location
from exporters.output import unwritable_error
from exporters.packages import LIBRARY_ERRORS
from exporters.tensorrt.libraries import LIBRARY_NAMES, EngineKind, LibraryMessages, capture_messages, import_library
from exporters.tensorrt.metadata import (
    FORMAT,
    EngineMetadata,
    OnnxSource,
    ShapeProfile,
    TensorSpec,
    current_platform,
    incompatibility_reason,
    write_metadata,
)
from exporters.tensorrt.options import (
    BuildOptions,
    ShapeRanges,
    configure_builder,
    create_profile,
    load_timing_cache,
    save_timing_cache,
    target_capabilities,
    validate_options,
)

#: types of the library that images and outputs may have -> torch's names
TENSOR_TYPES: dict[str, Any] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
#: operators, and types of weights and casts, that show the precision of a file without metadata
QDQ_OPERATORS = {"QuantizeLinear", "DequantizeLinear"}
LOW_PRECISION_TYPES = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class EngineBuildResult:
    """An engine that is not compared with the network yet."""

    kind: EngineKind  #: "tensorrt" or "tensorrt-rtx"
    version: str  #: of the library
    gpu: Gpu | None  #: GPU that it was built on
    compute_capabilities: tuple[str, ...]  #: that it was built for; "8.0+" means 8.0 and later
    profile: ShapeProfile  #: image shapes that it takes
    precision: str  #: of the graph
    bytes: int  #: size
    sha256: str  #: of the engine
    timing_cache: str | None  #: "new", "read", or "replaced" with the reason; None without one
    warnings: tuple[str, ...]  #: of the library
    incompatibility: str | None  #: why it does not run on this machine; None if it does


@dataclass(frozen=True)
class BuildJob:
    """A file to build an engine from."""

    trt: Any
    kind: EngineKind
    source: Path
    model: onnx.ModelProto
    shapes: ShapeRanges
    options: BuildOptions

    def build_error(self, errors: list[str]) -> ExportError:
        reason = "; ".join(errors) or "no reason"
        name = f"{LIBRARY_NAMES[self.kind]} {self.trt.__version__}"
        return ExportError(f"{self.source}: {name} cannot build an engine ({reason}).")


@dataclass(frozen=True)
class CompiledEngine:
    """A serialized engine with its inputs and outputs."""

    engine: bytes
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    profile: ShapeProfile
    timing_cache: str | None


def build_engine(
    source: Path, path: Path, *, kind: EngineKind, shapes: ShapeRanges, options: BuildOptions | None = None
) -> EngineBuildResult:
    """Build an engine from an ONNX file, and write its metadata to NAME.engine.json beside it.

    Args:
        source: The ONNX file.
        path: The engine to write.
        kind: "tensorrt" or "tensorrt-rtx".
        shapes: Image shapes that the engine takes.
        options: Build options.

    Raises:
        MissingFileError: There is no such ONNX file.
        RuntimeUnavailableError: The library is missing or too old.
        ExportError: The library cannot build the file, or does not have an option; or the file contradicts the shapes.
    """
    options = options or BuildOptions()
    trt, gpu = import_library(kind), detect_gpu()
    validate_options(trt, kind, options, gpu)
    job = BuildJob(trt, kind, source, read_source(source), shapes, options)
    with capture_messages(trt) as (logger, messages):
        try:
            compiled = compile_engine(job, logger, messages)
        except LIBRARY_ERRORS as error:
            raise job.build_error([*messages.errors, first_line(error)]) from error
    metadata = engine_metadata(job, compiled, gpu)
    try:
        path.write_bytes(compiled.engine)
        write_metadata(path, metadata)
    except OSError as error:
        raise unwritable_error(path, error) from error
    return EngineBuildResult(
        kind=kind,
        version=metadata.version,
        gpu=gpu,
        compute_capabilities=metadata.compute_capabilities,
        profile=compiled.profile,
        precision=metadata.precision,
        bytes=len(compiled.engine),
        sha256=metadata.sha256,
        timing_cache=compiled.timing_cache,
        warnings=tuple(messages.warnings),
        incompatibility=incompatibility_reason(metadata, compiled.engine, trt, gpu),
    )


def engine_metadata(job: BuildJob, compiled: CompiledEngine, gpu: Gpu | None) -> EngineMetadata:
    metadata = model_metadata(job.model)
    return EngineMetadata(
        format=FORMAT,
        kind=job.kind,
        version=str(job.trt.__version__),
        versions={
            "onnx": onnx.__version__,
            "torch": importlib.metadata.version("torch"),
            "python": platform.python_version(),
        },
        platform=current_platform(),
        gpu=gpu,
        compute_capabilities=target_capabilities(job.kind, job.options, gpu),
        profiles=(compiled.profile,),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        sha256=hashlib.sha256(compiled.engine).hexdigest(),
        source=OnnxSource(job.source.name, sha256(job.source)),
        metadata=metadata,
        precision=metadata.get("precision") or infer_precision(job.model),
        options=portable_options(job.options),
    )


def portable_options(options: BuildOptions) -> dict[str, Any]:
    """Return the options without the directory of the timing cache, which is specific to this machine."""
    cache = options.timing_cache
    return {**asdict(options), "timing_cache": None if cache is None else cache.name}


def read_source(source: Path) -> onnx.ModelProto:
    """Read an ONNX file without its weights, which must lie in its directory."""
    try:
        model = decode_model(source)
        for tensor in iter_tensors(model):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                validate_location(source, tensor)
    except MissingFileError:
        raise
    except RunnerError as error:
        raise ExportError(str(error)) from error
    return model


def compile_engine(job: BuildJob, logger: Any, messages: LibraryMessages) -> CompiledEngine:
    """Parse the file and compile it. Raise ExportError, or one of LIBRARY_ERRORS, if the library cannot."""
    trt, source, options = job.trt, job.source, job.options
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        raise job.build_error(parser_errors(parser) or messages.errors)
    names = {value.name: axis_names(value) for value in (*job.model.graph.input, *job.model.graph.output)}
    inputs = tensor_specs(source, names, [network.get_input(i) for i in range(network.num_inputs)])
    outputs = tensor_specs(source, names, [network.get_output(i) for i in range(network.num_outputs)])
    profile = create_profile(source, image_input(source, inputs), job.shapes)
    config = builder.create_builder_config()
    configure_builder(trt, config, options)
    cache = None if options.timing_cache is None else load_timing_cache(config, options.timing_cache, trt)
    images = network.get_input(0)
    if -1 in tuple(images.shape):
        ranges = builder.create_optimization_profile()
        ranges.set_shape(images.name, profile.min, profile.opt, profile.max)
        config.add_optimization_profile(ranges)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise job.build_error(messages.errors)
    if options.timing_cache is not None:
        save_timing_cache(config, options.timing_cache)
    return CompiledEngine(bytes(engine), inputs, outputs, profile, cache)


def network_flags(trt: Any) -> int:
    """Return the flag for strong typing, which TensorRT 10 needs; 11 is always strongly typed and may lack it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parser_errors(parser: Any) -> list[str]:
    """Return all parser errors, each with its operator."""
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator = f"{error.node_operator()} " if error.node_operator() else ""
        name = f' "{error.node_name()}"' if error.node_name() else ""
        kind = error.code().name.lower().replace("_", " ")
        errors.append(f"{operator}(node {error.node()}{name}): {kind}, {' '.join(error.desc().split())}")
    return errors


def tensor_specs(source: Path, names: dict[str, list[str]], tensors: list[Any]) -> dict[str, TensorSpec]:
    """Return shapes and types of inputs or outputs. Raise ExportError for an unsupported type."""
    specs = {}
    for tensor in tensors:
        kind = TENSOR_TYPES.get(tensor.dtype.name)
        if kind is None:
            raise ExportError(
                f"{source}: found type {tensor.dtype.name} for {tensor.name}, expected {', '.join(TENSOR_TYPES)}."
            )
        axes = zip(tuple(tensor.shape), itertools.chain(names.get(tensor.name, []), itertools.repeat("")), strict=False)
        specs[tensor.name] = TensorSpec(tuple(int(n) if n >= 0 else name or "any" for n, name in axes), kind)
    return specs


def axis_names(value: onnx.ValueInfoProto) -> list[str]:
    return [axis.dim_param for axis in value.type.tensor_type.shape.dim]


def image_input(source: Path, inputs: dict[str, TensorSpec]) -> TensorSpec:
    """Return the only input. Raise ExportError for a file that does not take images."""
    spec = next(iter(inputs.values()), None)
    if spec is None or len(inputs) != 1 or len(spec.shape) != 4 or spec.type not in ("float32", "uint8"):
        found = {name: (one.type, list(one.shape)) for name, one in inputs.items()}
        raise ExportError(
            f"{source}: found inputs {found}, expected one, float32 [n, 3, height, width] or uint8 "
            "[n, height, width, 3]."
        )
    return spec


def infer_precision(model: onnx.ModelProto) -> str:
    """Infer the precision from operators and types of a graph without metadata."""
    if any(node.op_type in QDQ_OPERATORS for node in model.graph.node):
        return "int8"
    casts = {part.i for node in model.graph.node if node.op_type == "Cast" for part in node.attribute}
    types = casts | {tensor.data_type for tensor in model.graph.initializer}
    return next((name for kind, name in LOW_PRECISION_TYPES.items() if kind in types), "fp32")
