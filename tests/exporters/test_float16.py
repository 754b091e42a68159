"""Graphs in fp16 and bf16 against PyTorch's half-precision networks, and where they diverge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporters.divergence import first_divergent_operator, max_magnitudes, operator_divergences
from exporters.errors import ExportError
from exporters.onnx_export import export_onnx
from exporters.pre_post import Preprocessing
from exporters.quantization.float16 import FP16_LIMIT, convert_float16

TYPES = {"fp16": (TensorProto.FLOAT16, torch.float16), "bf16": (TensorProto.BFLOAT16, torch.bfloat16)}


class Small(nn.Module):
    """Convolutions, a residual sum, a mean and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = (x - 0.5) / 0.25
        x = self.first(x).relu()
        x = x + self.second(x).relu()
        return self.head(x.mean((2, 3)))


IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("precision") / "net.onnx"
    export_onnx(Small(), IMAGES[:1], path, metadata={"precision": "fp32", "task": "classification"})
    return path


def answer(path: Path, images: np.ndarray | None = None) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": IMAGES.numpy() if images is None else images})[0]


def types(path: Path) -> dict[str, int]:
    """Return the type of each operator's first output."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {one.name: one.type.tensor_type.elem_type for one in (*model.graph.value_info, *model.graph.output)}
    return {node.op_type: known[node.output[0]] for node in model.graph.node if node.output[0] in known}


@pytest.mark.parametrize(("precision", "emulate"), [("fp16", False), ("fp16", True), ("bf16", True)])
def test_outputs_match_pytorch_in_precision(source: Path, tmp_path: Path, precision, emulate) -> None:
    result = convert_float16(source, tmp_path / "low.onnx", precision, emulate=emulate)
    kind = TYPES[precision][1]
    with torch.no_grad():
        exact = Small()(IMAGES).numpy()
        half = Small().to(kind)(IMAGES.to(kind)).float().numpy()
    ours = np.abs(answer(tmp_path / "low.onnx") - exact).max()
    theirs = np.abs(half - exact).max()
    assert 0 < ours < 2 * theirs  # it rounds, but no worse than PyTorch, which also rounds inputs and sums
    assert result.converted >= 5


def test_inputs_and_outputs_stay_float32(source: Path, tmp_path: Path) -> None:
    result = convert_float16(source, tmp_path / "low.onnx", "fp16")
    model = onnx.load(tmp_path / "low.onnx")
    assert {one.data_type for one in model.graph.initializer if one.dims and len(one.dims) == 4} == {
        TensorProto.FLOAT16
    }
    ends = [*model.graph.input, *model.graph.output]
    assert {one.type.tensor_type.elem_type for one in ends} == {TensorProto.FLOAT}
    seen = types(tmp_path / "low.onnx")
    assert (seen["Conv"], seen["Relu"], seen["Gemm"]) == (TensorProto.FLOAT16,) * 3
    assert (seen["Sub"], seen["ReduceMean"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert any("ReduceMean" in reason for reason in result.kept_fp32.values())
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert props == {"precision": "fp16", "task": "classification"}
    sizes = [path.stat().st_size for path in (tmp_path / "low.onnx", source)]
    assert sizes[0] < sizes[1]


def test_bf16_graph_passes_checker(source: Path, tmp_path: Path) -> None:
    convert_float16(source, tmp_path / "low.onnx", "bf16")
    model = onnx.load(tmp_path / "low.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 22
    assert types(tmp_path / "low.onnx")["Conv"] == TensorProto.BFLOAT16


def test_preprocessing_stays_float32(tmp_path: Path) -> None:
    export_onnx(Small(), IMAGES[:1], tmp_path / "bytes.onnx", preprocessing=Preprocessing((16, 16)))
    convert_float16(tmp_path / "bytes.onnx", tmp_path / "low.onnx", "fp16")
    model = onnx.load(tmp_path / "low.onnx")
    begun = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    producers = {name: i for i, node in enumerate(model.graph.node) for name in node.output}
    known = onnx.shape_inference.infer_shapes(model).graph.value_info
    low = [one.name for one in known if one.type.tensor_type.elem_type == TensorProto.FLOAT16]
    assert all(producers[name] >= begun - 1 for name in low if name in producers)  # the first one is the cast before it
    pictures = np.random.default_rng(0).integers(0, 256, (2, 900, 700, 3), dtype=np.uint8)
    apart = np.abs(answer(tmp_path / "low.onnx", pictures) - answer(tmp_path / "bytes.onnx", pictures)).max()
    assert apart < 5e-3


def test_overflowing_operators_stay_float32(tmp_path: Path) -> None:
    net = Small()
    with torch.no_grad():
        net.second.weight.mul_(1e6)
        net.head.weight.div_(1e6)
    export_onnx(net, IMAGES[:1], tmp_path / "loud.onnx")
    right = answer(tmp_path / "loud.onnx")
    seen = max_magnitudes(tmp_path / "loud.onnx", IMAGES.numpy())
    assert max(seen.values()) > FP16_LIMIT
    result = convert_float16(tmp_path / "loud.onnx", tmp_path / "low.onnx", "fp16", ranges=seen)
    assert sum("reaches" in reason for reason in result.kept_fp32.values()) >= 2
    np.testing.assert_allclose(answer(tmp_path / "low.onnx"), right, rtol=2e-2, atol=2e-2)
    convert_float16(tmp_path / "loud.onnx", tmp_path / "naive.onnx", "fp16")
    assert not np.allclose(answer(tmp_path / "naive.onnx"), right, rtol=2e-2, atol=2e-2, equal_nan=False)


def test_kept_operators_stay_float32(source: Path, tmp_path: Path) -> None:
    convolutions = [node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    result = convert_float16(source, tmp_path / "low.onnx", "fp16", keep=convolutions)
    assert {name for name, reason in result.kept_fp32.items() if reason == "requested"} == set(convolutions)
    assert types(tmp_path / "low.onnx")["Conv"] == TensorProto.FLOAT


def test_unsupported_graphs_raise(tmp_path: Path) -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 4, 4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 4, 4])
    inner = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["y"])], "inner", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
    )  # fmt: skip
    yes = numpy_helper.from_array(np.array(True), "yes")
    branch = helper.make_node("If", ["yes"], ["logits"], then_branch=inner, else_branch=inner)
    plain = helper.make_node("Relu", ["images"], ["logits"])
    for node, weights, reason in ((branch, [yes], "branch or loop"), (plain, [], "no operator")):
        graph = helper.make_graph([node], "g", [images], [out], weights)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "a.onnx"
        )
        with pytest.raises(ExportError, match=reason):
            convert_float16(tmp_path / "a.onnx", tmp_path / "low.onnx", "fp16")


def test_first_divergent_operator_is_found(source: Path, tmp_path: Path) -> None:
    convert_float16(source, tmp_path / "low.onnx", "fp16")
    assert first_divergent_operator(source, tmp_path / "low.onnx", IMAGES.numpy()) is None
    model = onnx.load(tmp_path / "low.onnx")
    second = [node for node in model.graph.node if node.op_type == "Conv"][1]
    (weight,) = [one for one in model.graph.initializer if one.name == second.input[1]]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.5), weight.name))
    onnx.save(model, tmp_path / "low.onnx")
    result = first_divergent_operator(source, tmp_path / "low.onnx", IMAGES.numpy())
    assert result is not None
    assert result.operator == f"{second.name} (Conv)"
    every = list(operator_divergences(source, tmp_path / "low.onnx", IMAGES.numpy()))
    damaged_index = [one.operator for one in every].index(result.operator)
    assert all(one.signal_to_noise_db > 50 for one in every[:damaged_index])
