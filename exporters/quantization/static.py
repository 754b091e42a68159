"""An fp32 ONNX file as int8: explicit Q/DQ by ONNX Runtime's quantizer, with one scheme for each target.

int8 means values rounded to 256 steps. Weights have one step per channel (they are known, and channels differ);
activations have one for the whole tensor, because kernels support no more. No scheme is fast everywhere: a runtime
computes in int8 where it finds the pattern that it expects. Everywhere else it rounds and computes in fp32, slower than
before.

ort-cpu
    Unsigned activations with a zero point and signed weights: the operands of x86's int8 dot product, for which ONNX
    Runtime's kernels are written (DeepLabV3-R50 on such a CPU: 2.8 times as fast as fp32; signed activations made it
    slower than fp32). With zero as the lowest value, rounding replaces ReLU. Kernels write int8 and add their bias as
    int32, so outputs and biases are quantized, as are the operators with int8 kernels between layers: sums, products,
    pooling, concatenation, resizing. Weights have 7 bits, -64...64, because with 8 bits sums saturate on CPUs without
    VNNI (`exporters.cpu`).
openvino
    The same. OpenVINO is fast with signed and unsigned activations; with these, the file also fits ort-cpu.
ort-cpu-vnni, openvino-vnni
    The same with 8-bit weights, only for CPUs with VNNI.
tensorrt, tensorrt-rtx
    Signed and symmetric, with biases in fp32: the parser rejects zero points other than 0, and int32. The inputs of
    layers are quantized, not their outputs: TensorRT fuses the operators after a layer into its kernel and moves Q and
    DQ to where they help. It fuses the sum of a residual block as well, so only the other addend is quantized, which
    the kernel then reads as int8.
ort-cuda
    As tensorrt, for ONNX Runtime's TensorRT provider: its CUDA provider has no kernels with fused Q/DQ.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.errors import first_line
from exporters import seal
from exporters.errors import ExportError
from exporters.onnx_validation import model_metadata, model_opset, read_model
from exporters.quantization.calibration import (
    AUTO_METHODS,
    BatchFunction,
    Calibration,
    CalibrationMethod,
    Calibrator,
    Ranges,
    ReferenceOutputs,
    calibrate,
    silence_quantizer,
)
from exporters.quantization.placement import LAYER_OPERATORS, NodeGraph, Placement, place_qdq
from exporters.runtimes.onnxruntime import create_session, runtime_errors

Target = Literal["ort-cpu", "ort-cpu-vnni", "ort-cuda", "openvino", "openvino-vnni", "tensorrt", "tensorrt-rtx"]
Quantizer = Literal["onnxruntime", "modelopt"]
#: first opset whose DequantizeLinear has one scale per channel
MIN_OPSET = 13
#: errors of ONNX and ONNX Runtime for a graph that they cannot rewrite
GRAPH_ERRORS = (
    *(*runtime_errors(), KeyError, AttributeError, AssertionError),
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    DecodeError,
    EncodeError,
)
#: number of calibration images (or a few more) on which calibrators are compared
COMPARISON_IMAGES = 32


@dataclass(frozen=True)
class Scheme:
    """Kind of int8 that a target computes fast."""

    text: str
    is_signed: bool  #: activations -127...127 around 0; else 0...255 with a zero point
    quantizes_outputs: bool  #: whether outputs of layers are rounded as well, and biases are int32
    intermediate_operators: frozenset[str]  #: operators that stay in int8 between two layers
    weight_bits: Literal[7, 8] = 8  #: 7: -64...64, with which no CPU saturates


#: operators that move data, and all operators with int8 kernels in ONNX Runtime
DATA_OPERATORS = ("Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize")
INT8_OPERATORS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", *DATA_OPERATORS})
U8S8 = Scheme("U8S8: unsigned activations, signed weights per channel, int32 biases", False, True, INT8_OPERATORS)
U8S7 = Scheme(
    "U8S7: unsigned activations, signed 7-bit weights per channel, int32 biases", False, True, INT8_OPERATORS, 7
)
S8S8 = Scheme("S8S8: symmetric, signed activations, signed weights per channel", True, False, frozenset({"Add"}))
SCHEMES: dict[Target, Scheme] = {
    "ort-cpu": U8S7,
    "ort-cpu-vnni": U8S8,
    "ort-cuda": S8S8,
    "openvino": U8S7,
    "openvino-vnni": U8S8,
    "tensorrt": S8S8,
    "tensorrt-rtx": S8S8,
}


@dataclass(frozen=True)
class QuantizationResult:
    """An int8 file."""

    target: Target  #: runtime that it is optimized for
    quantizer: Quantizer  #: "onnxruntime" or "modelopt"
    scheme: str  #: description of the scheme
    calibrator: CalibrationMethod  #: that computed the ranges
    calibrator_errors: dict[str, float]  #: calibrator -> relative error of its file, if several were compared
    images: int  #: number of calibration images
    layers: int  #: number of layers in int8
    kept_fp32: tuple[str, ...]  #: names of the layers in fp32


def quantize_static(
    source: Path,
    path: Path,
    batches: BatchFunction,
    *,
    target: Target = "ort-cpu",
    calibrator: Calibrator = "auto",
    keep: Collection[str] = (),
) -> QuantizationResult:
    """Quantize an fp32 ONNX file to int8. Inputs, outputs and open axes stay as they are.

    Args:
        source: The fp32 file.
        path: The int8 file to write.
        batches: Returns the calibration batches; called at most three times. Percentile and entropy hold all
            activations of one batch, so batches should be small.
        target: Runtime that the file is optimized for.
        calibrator: Method that computes the ranges.
        keep: Names of layers (convolutions, products with weights) to leave in fp32.

    Raises:
        ExportError: The file has no float32 layers or is quantized already, a name is no layer, or the images do not
            fit.

    Example:
        >>> import tempfile, numpy, torch
        >>> from exporters import export_onnx
        >>> directory = Path(tempfile.mkdtemp())
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
        >>> _ = export_onnx(network, torch.zeros(1, 3, 8, 8), directory / "net.onnx")
        >>> images = numpy.random.default_rng(0).random((16, 3, 8, 8), dtype=numpy.float32)
        >>> quantize_static(directory / "net.onnx", directory / "net.int8.onnx", lambda: [images]).layers
        2
    """
    with calibrated_session(source, batches, target=target, calibrator=calibrator, keep=keep) as session:
        return session.write(path, keep)


class QuantizationSession:
    """A file that is preprocessed and calibrated once, to make int8 files that keep different layers in fp32."""

    precision = "int8"
    quantizer: Quantizer = "onnxruntime"

    def __init__(self, source: Path, preprocessed: Path, target: Target) -> None:
        """Write the preprocessed file. Raise ExportError if it has no layer to quantize."""
        self.source, self.preprocessed = source, preprocessed
        self.model = preprocess_model(source, preprocessed)
        self.target: Target = target
        self.graph = NodeGraph(self.model)
        self.layers = self.graph.layers
        self.calibration = Calibration("minmax", {}, 0)
        self.calibrator_errors: dict[str, float] = {}
        if not self.layers:
            raise ExportError(
                f"{source.name}: found no convolution or product with float32 weights; give an fp32 file."
            )

    @property
    def scheme(self) -> str:
        return SCHEMES[self.target].text

    def write(self, path: Path, keep: Collection[str] = ()) -> QuantizationResult:
        """Write a file with all layers in int8 except those to keep. Raise ExportError if none is left."""
        for name in keep:
            if name not in self.layers:
                near = difflib.get_close_matches(name, self.layers, 1) or self.layers[:1]
                raise ExportError(f"{self.source.name}: found no layer {name} to keep in fp32; one is {near[0]}.")
        return self.write_layers(path, [name for name in self.layers if name not in set(keep)])

    def write_layers(self, path: Path, layers: Collection[str]) -> QuantizationResult:
        """Write a file with these layers in int8."""
        if not layers:
            raise ExportError(f"{self.source.name}: no layer is left to quantize; keep fewer in fp32.")
        with silence_quantizer():
            try:
                model = self.quantize_graph(layers)
                quantized = quantized_layers(model, self.layers)
                info = {
                    "target": self.target, "weight_bits": str(SCHEMES[self.target].weight_bits),
                    "quantizer": self.quantizer, "calibrator": self.calibration.method,
                }  # fmt: skip
                set_metadata(model, model_metadata(self.model), {f"int8.{key}": value for key, value in info.items()})
                onnx.save_model(model, path)
                onnx.checker.check_model(str(path), full_check=True)
            except GRAPH_ERRORS as error:
                raise ExportError(f"{self.source.name}: cannot be quantized ({first_line(error)}).") from error
        if not quantized:
            raise ExportError(f"{self.source.name}: the quantizer quantized no layer; export it again.")
        return QuantizationResult(
            target=self.target,
            quantizer=self.quantizer,
            scheme=self.scheme,
            calibrator=self.calibration.method,
            calibrator_errors=dict(self.calibrator_errors),
            images=self.calibration.images,
            layers=len(quantized),
            kept_fp32=tuple(name for name in self.layers if name not in quantized),
        )

    def quantize_graph(self, layers: Collection[str]) -> ModelProto:
        """Return the graph with these layers in int8."""
        scheme = SCHEMES[self.target]
        placement = place_qdq(
            self.graph, layers, scheme.intermediate_operators, quantizes_outputs=scheme.quantizes_outputs
        )
        quantizer = create_quantizer(self.model, scheme, placement, self.calibration.ranges)
        model = quantizer.quantize_model()
        bypass_qdq(model, placement.unquantized_readers)
        quantizer.model.topological_sort()
        return model

    def choose_calibration(
        self, calibrations: Mapping[CalibrationMethod, Calibration], batches: BatchFunction, keep: Collection[str] = ()
    ) -> None:
        """Take the calibration whose file is closest to fp32 on some of the images."""
        reference = ReferenceOutputs(self.preprocessed, batches, COMPARISON_IMAGES)
        path = self.preprocessed.with_suffix(".candidate.onnx")
        for method, calibration in calibrations.items():
            self.calibration = calibration
            self.write(path, keep)
            self.calibrator_errors[method] = reference.relative_error(path)
        self.calibration = calibrations[min(calibrations, key=lambda method: self.calibrator_errors[method])]

    def calibration_tensors(self) -> set[str]:
        """Return the tensors whose ranges may be needed."""
        nodes = [node for node in self.graph.nodes if node.name in {*self.layers, *self.graph.interior_nodes}]
        return {name for node in nodes for name in (*node.input, *node.output)}


@contextlib.contextmanager
def calibrated_session(
    source: Path, batches: BatchFunction, *, target: Target, calibrator: Calibrator, keep: Collection[str] = ()
) -> Iterator[QuantizationSession]:
    """Yield a session with ranges. "auto" takes the calibrator whose file is closest to fp32."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        session = QuantizationSession(source, Path(directory) / source.name, target)
        tensors = session.calibration_tensors()
        if calibrator != "auto":
            session.calibration = calibrate(session.preprocessed, batches, calibrator, tensors=tensors)
            yield session
            return
        calibrations: dict[CalibrationMethod, Calibration] = {}
        for method in AUTO_METHODS:
            calibrations[method] = calibrate(
                session.preprocessed, batches, method, tensors=tensors, extremes=calibrations.get("minmax")
            )
        session.choose_calibration(calibrations, batches, keep)
        yield session


def preprocess_model(source: Path, preprocessed: Path) -> ModelProto:
    """Write the graph as the quantizer needs it: constants and BatchNorm folded, shapes inferred, all nodes named."""
    read_model(source)
    create_session(source)  # raises an error with a clear message if it does not run
    try:
        original = onnx.load(source)
        validate_source(source, original)
        with silence_quantizer():
            onnx.save_model(original, preprocessed)  # with weights that may lie beside the source
            quant_pre_process(preprocessed, preprocessed, skip_symbolic_shape=True)
            model = onnx.load(preprocessed)
            del model.metadata_props[:]
            onnx.helper.set_model_props(model, model_metadata(original))
            used = {node.domain for node in model.graph.node} | {""}
            for entry in [entry for entry in model.opset_import if entry.domain not in used]:
                model.opset_import.remove(entry)
            name_nodes(model)
            onnx.save_model(model, preprocessed)
            return load_model_with_shape_infer(preprocessed)
    except GRAPH_ERRORS as error:
        raise ExportError(f"{source.name}: cannot be prepared for int8 ({first_line(error)}).") from error


def validate_source(source: Path, model: ModelProto) -> None:
    """Raise ExportError for a model that is quantized already or has an old opset."""
    opset = model_opset(model)
    if opset < MIN_OPSET:
        raise ExportError(f"{source.name}: found opset {opset}, expected {MIN_OPSET} or more for int8.")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise ExportError(f"{source.name}: found a quantized file, expected fp32; give the file that it was made from.")


def name_nodes(model: ModelProto) -> None:
    """Give every node a unique name, because ONNX Runtime's quantizer identifies nodes by name."""
    taken: set[str] = {node.name for node in model.graph.node}
    seen = {""}
    for node in model.graph.node:
        if node.name in seen:
            free = (f"{node.name or node.op_type}_{number}" for number in itertools.count())
            node.name = next(name for name in free if name not in taken)
            taken.add(node.name)
        seen.add(node.name)


class SelectiveQuantizer(QDQQuantizer):
    """ONNX Runtime's quantizer, except for selected tensors."""

    unquantized_tensors: frozenset[str] = frozenset()

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self.unquantized_tensors:
            super().quantize_activation_tensor(tensor_name)

    def quantize_output_same_as_input(self, output_name: str, input_name: str, node_name: str) -> None:
        if output_name not in self.unquantized_tensors:
            super().quantize_output_same_as_input(output_name, input_name, node_name)


def create_quantizer(model: ModelProto, scheme: Scheme, placement: Placement, ranges: Ranges) -> SelectiveQuantizer:
    copy = ModelProto()
    copy.CopyFrom(model)
    operators = [*LAYER_OPERATORS, *scheme.intermediate_operators]
    quantizer = SelectiveQuantizer(
        copy,
        per_channel=True,
        reduce_range=scheme.weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if scheme.is_signed else QuantType.QUInt8,
        tensors_range={
            name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
            for name, (low, high) in ranges.items()
        },
        nodes_to_quantize=sorted(placement.nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=operators,
        extra_options={
            "ActivationSymmetric": scheme.is_signed,
            "WeightSymmetric": True,
            "QuantizeBias": scheme.quantizes_outputs,
            "OpTypesToExcludeOutputQuantization": [] if scheme.quantizes_outputs else operators,
            "DedicatedQDQPair": not scheme.quantizes_outputs,
        },
    )
    quantizer.unquantized_tensors = placement.unquantized_tensors
    return quantizer


def bypass_qdq(model: ModelProto, names: Collection[str]) -> None:
    """Connect nodes to the tensors before Q and DQ: the quantizer gives a rounded tensor to all its readers."""
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for i, name in enumerate(node.input if node.name in names else ()):
            quantize = quantize_node(producers, name)
            if quantize is not None:
                node.input[i] = quantize.input[0]


def quantize_node(producers: dict[str, NodeProto], name: str) -> NodeProto | None:
    """Return the QuantizeLinear of the Q/DQ pair that produces a tensor, or None."""
    last = producers.get(name)
    first = producers.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
    return first if first is not None and first.op_type == "QuantizeLinear" else None


def quantized_layers(model: ModelProto, layers: Collection[str]) -> set[str]:
    """Return the layers that read both values and weights as int8."""
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = [node for node in model.graph.node if node.name in set(layers)]
    return {node.name for node in nodes if {*node.input[:2]} <= dequantized}


def set_metadata(model: ModelProto, source: dict[str, str], info: dict[str, Any]) -> None:
    """Set the metadata of the source file and those of the quantization."""
    kept = {key: value for key, value in source.items() if not key.startswith("onnx.") and key != seal.KEY}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**kept, "precision": "int8", **info})
