"""OpenVINO: its own files (NAME.xml and NAME.bin) from verified ONNX, and what runs them on the processor.

OpenVINO computes in bfloat16 wherever the processor is fast in it, whatever the file says, unless it is told otherwise.
Here it is always told: the precision of the graph where the processor has it, else float32; and what the compiled
network really does is read back.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.failure import ExportError, MissingFileError, RunnerError
from exporters.reading import metadata_of, read_model
from exporters.runner import Answer, Images, Runner, mismatch, to_host
from exporters.saturation import SAFE_WEIGHT, has_exact_int8, warning_of

#: where OpenVINO keeps the metadata of an ONNX file
METADATA = "framework"
#: precision of a graph -> what the processor must be capable of, and how OpenVINO is asked for it
HINTS = {"fp16": ("FP16", "f16"), "bf16": ("BF16", "bf16")}
FLOAT32 = "f32"
#: OpenVINO's types -> our names of precisions
PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}
#: layers in which a network's time goes, as the compiled graph calls them
HEAVY = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
#: the start of every description of a network; anything else OpenVINO would try on all readers that it has
DESCRIPTION = re.compile(rb"<net\s[^>]*\bversion=")
HEAD_BYTES = 4096


@dataclass(frozen=True)
class Converted:
    """An OpenVINO file that was made from an ONNX file."""

    precision: str  #: of the graph; what runs is the runner's to say
    version: str  #: of OpenVINO


def convert(source: Path, draft: Path) -> Converted:
    """Write the ONNX file `source` to `draft`, NAME.xml with its weights in NAME.bin, in the precision that it has.

    Raises RunnerError for a source that is no ONNX file, ExportError for one that OpenVINO does not know how to run.
    """
    openvino = package()
    model = read_model(source)
    metadata = metadata_of(model)
    try:
        graph = openvino.Core().read_model(str(source))
        for name, value in metadata.items():
            graph.set_rt_info(value, [METADATA, name])
        openvino.save_model(graph, str(draft), compress_to_fp16=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"{source}: OpenVINO does not take it ({reason(error)}).") from error
    return Converted(metadata.get("precision", "fp32"), openvino.__version__.split("-")[0])


class OpenVinoRunner(Runner):
    """An OpenVINO or ONNX file of one image input, on the processor.

    `precision` is the one in which most of its convolutions and matrix products really run, `layers` how many run in
    which: a graph of int8 whose quantisation OpenVINO cannot use says "fp32" here, and so does one of fp16 on a
    processor without it.
    """

    runtime = "openvino"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__("cpu", threads)
        self.path = path
        openvino = package()
        core = openvino.Core()
        graph, self.metadata = read(core, path)
        capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        needed, hint = HINTS.get(self.metadata.get("precision", ""), ("", FLOAT32))
        settings = {
            "INFERENCE_PRECISION_HINT": hint if needed in capable else FLOAT32,
            "PERFORMANCE_HINT": "LATENCY",
            **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
        }
        try:
            self.compiled: Any = core.compile_model(graph, "CPU", settings)
            self.request: Any = self.compiled.create_infer_request()
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunnerError(f"{path}: OpenVINO cannot prepare it ({reason(error)}); export it again.") from error
        self.look(path, [kind.get_type_name() for kind in (port.element_type for port in self.compiled.inputs)])
        self.layers = layers(self.compiled)
        if not has_exact_int8() and (unsafe := count_unsafe_weights(graph)):
            self.caution = warning_of(path, unsafe)
        asked = PRECISIONS[self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()]
        self.precision = max(self.layers, key=lambda name: self.layers[name], default=asked)

    def look(self, path: Path, kinds: list[str]) -> None:
        """Note what goes in and comes out. Raises RunnerError for a graph that does not read images."""
        inputs, outputs = self.compiled.inputs, self.compiled.outputs
        self.inputs = {name_of(port, f"input{i}"): shape_of(port) for i, port in enumerate(inputs)}
        self.outputs = {name_of(port, f"output{i}"): shape_of(port) for i, port in enumerate(outputs)}
        shapes = list(self.inputs.values())
        if len(kinds) != 1 or kinds[0] not in ("f32", "u8") or len(shapes[0]) != 4 or not outputs:
            raise RunnerError(
                f"{path}: found inputs {list(zip(self.inputs, kinds, shapes, strict=True))}, {len(outputs)} outputs, "
                "expected one float input [n, 3, height, width], or one of uint8 [n, height, width, 3], and an answer."
            )
        self.takes_bytes = kinds == ["u8"]
        first = outputs[0]
        self.read_shapes(shapes[0], shape_of(first), whole=first.element_type.is_integral())

    def run(self, images: Images) -> dict[str, Answer]:
        array = to_host(images, takes_bytes=self.takes_bytes)
        ((_, shape),) = self.inputs.items()
        try:
            answers = self.request.infer([array], share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise mismatch(self.path, array.shape, shape, reason(error)) from error
        return {name: plain(answers[i]) for i, name in enumerate(self.outputs)}

    def close(self) -> None:
        del self.request, self.compiled


def package() -> Any:
    """The optional package."""
    try:
        import openvino
    except ImportError as error:
        raise RunnerError("OpenVINO is not installed; pip install 'compress[openvino]'.") from error
    return openvino


def read(core: Any, path: Path) -> tuple[Any, dict[str, str]]:
    """The graph in an OpenVINO or ONNX file, and its metadata."""
    if path.suffix.lower() == ".xml":
        check_pair(path)
        metadata = None
    else:
        metadata = metadata_of(read_model(path))
    try:
        graph = core.read_model(str(path))
    except (RuntimeError, TypeError, ValueError) as error:
        raise RunnerError(
            f"{path}: cannot be loaded by OpenVINO ({reason(error)}); the file is damaged or needs what OpenVINO does "
            "not have: export it again."
        ) from error
    return graph, noted(graph) if metadata is None else metadata


def check_pair(path: Path) -> None:
    """Both files are there, and the first is a description of a network."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected an .xml file of OpenVINO.")
    if not path.with_suffix(".bin").is_file():
        raise RunnerError(f"{path}: its weights are missing: expected {path.stem}.bin beside it.")
    with open(path, "rb") as file:
        if not DESCRIPTION.search(file.read(HEAD_BYTES)):
            raise RunnerError(f"{path}: no description of a network; expected an .xml file of OpenVINO.")


def noted(graph: Any) -> dict[str, str]:
    if not graph.has_rt_info([METADATA]):
        return {}
    names = graph.get_rt_info([METADATA]).astype(dict)
    return {name: str(graph.get_rt_info([METADATA, name]).value) for name in names}


def count_unsafe_weights(graph: Any) -> int:
    """How many int8 weights of a graph have products that can exceed 16 bits."""
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    weights = [op.data for op in constants if op.get_element_type().get_type_name() == "i8" and len(op.shape) > 1]
    return sum(int(abs(weight.astype(int)).max(initial=0)) > SAFE_WEIGHT for weight in weights)


def layers(compiled: Any) -> Counter[str]:
    """How many convolutions and products of a compiled network run in which precision."""
    found = Counter[str]()
    for layer in compiled.get_runtime_model().get_ops():
        facts = layer.get_rt_info()
        if facts["layerType"].astype(str) in HEAVY:
            kind = str(facts["runtimePrecision"].astype(str))
            found[PRECISIONS.get(kind, kind)] += 1
    return found


def name_of(port: Any, otherwise: str) -> str:
    return port.get_any_name() if port.get_names() else otherwise


def shape_of(port: Any) -> list[int | str]:
    """Sides that are open are "?", or their range."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [side.get_length() if side.is_static else str(side) for side in shape]


def plain(answer: np.ndarray) -> Answer:
    """float32, whatever the width of the floats; whole numbers as they are. A copy: the request reuses its memory."""
    whole = np.issubdtype(answer.dtype, np.integer)
    return np.array(answer, dtype=answer.dtype if whole else np.float32)


def reason(error: Exception) -> str:
    """What OpenVINO says, without the places in its code: the last line of its text."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".!")[:200] if lines else type(error).__name__
