"""An fp32 ONNX file as int8: explicit Q/DQ by ONNX Runtime's quantiser, one scheme for each target.

int8 is values rounded to 256 steps. Weights have a step for each channel (they are known, and channels differ),
activations one for the whole tensor (kernels cannot do more). No scheme is fast everywhere: a runtime computes in int8
where it finds the pattern that it looks for, and everywhere else it rounds *and* computes in fp32, slower than before.

ort-cpu
    Unsigned activations, each with a zero of its own, and signed weights: the operands of x86's dot product of bytes,
    which ONNX Runtime's kernels are written for (DeepLabV3-R50 on such a machine: 2.8 times as fast as fp32; signed
    activations made it slower than fp32). With zero as the lowest value a ReLU is the rounding itself. A kernel writes
    int8 and adds its bias as int32, so outputs and biases are quantised, and so is what lies between layers where there
    are int8 kernels: sums, products, pools, concatenation, resizing. Weights have seven bits, -64...64. With eight,
    sums saturate on processors without VNNI (`exporters.saturation`).
openvino
    The same. OpenVINO is fast with either kind of activations; with these the file is one for ort-cpu too.
ort-cpu-vnni, openvino-vnni
    The same with weights of eight bits, for processors with VNNI only.
tensorrt, tensorrt-rtx
    Signed and symmetric, with biases in fp32: the parser refuses zero points other than 0, and int32. Rounded is what a
    layer reads and not what it writes: TensorRT fuses into the kernel what follows a layer, and moves Q and DQ to where
    they help. The sum of a residual block is fused so too, hence its other term alone is rounded, which the kernel then
    reads as int8.
ort-cuda
    As tensorrt, for ONNX Runtime's TensorRT provider: its CUDA provider has no kernels that Q/DQ are fused into.
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

from exporters.calibration import AUTO, Batches, Calibration, Calibrator, Method, Ranges, Reference, calibrate, quiet
from exporters.failure import ExportError, first_line
from exporters.placement import LAYERS, Graph, Placement, place
from exporters.reading import metadata_of, opset_of
from exporters.runtime import FAILURES, open_session

Target = Literal["ort-cpu", "ort-cpu-vnni", "ort-cuda", "openvino", "openvino-vnni", "tensorrt", "tensorrt-rtx"]
Quantizer = Literal["onnxruntime", "modelopt"]
#: first version of ONNX whose DequantizeLinear has a scale a channel
LOWEST_OPSET = 13
#: what ONNX and ONNX Runtime raise for a graph that they cannot rewrite
REFUSALS = (
    *(*FAILURES, KeyError, AttributeError, AssertionError),
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    DecodeError,
    EncodeError,
)
#: calibration images, or few more, on which calibrators are compared with each other
COMPARED = 32


@dataclass(frozen=True)
class Scheme:
    """How a target wants its int8."""

    text: str
    signed: bool  #: activations -127...127 around 0; else 0...255 with a zero point
    outputs: bool  #: what layers write is rounded too, and their biases are int32
    between: frozenset[str]  #: operators that stay in int8 between two layers
    weight_bits: Literal[7, 8] = 8  #: 7: -64...64, with which no processor saturates


#: operators with int8 kernels in ONNX Runtime, or that move bytes
MOVED = ("Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize")
KERNELS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", *MOVED})
U8S8 = Scheme("U8S8: unsigned activations, signed weights per channel, int32 biases", False, True, KERNELS)
U8S7 = Scheme("U8S7: unsigned activations, signed 7-bit weights per channel, int32 biases", False, True, KERNELS, 7)
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
class Quantised:
    """What was written, and how."""

    target: Target
    quantizer: Quantizer
    scheme: str
    calibrator: Method  #: that gave the ranges
    tried: dict[str, float]  #: calibrator -> departure of its file from fp32 (Reference.departure), where compared
    images: int  #: that were calibrated on
    layers: int  #: in int8
    kept: tuple[str, ...]  #: names of the layers in fp32


def quantise(
    source: Path,
    draft: Path,
    batches: Batches,
    *,
    target: Target = "ort-cpu",
    calibrator: Calibrator = "auto",
    keep: Collection[str] = (),
) -> Quantised:
    """Write the fp32 ONNX file `source` to `draft` as int8 for `target`, with ranges of the images of `batches`.

    Inputs, outputs and open axes stay as they are. `batches` is called at most three times; percentile and entropy hold
    all activations of one batch, so batches should be small. `keep`: names of layers (convolutions, products with
    weights) to leave in fp32. Raises ExportError for a file without float32 layers or quantised
    already, for names that are no layers, and for images that it cannot be calibrated on.
    """
    with calibrated(source, batches, target=target, calibrator=calibrator, keep=keep) as subject:
        return subject.write(draft, keep)


class Subject:
    """A file made ready and calibrated once, from which int8 files are made that differ in the layers they keep."""

    precision = "int8"
    quantizer: Quantizer = "onnxruntime"

    def __init__(self, source: Path, ready: Path, target: Target) -> None:
        """`ready`: where the source made ready is written. Raises ExportError where it has nothing to quantise."""
        self.source, self.ready = source, ready
        self.model = prepared(source, ready)
        self.target: Target = target
        self.graph = Graph(self.model)
        self.layers = self.graph.layers
        self.calibration = Calibration("minmax", {}, 0)
        self.tried: dict[str, float] = {}
        if not self.layers:
            raise ExportError(
                f"{source.name}: found no convolution or product with float32 weights; give an fp32 file."
            )

    @property
    def scheme(self) -> str:
        return SCHEMES[self.target].text

    def write(self, draft: Path, keep: Collection[str] = ()) -> Quantised:
        """All layers but those to keep, as a single file. Raises ExportError if none is left."""
        for name in keep:
            if name not in self.layers:
                near = difflib.get_close_matches(name, self.layers, 1) or self.layers[:1]
                raise ExportError(
                    f"{self.source.name}: {name} is no layer that could be kept in fp32; one is {near[0]}."
                )
        return self.put(draft, [name for name in self.layers if name not in set(keep)])

    def put(self, draft: Path, layers: Collection[str]) -> Quantised:
        """These layers."""
        if not layers:
            raise ExportError(f"{self.source.name}: no layer is left to quantise; keep fewer in fp32.")
        with quiet():
            try:
                model = self.lowered(layers)
                done = rounded(model, self.layers)
                more = {
                    "target": self.target, "weight_bits": str(SCHEMES[self.target].weight_bits),
                    "quantizer": self.quantizer, "calibrator": self.calibration.method,
                }  # fmt: skip
                describe(model, metadata_of(self.model), {f"int8.{key}": value for key, value in more.items()})
                onnx.save_model(model, draft)
                onnx.checker.check_model(str(draft), full_check=True)
            except REFUSALS as error:
                raise ExportError(f"{self.source.name}: cannot be quantised ({first_line(error)}).") from error
        if not done:
            raise ExportError(f"{self.source.name}: the quantiser found nothing to quantise; export it again.")
        kept = tuple(name for name in self.layers if name not in done)
        seen = self.calibration
        return Quantised(
            self.target, self.quantizer, self.scheme, seen.method, dict(self.tried), seen.images, len(done), kept
        )

    def lowered(self, layers: Collection[str]) -> ModelProto:
        """The graph with these layers in int8."""
        scheme = SCHEMES[self.target]
        placement = place(self.graph, layers, scheme.between, outputs=scheme.outputs)
        maker = quantiser(self.model, scheme, placement, self.calibration.ranges)
        model = maker.quantize_model()
        reread(model, placement.raw)
        maker.model.topological_sort()
        return model

    def choose(self, found: Mapping[Method, Calibration], batches: Batches, keep: Collection[str] = ()) -> None:
        """Take the calibration whose file answers closest to fp32 on some of the images."""
        reference, tried = Reference(self.ready, batches, COMPARED), self.ready.with_suffix(".tried.onnx")
        for method, calibration in found.items():
            self.calibration = calibration
            self.write(tried, keep)
            self.tried[method] = reference.departure(tried)
        self.calibration = found[min(found, key=lambda method: self.tried[method])]

    def tensors(self) -> set[str]:
        """Whose ranges any file of this one may need."""
        nodes = [node for node in self.graph.nodes if node.name in {*self.layers, *self.graph.inner}]
        return {name for node in nodes for name in (*node.input, *node.output)}


@contextlib.contextmanager
def calibrated(
    source: Path, batches: Batches, *, target: Target, calibrator: Calibrator, keep: Collection[str] = ()
) -> Iterator[Subject]:
    """The source with its ranges. Of several calibrators the one whose file answers closest to fp32."""
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(source, Path(folder) / source.name, target)
        ready = subject.ready
        tensors = subject.tensors()
        if calibrator != "auto":
            subject.calibration = calibrate(ready, batches, calibrator, tensors=tensors)
            yield subject
            return
        found: dict[Method, Calibration] = {}
        for method in AUTO:
            found[method] = calibrate(ready, batches, method, tensors=tensors, extremes=found.get("minmax"))
        subject.choose(found, batches, keep)
        yield subject


def prepared(source: Path, ready: Path) -> ModelProto:
    """The graph as ONNX Runtime wants it: constants and BatchNorm folded, shapes inferred, every node with a name."""
    open_session(source, "cpu", None)  # raises in one sentence for what is no network
    try:
        given = onnx.load(source)
        refuse(source, given)
        with quiet():
            onnx.save_model(given, ready)  # with weights that may lie beside the source
            quant_pre_process(ready, ready, skip_symbolic_shape=True)
            model = onnx.load(ready)
            del model.metadata_props[:]
            onnx.helper.set_model_props(model, metadata_of(given))
            used = {node.domain for node in model.graph.node} | {""}
            for entry in [entry for entry in model.opset_import if entry.domain not in used]:
                model.opset_import.remove(entry)
            name_nodes(model)
            onnx.save_model(model, ready)
            return load_model_with_shape_infer(ready)
    except REFUSALS as error:
        raise ExportError(f"{source.name}: cannot be made ready for int8 ({first_line(error)}).") from error


def refuse(source: Path, given: ModelProto) -> None:
    opset = opset_of(given)
    if opset < LOWEST_OPSET:
        raise ExportError(f"{source.name}: has opset {opset}; int8 needs {LOWEST_OPSET} or more: export it again.")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in given.graph.node):
        raise ExportError(f"{source.name}: is quantised already; give the fp32 file that it was made from.")


def name_nodes(model: ModelProto) -> None:
    """ONNX Runtime's quantiser tells nodes by their names."""
    taken: set[str] = {node.name for node in model.graph.node}
    seen = {""}
    for node in model.graph.node:
        if node.name in seen:
            free = (f"{node.name or node.op_type}_{number}" for number in itertools.count())
            node.name = next(name for name in free if name not in taken)
            taken.add(node.name)
        seen.add(node.name)


class Quantiser(QDQQuantizer):
    """ONNX Runtime's, that leaves some tensors as they are."""

    plain: frozenset[str] = frozenset()

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self.plain:
            super().quantize_activation_tensor(tensor_name)

    def quantize_output_same_as_input(self, output_name: str, input_name: str, node_name: str) -> None:
        if output_name not in self.plain:
            super().quantize_output_same_as_input(output_name, input_name, node_name)


def quantiser(model: ModelProto, scheme: Scheme, placement: Placement, ranges: Ranges) -> Quantiser:
    copy = ModelProto()
    copy.CopyFrom(model)
    kinds = [*LAYERS, *scheme.between]
    made = Quantiser(
        copy,
        per_channel=True,
        reduce_range=scheme.weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if scheme.signed else QuantType.QUInt8,
        tensors_range={
            name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
            for name, (low, high) in ranges.items()
        },
        nodes_to_quantize=sorted(placement.nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=kinds,
        extra_options={
            "ActivationSymmetric": scheme.signed,
            "WeightSymmetric": True,
            "QuantizeBias": scheme.outputs,
            "OpTypesToExcludeOutputQuantization": [] if scheme.outputs else kinds,
            "DedicatedQDQPair": not scheme.outputs,
        },
    )
    made.plain = placement.plain
    return made


def reread(model: ModelProto, names: Collection[str]) -> None:
    """Let these nodes read what was there before Q and DQ: the quantiser hands a rounded tensor to all its readers."""
    producer = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for i, name in enumerate(node.input if node.name in names else ()):
            source = through(producer, name)
            if source is not None:
                node.input[i] = source.input[0]


def through(producer: dict[str, NodeProto], name: str) -> NodeProto | None:
    """The QuantizeLinear of a pair that `name` comes from."""
    last = producer.get(name)
    first = producer.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
    return first if first is not None and first.op_type == "QuantizeLinear" else None


def rounded(model: ModelProto, layers: Collection[str]) -> set[str]:
    """Which layers read int8, both values and weights."""
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = [node for node in model.graph.node if node.name in set(layers)]
    return {node.name for node in nodes if {*node.input[:2]} <= dequantised}


def describe(model: ModelProto, known: dict[str, str], more: dict[str, Any]) -> None:
    """The source's metadata, `known`, and what this file is."""
    found = {key: value for key, value in known.items() if not key.startswith("onnx.")}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**found, "precision": "int8", **more})
