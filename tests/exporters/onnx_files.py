"""Small handwritten ONNX files, valid and hostile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1) / 12


def small(
    nodes: Sequence[NodeProto] | None = None,
    *,
    outside: dict[str, Any] | None = None,
    domains: Sequence[str] = (),
    shape: Sequence[int | str] = ("n", 3, 4, 4),
    initializers: Sequence[TensorProto] = (),
    metadata: dict[str, str] | None = None,
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    """Return a graph: images x -> convolution with w, mean -> y [n, 4]. `outside`: external location of w."""
    weights = numpy_helper.from_array(WEIGHTS, "w")
    if outside is not None:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in outside.items():
            weights.external_data.add(key=key, value=str(value))
    if nodes is None:
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), mean("c")]
    x, y = (helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", 1, ["n", 4]))
    graph = helper.make_graph(list(nodes), "g", [x], [y], [weights, *initializers])
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, metadata or {})
    return model


def mean(name: str, answer: str = "y") -> NodeProto:
    return helper.make_node("ReduceMean", [name], [answer], axes=[2, 3], keepdims=0)


def expected(x: np.ndarray) -> np.ndarray:
    """Return the output of the small network, computed by NumPy."""
    return np.einsum("oc,nchw->nohw", WEIGHTS[:, :, 0, 0], x).mean((2, 3))


def written(path: Path, model: ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def qdq_pair(name: str, low: str = "") -> tuple[list[NodeProto], list[TensorProto]]:
    """Return operators and scales that round `name` to 8 bits as `low`."""
    scale = numpy_helper.from_array(np.float32(1 / 255), f"{name}_scale")
    zero = numpy_helper.from_array(np.uint8(0), f"{name}_zero")
    names = [scale.name, zero.name]
    return [
        helper.make_node("QuantizeLinear", [name, *names], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *names], [low or f"{name}_low"]),
    ], [scale, zero]


def properties(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
