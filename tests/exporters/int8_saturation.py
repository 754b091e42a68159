"""x86's int8 convolution without VNNI, in NumPy: pairs of products are added in 16 bits, with saturation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper


def dot_in_pairs(activations: NDArray, weights: NDArray) -> NDArray[np.int32]:
    """uint8 [n, k] by int8 [m, k] -> int32 [n, m], as VPMADDUBSW and VPMADDWD compute it."""
    odd = activations.shape[1] % 2
    left, right = (np.pad(x.astype(np.int32), ((0, 0), (0, odd))) for x in (activations, weights))
    total = np.zeros((len(left), len(right)), np.int32)
    for k in range(0, left.shape[1], 2):
        total += np.clip(left[:, k : k + 2] @ right[:, k : k + 2].T, -(2**15), 2**15 - 1)
    return total


def count_saturated_sums(path: Path, images: NDArray) -> int:
    """Count the sums of a Q/DQ file's convolutions that differ from exact arithmetic on float images [n, 3, h, w]."""
    model = onnx.load(path)
    producer = {name: node for node in model.graph.node for name in node.output}
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    names = [producer[node.input[0]].input[0] for node in layers]
    count = 0
    for node, codes in zip(layers, activations_of(model, names, images), strict=True):
        dequantize = producer[node.input[0]]
        rows = patches(codes, int(values[dequantize.input[2]]), node)
        weights = values[producer[node.input[1]].input[0]]
        weights = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1)
        exact = rows.astype(np.int32) @ weights.astype(np.int32).T
        count += int((dot_in_pairs(rows, weights) != exact).sum())
    return count


def activations_of(model: ModelProto, names: list[str], images: NDArray) -> list[NDArray]:
    """Return the uint8 inputs of the convolutions."""
    kinds = [helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in dict.fromkeys(names)]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(kinds)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result = dict(zip(dict.fromkeys(names), session.run(list(dict.fromkeys(names)), {"images": images}), strict=True))
    return [np.asarray(result[name]) for name in names]


def patches(codes: NDArray, zero: int, node: NodeProto) -> NDArray:
    """Codes [n, c, h, w] -> [n * positions, kh * kw * c], padded with the zero point."""
    attributes = {each.name: list(each.ints) for each in node.attribute if each.ints}
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    padded = np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(padded, attributes["kernel_shape"], (2, 3))
    rows, columns = attributes.get("strides", [1, 1])
    strided = windows[:, :, ::rows, ::columns].transpose(0, 2, 3, 4, 5, 1)
    return strided.reshape(-1, int(np.prod(strided.shape[3:])))
