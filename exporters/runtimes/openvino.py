"""OpenVINO and ONNX files in OpenVINO, on the CPU.

By default OpenVINO computes in bfloat16 wherever the CPU is fast in it, whatever the precision of the file. Therefore
the precision is always set: that of the graph if the CPU supports it, else float32. The precision that the compiled
network really uses is read back.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from compress.resources import default_threads
from exporters.cpu import SAFE_WEIGHT, has_exact_int8, saturation_warning
from exporters.errors import RunnerError, require_file
from exporters.packages import import_package
from exporters.runtimes.base import (
    Images,
    OutputArray,
    Runner,
    Shape,
    shape_mismatch_error,
    to_host_array,
    unsupported_input_error,
)
from exporters.seal import check_seal

#: section of OpenVINO's runtime information that holds the metadata of an ONNX file
METADATA = "framework"
#: precision of a graph -> required CPU capability, and OpenVINO's precision hint
HINTS = {"fp16": ("FP16", "f16"), "bf16": ("BF16", "bf16")}
FLOAT32 = "f32"
#: OpenVINO's types -> names of precisions
PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
INPUT_TYPES = ("f32", "u8")
#: layers of a compiled graph that take most of a network's time
COMPUTE_LAYERS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
#: beginning of every OpenVINO network; OpenVINO would try all its readers on any other file
NETWORK_HEADER = re.compile(rb"<net\s[^>]*\bversion=")
HEADER_BYTES = 4096
OPENVINO_ERRORS = (RuntimeError, TypeError, ValueError)


class OpenVINORunner(Runner):
    """An OpenVINO or ONNX file with one image input, on the CPU.

    `precision` is the one in which most convolutions and matrix products run, and `layer_precisions` counts them by
    precision. An int8 graph whose quantization OpenVINO cannot use has "fp32" here, as has an fp16 graph on a CPU
    without fp16.
    """

    runtime = "openvino"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__("cpu", threads)
        self.path = path
        core = shared_core(import_openvino())
        graph = read_graph(core, path)
        self.metadata = read_metadata(graph)
        threads = default_threads() if threads is None else threads
        capability, hint = HINTS.get(self.metadata.get("precision", ""), ("", FLOAT32))
        is_capable = capability in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "INFERENCE_PRECISION_HINT": hint if is_capable else FLOAT32,
            "PERFORMANCE_HINT": "LATENCY",
            **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
        }
        try:
            self.compiled: Any = core.compile_model(graph, "CPU", settings)
            self.request: Any = self.compiled.create_infer_request()
        except OPENVINO_ERRORS as error:
            raise RunnerError(f"{path}: OpenVINO cannot compile it ({error_reason(error)}).") from error
        self.read_ports()
        self.layer_precisions = count_layer_precisions(self.compiled)
        if not has_exact_int8() and (unsafe := count_unsafe_weights(graph)):
            self.warning = saturation_warning(path, unsafe)
        requested = PRECISIONS[self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()]
        self.precision = max(self.layer_precisions, key=lambda name: self.layer_precisions[name], default=requested)

    def read_ports(self) -> None:
        """Read inputs and outputs from the compiled graph. Raise RunnerError if it does not take images."""
        inputs, outputs = self.compiled.inputs, self.compiled.outputs
        types = [port.element_type.get_type_name() for port in inputs]
        self.inputs = {port_name(port, f"input{i}"): port_shape(port) for i, port in enumerate(inputs)}
        self.outputs = {port_name(port, f"output{i}"): port_shape(port) for i, port in enumerate(outputs)}
        shapes = list(self.inputs.values())
        if len(types) != 1 or types[0] not in INPUT_TYPES or len(shapes[0]) != 4 or not outputs:
            found = list(zip(self.inputs, types, shapes, strict=True))
            raise unsupported_input_error(self.path, found, len(outputs))
        self.expects_uint8 = types == ["u8"]
        self.set_shapes(shapes[0], port_shape(outputs[0]), has_labels=outputs[0].element_type.is_integral())

    def run(self, images: Images) -> dict[str, OutputArray]:
        array = to_host_array(images, expects_uint8=self.expects_uint8)
        ((_, shape),) = self.inputs.items()
        try:
            outputs = self.request.infer([array], share_inputs=True)
        except OPENVINO_ERRORS as error:
            raise shape_mismatch_error(self.path, array.shape, shape, error_reason(error)) from error
        return {name: copy_output(outputs[i]) for i, name in enumerate(self.outputs)}

    def close(self) -> None:
        del self.request, self.compiled


def import_openvino() -> Any:
    """Import the optional package."""
    return import_package("openvino", "OpenVINO", "openvino")


@functools.cache
def shared_core(openvino: Any) -> Any:
    """OpenVINO's entry point, one for the whole process.

    Its CPU plugin replaces the stack on which signals are handled. When the last of several plugins is destroyed, the
    thread keeps a stack that is freed, and the next signal, such as Ctrl-C, is a segmentation fault (OpenVINO 2026.4).
    """
    return openvino.Core()


def read_graph(core: Any, path: Path) -> Any:
    """Read an OpenVINO or ONNX file."""
    if path.suffix.lower() == ".xml":
        validate_file_pair(path)
    else:
        require_file(path, "an .onnx file")
    try:
        return core.read_model(str(path))
    except OPENVINO_ERRORS as error:
        raise RunnerError(
            f"{path}: cannot be loaded by OpenVINO ({error_reason(error)}); the file is damaged or needs operators "
            "that OpenVINO does not have: export it again."
        ) from error


def validate_file_pair(path: Path) -> None:
    """Raise RunnerError if the .xml file is no network or its .bin file is missing."""
    require_file(path, "an .xml file of OpenVINO")
    if not path.with_suffix(".bin").is_file():
        raise RunnerError(f"{path}: its weights are missing; expected {path.stem}.bin beside it.")
    with open(path, "rb") as file:
        if not NETWORK_HEADER.search(file.read(HEADER_BYTES)):
            raise RunnerError(f"{path}: contains no network; expected an .xml file of OpenVINO.")
    check_seal(path, [path.with_suffix(".bin")])


def read_metadata(graph: Any) -> dict[str, str]:
    """Return the metadata that OpenVINO keeps of the ONNX file."""
    if not graph.has_rt_info([METADATA]):
        return {}
    names = graph.get_rt_info([METADATA]).astype(dict)
    return {name: str(graph.get_rt_info([METADATA, name]).value) for name in names}


def count_layer_precisions(compiled: Any) -> Counter[str]:
    """Count convolutions and matrix products of a compiled network by precision."""
    counts: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        if info["layerType"].astype(str) in COMPUTE_LAYERS:
            name = str(info["runtimePrecision"].astype(str))
            counts[PRECISIONS.get(name, name)] += 1
    return counts


def count_unsafe_weights(graph: Any) -> int:
    """Count the int8 weights of a graph whose products can exceed 16 bits."""
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    weights = [op.data for op in constants if op.get_element_type().get_type_name() == "i8" and len(op.shape) > 1]
    return sum(int(abs(weight.astype(int)).max(initial=0)) > SAFE_WEIGHT for weight in weights)


def port_name(port: Any, default: str) -> str:
    return port.get_any_name() if port.get_names() else default


def port_shape(port: Any) -> Shape:
    """Return the sizes of a port's axes; an open axis is "?" or its range."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [size.get_length() if size.is_static else str(size) for size in shape]


def copy_output(output: np.ndarray) -> OutputArray:
    """Copy an output, because the request reuses its memory; floats become float32."""
    is_integer = np.issubdtype(output.dtype, np.integer)
    return np.array(output, dtype=output.dtype if is_integer else np.float32)


def error_reason(error: Exception) -> str:
    """Return the last line of OpenVINO's message; the lines before it are places in its source."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".!")[:200] if lines else type(error).__name__
