"""What one image costs in an ONNX file: the products that run in it, and the weights.

ONNX Runtime runs the graph once as it stands, on a black image, and its own profile tells the shapes of every operator
that ran; so a graph of any sizes and with branches is counted as it is. Only products are, as PyTorch's counter has it:
normalisation is folded into the convolutions of most exported files. An operator that may hide products is named in
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

from profiles.formulas import contraction

Size = tuple[int, int]
Shape = list[int]
#: formula: the shapes of what an operator reads, that of what it makes, its equation if it has one -> MACs
Formula = Callable[[list[Shape], Shape, str], int]

#: operators that hold products which nobody here counts
HIDDEN = {"LSTM", "GRU", "RNN", "Attention", "LinearAttention", "DeformConv"}
#: operators of runtimes that are known to be free
KNOWN = {"QuantizeLinear", "DequantizeLinear", "Gelu", "QuickGelu", "FastGelu", "BiasGelu", "NhwcMaxPool"}
STANDARD = ("", "ai.onnx", "ai.onnx.ml")
#: types of numbers that weights have; whole numbers of 32 bits and more are shapes and places
WEIGHTS = ("FLOAT", "BFLOAT", "DOUBLE", "INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8")
SMALL = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4}
#: types of numbers that images have
IMAGES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class GraphError(Exception):
    """The file cannot be counted as asked: a sentence without its path."""


@dataclass(frozen=True)
class GraphCost:
    """Arithmetic and weights of one image in an ONNX file."""

    input_size: Size  #: height, width
    macs: int  #: multiply-accumulates of products
    flops: int  #: 2 * macs
    activations: int  #: numbers that products make
    params: int  #: numbers stored as weights; int8 files store scales among them
    weight_bytes: int  #: of these
    weights_by_type: dict[str, int]  #: "FLOAT", "INT8", ... -> numbers
    by_operator: dict[str, int]  #: kind of operator -> macs, greatest first
    unsupported: dict[str, int]  #: operators that may hide products -> how many


@dataclass(frozen=True)
class Input:
    """The images that a file takes."""

    name: str
    kind: type[np.generic]
    batch: int  #: images at once: what the file insists on, or 1
    channels: int
    sides: tuple[int | None, int | None]  #: height, width; None where they are open
    channels_last: bool

    @property
    def fixed(self) -> Size | None:
        """The only size it takes; None where a side is open."""
        height, width = self.sides
        return None if height is None or width is None else (height, width)

    def black(self, size: Size | None) -> np.ndarray:
        """A batch of black images. Raises GraphError for a size that it does not take, or for none."""
        if size is None:
            raise GraphError("the file takes images of any size: give the one to count with --input-size HxW")
        if any(side not in (None, given) for side, given in zip(self.sides, size, strict=True)):
            only = "x".join("any" if side is None else str(side) for side in self.sides)
            raise GraphError(f"the file takes images of {only} only, found {size[0]}x{size[1]} asked for")
        shape = (*size, self.channels) if self.channels_last else (self.channels, *size)
        return np.zeros((self.batch, *shape), self.kind)


def count_graph(path: Path, model: ModelProto, size: Size | None = None, *, otherwise: Size | None = None) -> GraphCost:
    """Count one image through the ONNX file at `path`; `model` is what it holds, with or without its weights.

    Of a file that leaves the size open, an image of `size`, or `otherwise`. Raises GraphError for a file that is no
    network of images, does not take `size`, or does not run.
    """
    equations = {node.name: equation(node) for node in model.graph.node if node.op_type == "Einsum"}
    with TemporaryDirectory() as folder:
        session = opened(path, Path(folder) / "profile")
        given = input_of(session)
        images = given.black(size or given.fixed or otherwise)
        ran = list(operators(session, given, images))
    macs, made, left = Counter[str](), 0, Counter[str]()
    for kind, name, read, answer in ran:
        if kind in HIDDEN:
            left[kind] += 1
        elif kind in FORMULAS:
            macs[kind] += FORMULAS[kind](read, answer, equations.get(name, ""))
            made += prod(answer)
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        own = {(function.domain, function.name) for function in model.functions}
        if node.domain not in STANDARD and node.op_type not in KNOWN and (node.domain, node.op_type) not in own:
            left[f"{node.domain}.{node.op_type}"] += 1
    return summed(model, given, images, macs, made, left)


def summed(
    model: ModelProto, given: Input, images: np.ndarray, macs: Counter[str], made: int, left: Counter[str]
) -> GraphCost:
    """All that was found, for one image of the batch."""
    kinds, weight_bytes = Counter[str](), 0
    for tensor in weights_of(model):
        kinds[kind_of(tensor)] += math.prod(tensor.dims)
        weight_bytes += stored(tensor)
    height, width = images.shape[1:3] if given.channels_last else images.shape[2:4]
    each = {name: value // given.batch for name, value in macs.most_common() if value}
    total = sum(each.values())
    return GraphCost(
        input_size=(height, width),
        macs=total,
        flops=2 * total,
        activations=made // given.batch,
        params=kinds.total(),
        weight_bytes=weight_bytes,
        weights_by_type=dict(kinds.most_common()),
        by_operator=each,
        unsupported=dict(sorted(left.items())),
    )


def opened(path: Path, profile: Path) -> onnxruntime.InferenceSession:
    """The file in ONNX Runtime, nothing fused and nothing packed away, with its profile switched on."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors share no other base
        raise GraphError(f"ONNX Runtime does not load the file ({reason(error)})") from error


def input_of(session: onnxruntime.InferenceSession) -> Input:
    """The one input of images. Raises GraphError for other inputs."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in IMAGES:
        found = "; ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise GraphError(f"expected one input of images with 4 axes, found {found or 'none'}")
    (one,) = inputs
    axes = [side if isinstance(side, int) and side > 0 else None for side in one.shape]
    last = IMAGES[one.type] is np.uint8 and axes[3] in (1, 3)
    channels, height, width = (axes[3], axes[1], axes[2]) if last else (axes[1], axes[2], axes[3])
    return Input(one.name, IMAGES[one.type], axes[0] or 1, channels or 3, (height, width), last)


def operators(
    session: onnxruntime.InferenceSession, given: Input, images: np.ndarray
) -> Iterator[tuple[str, str, list[Shape], Shape]]:
    """Kind, name, shapes read and shape made of every operator that runs on `images`."""
    try:
        session.run(None, {given.name: images})
    except Exception as error:  # as above
        raise GraphError(f"the file refuses it: {reason(error)}") from error
    finally:
        noted = Path(session.end_profiling())
    for event in json.loads(noted.read_text()):
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") == "Node" and name != event["name"]:
            said = event["args"]
            answers = shapes(said["output_type_shape"])
            yield said["op_name"], name, shapes(said["input_type_shape"]), answers[0] if answers else []


def shapes(said: list[dict[str, Shape]]) -> list[Shape]:
    """`[{"float": [1, 3]}, ...]` -> `[[1, 3], ...]`."""
    return [shape for one in said for shape in one.values()]


def reason(error: Exception) -> str:
    """What ONNX Runtime says, on one line, without the path that it repeats."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    return text.rsplit(" failed:", 1)[-1].strip()[:160].rstrip(" .")


def equation(node: NodeProto) -> str:
    found = next(helper.get_attribute_value(one) for one in node.attribute if one.name == "equation")
    return found.decode().replace(" ", "")


def weights_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of weights, constants in the graph too."""
    graph = model.graph
    values: list[Any] = [one for node in graph.node if node.op_type == "Constant" for one in node.attribute]
    constants = [one.t for one in values if one.name == "value"]
    for tensor in (*graph.initializer, *constants):
        if kind_of(tensor).startswith(WEIGHTS):
            yield tensor


def kind_of(tensor: TensorProto) -> str:
    return TensorProto.DataType.Name(tensor.data_type)


def stored(tensor: TensorProto) -> int:
    """Bytes of a tensor's numbers, wherever they lie."""
    bits = SMALL.get(kind_of(tensor)) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


def placed(weight: int) -> Formula:
    """A convolution: weights, which are input number `weight`, times places of the answer."""
    return lambda read, answer, _: prod(read[weight]) * prod(answer[2:]) * answer[0]


def transposed(read: list[Shape], answer: Shape, _: str) -> int:
    """A transposed convolution: weights times places of what it reads."""
    return prod(read[1]) * prod(read[0][2:]) * read[0][0]


def product(read: list[Shape], answer: Shape, _: str) -> int:
    """MatMul, quantised or not: a row for each number of the answer."""
    return prod(answer) * read[0][-1]


def general(read: list[Shape], answer: Shape, _: str) -> int:
    """Gemm, either side transposed or not."""
    return prod(read[0]) * answer[-1]


def einsum(read: list[Shape], answer: Shape, equation: str) -> int:
    return contraction(equation, read, answer, None)


FORMULAS: dict[str, Formula] = {
    "Conv": placed(1),
    "ConvInteger": placed(1),
    "QLinearConv": placed(3),
    "ConvTranspose": transposed,
    "Gemm": general,
    "MatMul": product,
    "MatMulInteger": product,
    "QLinearMatMul": product,
    "Einsum": einsum,
}
