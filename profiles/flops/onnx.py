"""FLOPs and weights of an ONNX file for one image.

ONNX Runtime runs the unmodified graph once on a black image, and its profile gives the shapes of every operator that
ran. So a graph with open sizes or branches is counted as well. Only products are counted, as by PyTorch's counter: most
exported files have normalization folded into convolutions. An operator that may contain products is reported in
`unsupported`; all others are free.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper

from profiles.flops.operators import contraction_macs

Size = tuple[int, int]
Shape = list[int]
#: formula: input shapes, output shape, equation of an einsum -> MACs
Formula = Callable[[list[Shape], Shape, str], int]

#: operators that contain products and are not counted here
UNCOUNTED_OPERATORS = {"LSTM", "GRU", "RNN", "Attention", "LinearAttention", "DeformConv"}
#: operators of runtimes that are free
FREE_OPERATORS = {"QuantizeLinear", "DequantizeLinear", "Gelu", "QuickGelu", "FastGelu", "BiasGelu", "NhwcMaxPool"}
STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
#: types of weights; integers of 32 bits and more are shapes and indices
WEIGHT_TYPES = ("FLOAT", "BFLOAT", "DOUBLE", "INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8")
SUB_BYTE_BITS = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4}
#: element types of images
IMAGE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxCostError(Exception):
    """A file that cannot be counted; the message does not contain its path."""


@dataclass(frozen=True)
class OnnxCost:
    """Arithmetic and weights of an ONNX file, for one image."""

    input_size: Size  #: height, width
    macs: int  #: multiply-accumulates of products
    flops: int  #: 2 * macs
    activations: int  #: output elements of products
    params: int  #: weight elements; int8 files include scales
    weight_bytes: int  #: bytes of the weights
    weights_by_type: dict[str, int]  #: "FLOAT", "INT8", ... -> elements
    by_operator: dict[str, int]  #: operator type -> macs, largest first
    unsupported: dict[str, int]  #: operator that may contain products -> number of nodes


@dataclass(frozen=True)
class ImageInput:
    """The image input of a file."""

    name: str
    dtype: type[np.generic]
    batch: int  #: images per call: the fixed size of the file, or 1
    channels: int
    image_sides: tuple[int | None, int | None]  #: height, width; None if open
    channels_last: bool

    @property
    def fixed_size(self) -> Size | None:
        """The only size that the file accepts; None if a side is open."""
        height, width = self.image_sides
        return None if height is None or width is None else (height, width)

    def zero_images(self, size: Size | None) -> np.ndarray:
        """Return a batch of black images. Raises OnnxCostError for an unknown or unsupported size."""
        if size is None:
            raise OnnxCostError("the file accepts any image size; give the one to count with --input-size HxW")
        if any(side not in (None, wanted) for side, wanted in zip(self.image_sides, size, strict=True)):
            only = "x".join("any" if side is None else str(side) for side in self.image_sides)
            raise OnnxCostError(f"found the image size {size[0]}x{size[1]}, expected {only}, the only one of the file")
        shape = (*size, self.channels) if self.channels_last else (self.channels, *size)
        return np.zeros((self.batch, *shape), self.dtype)


def count_onnx_flops(
    path: Path, model: ModelProto, size: Size | None = None, *, otherwise: Size | None = None
) -> OnnxCost:
    """Count the arithmetic of one image in an ONNX file.

    Args:
        path: The ONNX file.
        model: Its content, with or without the weights.
        size: Height and width of the image, for a file that leaves the size open.
        otherwise: Size for such a file if `size` is None.

    Returns:
        MACs, activations and weights for one image of the batch.

    Raises:
        OnnxCostError: The file has no single image input, does not accept `size`, or does not run.
    """
    equations = {node.name: einsum_equation(node) for node in model.graph.node if node.op_type == "Einsum"}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        session = open_profiling_session(path, Path(folder) / "profile")
        image_input = find_image_input(session)
        images = image_input.zero_images(size or image_input.fixed_size or otherwise)
        operators = list(profile_operators(session, image_input, images))
    macs, activations, unsupported = Counter[str](), 0, Counter[str]()
    for kind, name, inputs, output in operators:
        if kind in UNCOUNTED_OPERATORS:
            unsupported[kind] += 1
        elif kind in FORMULAS:
            macs[kind] += FORMULAS[kind](inputs, output, equations.get(name, ""))
            activations += prod(output)
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        own = {(function.domain, function.name) for function in model.functions}
        if (
            node.domain not in STANDARD_DOMAINS
            and node.op_type not in FREE_OPERATORS
            and (node.domain, node.op_type) not in own
        ):
            unsupported[f"{node.domain}.{node.op_type}"] += 1
    return build_cost(model, image_input, images, macs, activations, unsupported)


def build_cost(
    model: ModelProto,
    image_input: ImageInput,
    images: np.ndarray,
    macs: Counter[str],
    activations: int,
    unsupported: Counter[str],
) -> OnnxCost:
    """Divide the counts by the batch size and add the weights."""
    kinds, weight_bytes = Counter[str](), 0
    for tensor in iter_weights(model):
        kinds[type_name(tensor)] += math.prod(tensor.dims)
        weight_bytes += stored_bytes(tensor)
    height, width = images.shape[1:3] if image_input.channels_last else images.shape[2:4]
    each = {name: value // image_input.batch for name, value in macs.most_common() if value}
    total = sum(each.values())
    return OnnxCost(
        input_size=(height, width),
        macs=total,
        flops=2 * total,
        activations=activations // image_input.batch,
        params=kinds.total(),
        weight_bytes=weight_bytes,
        weights_by_type=dict(kinds.most_common()),
        by_operator=each,
        unsupported=dict(sorted(unsupported.items())),
    )


def open_profiling_session(path: Path, profile: Path) -> onnxruntime.InferenceSession:
    """Open the file in ONNX Runtime without fusion or packing, with profiling enabled."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base class
        raise OnnxCostError(f"ONNX Runtime does not load the file ({error_reason(error)})") from error


def find_image_input(session: onnxruntime.InferenceSession) -> ImageInput:
    """Return the only input. Raises OnnxCostError if it is not a batch of images."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in IMAGE_TYPES:
        inputs_text = "; ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise OnnxCostError(f"found the inputs {inputs_text or 'none'}, expected one batch of images with 4 axes")
    (one,) = inputs
    axes = [side if isinstance(side, int) and side > 0 else None for side in one.shape]
    last = IMAGE_TYPES[one.type] is np.uint8 and axes[3] in (1, 3)
    channels, height, width = (axes[3], axes[1], axes[2]) if last else (axes[1], axes[2], axes[3])
    return ImageInput(one.name, IMAGE_TYPES[one.type], axes[0] or 1, channels or 3, (height, width), last)


def profile_operators(
    session: onnxruntime.InferenceSession, image_input: ImageInput, images: np.ndarray
) -> Iterator[tuple[str, str, list[Shape], Shape]]:
    """Run the images and yield type, name, input shapes and output shape of every operator."""
    try:
        session.run(None, {image_input.name: images})
    except Exception as error:  # as in open_profiling_session
        raise OnnxCostError(f"the file does not run: {error_reason(error)}") from error
    finally:
        noted = Path(session.end_profiling())
    for event in json.loads(noted.read_text()):
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            arguments = event["args"]
            outputs = parse_shapes(arguments["output_type_shape"])
            yield arguments["op_name"], name, parse_shapes(arguments["input_type_shape"]), outputs[0] if outputs else []


def parse_shapes(arguments: list[dict[str, Shape]]) -> list[Shape]:
    """`[{"float": [1, 3]}, ...]` -> `[[1, 3], ...]`."""
    return [shape for one in arguments for shape in one.values()]


def error_reason(error: Exception) -> str:
    """Return ONNX Runtime's message on one line, without the path that it repeats."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    return text.rsplit(" failed:", 1)[-1].strip()[:160].rstrip(" .")


def einsum_equation(node: NodeProto) -> str:
    """Return the equation of an Einsum node, without spaces."""
    value = next(helper.get_attribute_value(one) for one in node.attribute if one.name == "equation")
    return value.decode().replace(" ", "")


def iter_weights(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every weight tensor, including constants in the graph."""
    graph = model.graph
    values: list[Any] = [one for node in graph.node if node.op_type == "Constant" for one in node.attribute]
    constants = [one.t for one in values if one.name == "value"]
    for tensor in (*graph.initializer, *constants):
        if type_name(tensor).startswith(WEIGHT_TYPES):
            yield tensor


def type_name(tensor: TensorProto) -> str:
    return TensorProto.DataType.Name(tensor.data_type)


def stored_bytes(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's elements, in the file or beside it."""
    bits = SUB_BYTE_BITS.get(type_name(tensor)) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


def convolution_formula(weight: int) -> Formula:
    """Create a formula: weights, which are input number `weight`, times output positions."""
    return lambda inputs, output, _: prod(inputs[weight]) * prod(output[2:]) * output[0]


def transposed_convolution_macs(inputs: list[Shape], output: Shape, _: str) -> int:
    """Weights times input positions."""
    return prod(inputs[1]) * prod(inputs[0][2:]) * inputs[0][0]


def matmul_macs(inputs: list[Shape], output: Shape, _: str) -> int:
    """MatMul, quantized or not: one row per output element."""
    return prod(output) * inputs[0][-1]


def gemm_macs(inputs: list[Shape], output: Shape, _: str) -> int:
    """Gemm, with either operand transposed or not."""
    return prod(inputs[0]) * output[-1]


def einsum_macs(inputs: list[Shape], output: Shape, equation: str) -> int:
    return contraction_macs(equation, inputs, output, None)


FORMULAS: dict[str, Formula] = {
    "Conv": convolution_formula(1),
    "ConvInteger": convolution_formula(1),
    "QLinearConv": convolution_formula(3),
    "ConvTranspose": transposed_convolution_macs,
    "Gemm": gemm_macs,
    "MatMul": matmul_macs,
    "MatMulInteger": matmul_macs,
    "QLinearMatMul": matmul_macs,
    "Einsum": einsum_macs,
}
