"""FLOPs of ONNX files against those of the exported network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compress.models.registry import build_model
from exporters.onnx_export import export_onnx
from profiles.flops.counter import count_products
from profiles.flops.onnx import OnnxCostError, count_onnx_flops


class Everything(nn.Module):
    """Every kind of product that an exporter writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.deep(self.conv(x)).relu())
        positions = x.flatten(2).transpose(1, 2)
        return self.head((positions @ (positions.transpose(1, 2) @ positions)).mean(1))


def written(path: Path, net: nn.Module, side: int, **options: object) -> Path:
    export_onnx(net.eval(), torch.rand(1, 3, side, side), path, exporter="torchscript", **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(("name", "side"), [("wrn16_1", 32), ("vgg11", 32), ("deeplab_wrn16_1", 32)])
def test_exported_network_has_same_macs(name: str, side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_model(name, classes=10)
    path = written(tmp_path / "net.onnx", net, side)
    result = count_onnx_flops(path, onnx.load(path))
    assert result.macs == count_products(net, (torch.zeros(1, 3, side, side),))
    assert (result.flops, result.input_size, result.unsupported) == (2 * result.macs, (side, side), {})
    assert result.weight_bytes == 4 * result.params
    assert set(result.weights_by_type) == {"FLOAT"}


def test_open_image_size(tmp_path: Path) -> None:
    net = Everything()
    path = written(tmp_path / "net.onnx", net, 16, dynamic_size=True)
    model = onnx.load(path)
    for size in ((16, 16), (32, 8)):
        result = count_onnx_flops(path, model, size)
        assert result.macs == count_products(net, (torch.zeros(1, 3, *size),))
        assert {"Conv", "ConvTranspose", "MatMul"} <= set(result.by_operator)
    assert count_onnx_flops(path, model, otherwise=(16, 16)).input_size == (16, 16)
    with pytest.raises(OnnxCostError, match="--input-size"):
        count_onnx_flops(path, model)


def test_fixed_batch_is_counted_per_image(tmp_path: Path) -> None:
    net = build_model("wrn16_1", classes=10).eval()
    path = tmp_path / "net.onnx"
    export_onnx(net, torch.rand(4, 3, 16, 16), path, exporter="torchscript", dynamic_batch=False)
    assert count_onnx_flops(path, onnx.load(path)).macs == count_products(net, (torch.zeros(1, 3, 16, 16),))
    with pytest.raises(OnnxCostError, match=r"32x32.*16x16"):
        count_onnx_flops(path, onnx.load(path), (32, 32))


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], *, kind: TensorProto.DataType = TensorProto.FLOAT
) -> ModelProto:
    """A small file with one input of 4 axes."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    one = helper.make_tensor_value_info("x", kind, [1, 3, 8, 8])
    output = helper.make_tensor_value_info("y", kind, None)
    made = helper.make_graph(nodes, "g", [one], [output], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def saved(model: ModelProto, path: Path) -> tuple[Path, ModelProto]:
    onnx.save(model, path)
    return path, model


def test_int8_weights(tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 3, 3, 3), np.int8), "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wide"]),
        helper.make_node("Conv", ["x", "wide"], ["y"]),
    ]
    result = count_onnx_flops(*saved(graph(nodes, weights), tmp_path / "int8.onnx"))
    assert result.by_operator == {"Conv": 4 * 27 * 36}
    assert result.weights_by_type == {"INT8": 109, "FLOAT": 1}
    assert result.weight_bytes == 109 + 4
    assert result.activations == 4 * 36


def test_einsum_gemm_and_integer_products(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Einsum", ["x", "e"], ["a"], name="sum", equation="nchw,ck->nkhw"),
        helper.make_node("Reshape", ["a", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "g"], ["y"], transA=1, transB=1),
    ]
    weights = {
        "e": np.zeros((3, 2), np.float32), "flat": np.array([16, 8]), "g": np.zeros((5, 16), np.float32),
    }  # fmt: skip
    result = count_onnx_flops(*saved(graph(nodes, weights), tmp_path / "sums.onnx"))
    assert result.by_operator == {"Einsum": 3 * 2 * 64, "Gemm": 8 * 16 * 5}
    assert result.params == 6 + 80  # shapes are no weights


def test_only_the_taken_branch_counts(tmp_path: Path) -> None:
    def branch(name: str, weight: str) -> onnx.GraphProto:
        node = helper.make_node("Conv", ["x", weight], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "half"], ["bright"]),
        helper.make_node("If", ["bright"], ["y"], then_branch=branch("t", "large"), else_branch=branch("e", "small")),
    ]
    weights = {
        "half": np.array(0.5, np.float32), "large": np.zeros((9, 3, 3, 3), np.float32),
        "small": np.zeros((2, 3, 1, 1), np.float32),
    }  # fmt: skip
    result = count_onnx_flops(*saved(graph(nodes, weights), tmp_path / "if.onnx"))
    assert result.by_operator == {"Conv": 6 * 64}


def test_uncounted_operators_are_reported(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("FusedConv", ["x", "w"], ["c"], domain="com.microsoft", activation="Relu"),
        helper.make_node("Gelu", ["c"], ["y"], domain="com.microsoft"),
    ]
    result = count_onnx_flops(*saved(graph(nodes, {"w": np.zeros((4, 3, 3, 3), np.float32)}), tmp_path / "fused.onnx"))
    assert (result.macs, result.unsupported) == (0, {"com.microsoft.FusedConv": 1})


def test_file_without_images_is_refused(tmp_path: Path) -> None:
    odd = graph([helper.make_node("Identity", ["x"], ["y"])], {}, kind=TensorProto.INT64)
    with pytest.raises(OnnxCostError, match=r"x tensor\(int64\)"):
        count_onnx_flops(*saved(odd, tmp_path / "odd.onnx"))
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(OnnxCostError, match="ONNX Runtime does not load the file"):
        count_onnx_flops(path, odd)


def test_too_small_image_is_an_error(tmp_path: Path) -> None:
    model = graph([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": np.zeros((4, 3, 9, 9), np.float32)})
    with pytest.raises(OnnxCostError, match=r"^(the file does not run|ONNX Runtime does not load the file)[^\n]*$"):
        count_onnx_flops(*saved(model, tmp_path / "large.onnx"))
