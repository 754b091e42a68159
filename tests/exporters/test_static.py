"""Static int8: correct numbers, the Q/DQ pattern of each runtime, and outputs close to fp32."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from fashion_teacher import accuracy, answers, batch_function, export_fashion, fashion_images, session, teacher
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import nn
from unsealed import load_unsealed

from exporters.errors import ExportError, RunnerError
from exporters.quantization.calibration import ReferenceOutputs
from exporters.quantization.static import SCHEMES, QuantizationResult, Target, calibrated_session, quantize_static
from exporters.torch_exporters import GraphSignature, export_torchscript, save_model

LAYERS = 17  #: of WRN-16-2: 16 convolutions and the head


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return export_fashion(teacher(), tmp_path_factory.mktemp("int8") / "fp32.onnx")


@pytest.fixture(scope="module")
def made(source: Path) -> dict[str, tuple[Path, QuantizationResult]]:
    """The teacher for two kinds of targets, calibrated on 64 images."""
    images, _ = fashion_images("train", 64)
    targets: tuple[Target, Target] = ("ort-cpu", "tensorrt")
    paths = {target: source.with_name(f"{target}.onnx") for target in targets}
    return {
        target: (paths[target], quantize_static(source, paths[target], batch_function(images), target=target))
        for target in targets
    }


class Wired:
    """A graph with its nodes by name."""

    def __init__(self, path: Path) -> None:
        self.model: ModelProto = onnx.load(path)
        self.nodes = list(self.model.graph.node)
        self.values = {each.name: numpy_helper.to_array(each) for each in self.model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}

    def kinds(self) -> Counter[str]:
        return Counter(node.op_type for node in self.nodes)

    def of(self, *kinds: str) -> list[NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def source(self, name: str) -> str:
        """Return the operator that produces a tensor."""
        return self.producer[name].op_type if name in self.producer else "constant" if name in self.values else "input"


def optimized_operators(path: Path) -> Counter[str]:
    """Count the operators of the graph that ONNX Runtime optimizes for this CPU."""
    target = path.with_suffix(".optimized")
    session(path, optimized_model_filepath=str(target))
    return Wired(target).kinds()


def small(body: nn.Module, path: Path, shape: tuple[int, ...] = (3, 3, 12, 12), **signature) -> Path:
    torch.manual_seed(0)
    example = torch.zeros(*shape, dtype=torch.uint8) if shape[-1] == 3 else torch.zeros(*shape)
    model = export_torchscript(body.eval(), example, 18, GraphSignature(**signature))
    save_model(model, path)
    return path


def noise(*shape: int, batches: int = 2):
    return lambda: (np.random.default_rng(seed).random(shape, dtype=np.float32) for seed in range(batches))


@pytest.mark.slow
def test_int8_accuracy_on_real_images(source: Path, made) -> None:
    before = accuracy(source)
    assert before > 89
    for path, record in made.values():
        assert accuracy(path) > before - 2
        assert (record.layers, record.kept_fp32, record.images) == (LAYERS, (), 64)


def test_auto_takes_closest_calibrator(source: Path, made) -> None:
    images, _ = fashion_images("train", 64)
    for path, record in made.values():
        assert set(record.calibrator_errors) == {"minmax", "percentile"}
        assert record.calibrator == min(record.calibrator_errors, key=record.calibrator_errors.__getitem__)
        again = ReferenceOutputs(source, batch_function(images), 32).relative_error(path)
        assert again == pytest.approx(record.calibrator_errors[record.calibrator], rel=0.05)


@pytest.mark.parametrize(("target", "largest"), [("ort-cpu", 64), ("tensorrt", 127)])
def test_weights_have_scale_per_channel(made, target, largest) -> None:
    wired, body = Wired(made[target][0]), teacher().body
    # no BatchNorm is folded into these, so their weights are unchanged
    expected = {"/body/fc/Gemm": body.fc.weight, "/body/block1/block1.0/conv2/Conv": body.block1[0].conv2.weight}
    expected["/body/block3/block3.1/conv2/Conv"] = body.block3[1].conv2.weight
    for name, weight in expected.items():
        node = next(node for node in wired.nodes if node.name == name)
        values, scale, zero = (wired.values[each] for each in wired.producer[node.input[1]].input)
        weight = weight.detach().numpy()
        step = np.abs(weight.reshape(len(weight), -1)).max(1) / largest
        np.testing.assert_allclose(scale, step, rtol=1e-6)
        assert (values.dtype, zero.dtype, zero.any()) == (np.int8, np.int8, False)
        rounded = np.rint(weight / step.reshape(-1, *[1] * (weight.ndim - 1)))
        assert np.abs(values.astype(int) - rounded).max() <= 1
        assert (values == rounded).mean() > 0.999


def test_tensorrt_zero_points_and_biases(made) -> None:
    wired = Wired(made["tensorrt"][0])
    for node in wired.of("QuantizeLinear", "DequantizeLinear"):
        zero = wired.values[node.input[2]]
        assert (zero.dtype, zero.any()) == (np.int8, False)
    biased = [node for node in wired.of("Conv", "Gemm") if len(node.input) == 3]
    assert biased
    assert {wired.values[node.input[2]].dtype.name for node in biased} == {"float32"}


def test_tensorrt_quantizes_layer_inputs(made) -> None:
    wired = Wired(made["tensorrt"][0])
    for node in wired.of("Conv", "Gemm"):
        assert [wired.source(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
    for node in wired.of("Add"):
        assert sorted(wired.source(name) for name in node.input) == ["Conv", "DequantizeLinear"]
    rounded_before = {wired.source(node.input[0]) for node in wired.of("QuantizeLinear")}
    assert "Conv" in rounded_before, "the shortcut's convolution is a term of a sum"
    assert wired.kinds()["Relu"] == 13
    readers = Counter(name for node in wired.nodes for name in node.input)
    pairs = [node.output[0] for node in wired.of("DequantizeLinear") if wired.source(node.input[0]) == "QuantizeLinear"]
    assert {readers[name] for name in pairs} == {1}, "each reader has a pair of its own"


def test_onnx_runtime_fuses_int8_kernels(made) -> None:
    kinds = optimized_operators(made["ort-cpu"][0])
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["QGemm"]) == (16, 6, 1)
    assert not {"Conv", "FusedConv", "Gemm", "Add"} & set(kinds)


def test_onnx_runtime_unsigned_activations(made) -> None:
    wired = Wired(made["ort-cpu"][0])
    assert {wired.values[node.input[2]].dtype.name for node in wired.of("QuantizeLinear")} == {"uint8"}
    biases = [wired.producer[node.input[2]].input[0] for node in wired.of("Conv", "Gemm") if len(node.input) == 3]
    assert {wired.values[name].dtype.name for name in biases} == {"int32"}


def test_last_product_output_is_fp32(made) -> None:
    for path, _ in made.values():
        wired = Wired(path)
        assert wired.source(wired.model.graph.output[0].name) == "Gemm"


def test_source_metadata_is_kept(source: Path, made) -> None:
    before = onnx.load(source)
    for target, (path, record) in made.items():
        model = onnx.load(path)
        result = {entry.key: entry.value for entry in model.metadata_props}
        assert result == {
            "task": "classification", "precision": "int8", "int8.target": target, "int8.quantizer": "onnxruntime",
            "int8.calibrator": record.calibrator, "int8.weight_bits": "7" if target == "ort-cpu" else "8",
        }  # fmt: skip
        assert list(model.graph.input) == list(before.graph.input)
        assert [each.name for each in model.graph.output] == [each.name for each in before.graph.output]
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert path.stat().st_size < 0.35 * source.stat().st_size
    assert not list(source.parent.glob("*inferred*"))


def test_every_target_has_scheme() -> None:
    assert set(SCHEMES) == set(get_args(Target))
    assert [target for target, scheme in SCHEMES.items() if scheme.is_signed] == [
        "ort-cuda",
        "tensorrt",
        "tensorrt-rtx",
    ]
    assert [target for target, scheme in SCHEMES.items() if scheme.weight_bits == 7] == ["ort-cpu", "openvino"]


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_any_kept_layers_preserve_network(source: Path, tmp_path: Path, target) -> None:
    """A lost ReLU or a wrong connection would cause an error of tens of percent."""
    images, _ = fashion_images("train", 16)
    rng = np.random.default_rng(0)
    with calibrated_session(source, batch_function(images), target=target, calibrator="minmax") as subject:
        reference = ReferenceOutputs(source, batch_function(images), 16)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            keep = [name for name in subject.layers[1:] if rng.random() < share]
            record = subject.write(tmp_path / "some.onnx", keep)
            assert (record.kept_fp32, record.layers) == (tuple(keep), LAYERS - len(keep))
            assert reference.relative_error(tmp_path / "some.onnx") < 0.05


def test_kept_layer_is_fp32(source: Path, tmp_path: Path) -> None:
    images, _ = fashion_images("train", 8)
    for target in ("ort-cpu", "tensorrt"):
        name = "/body/block2/block2.1/conv1/Conv"
        record = quantize_static(
            source, tmp_path / "a.onnx", batch_function(images), target=target, calibrator="minmax", keep=[name]
        )
        wired = Wired(tmp_path / "a.onnx")
        node = next(node for node in wired.nodes if node.name == name)
        assert (wired.source(node.input[0]), wired.source(node.input[1])) == ("Relu", "constant")
        assert wired.values[node.input[1]].dtype == np.float32
        assert (record.kept_fp32, record.layers) == ((name,), LAYERS - 1)


def test_unknown_kept_layer_suggests_nearest(source: Path, tmp_path: Path) -> None:
    batches = batch_function(fashion_images("train", 4)[0])
    with pytest.raises(ExportError, match=r"/body/fc/Gemm\."):
        quantize_static(source, tmp_path / "a.onnx", batches, calibrator="minmax", keep=["/body/fc/Gem"])
    with (
        calibrated_session(source, batches, target="ort-cpu", calibrator="minmax") as subject,
        pytest.raises(ExportError, match="no layer is left"),
    ):
        subject.write(tmp_path / "a.onnx", subject.layers)
    assert not (tmp_path / "a.onnx").exists()


class Camera(nn.Module):
    """uint8 input, top-k output, and a network of one convolution and one product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 6)
        self.register_buffer("blur", torch.full((12, 12), 1 / 12))

    def forward(self, x):
        x = x.permute(0, 3, 1, 2).float() @ self.blur
        x = torch.clamp(x / 255, 0, 1) * 2 - 1
        x = self.head(nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), 1).flatten(1))
        return x.softmax(1).topk(3)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_pre_and_postprocessing_stay_fp32(tmp_path: Path, target) -> None:
    source = small(Camera(), tmp_path / "a.onnx", (3, 12, 12, 3), outputs=("probabilities", "labels"))
    images = [np.random.default_rng(i).integers(0, 256, (n, 12, 12, 3), np.uint8) for i, n in enumerate((1, 4, 7))]
    record = quantize_static(source, tmp_path / "b.onnx", lambda: images, target=target)
    wired = Wired(tmp_path / "b.onnx")
    assert wired.model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert (record.layers, record.images) == (2, 12)
    first = wired.of("Conv")[0]
    before = first.input[0]
    while wired.source(before) in ("QuantizeLinear", "DequantizeLinear"):
        before = wired.producer[before].input[0]
    kinds = []
    while before in wired.producer:
        kinds.append(wired.source(before))
        before = wired.producer[before].input[0]
    assert kinds[-2:] == ["Cast", "Transpose"] or kinds[-2:] == ["Transpose", "Cast"]
    assert "MatMul" in kinds
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)
    for kind in ("Softmax", "TopK"):
        assert wired.source(wired.of(kind)[0].input[0]) in ("Gemm", "Softmax")
    np.testing.assert_allclose(answers(tmp_path / "b.onnx", images[1]), answers(source, images[1]), atol=0.02)


class Maps(nn.Module):
    """A residual block and two joined branches, resized to the input's size: maps of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.same = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.whole, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        deep = self.down(x).relu()
        deep = (self.same(deep) + deep).relu()
        whole = nn.functional.adaptive_avg_pool2d(deep, 1)
        joined = torch.cat([deep, self.whole(whole).sigmoid() * deep], 1)
        return nn.functional.interpolate(self.head(joined), size=x.shape[2:], mode="bilinear")


def test_dynamic_size_is_preserved(tmp_path: Path) -> None:
    source = small(Maps(), tmp_path / "a.onnx", height=2)
    sizes = ((2, 16, 24), (1, 33, 17), (3, 21, 40))
    batches = [np.random.default_rng(n).random((n, 3, h, w), dtype=np.float32) for n, h, w in sizes]
    for target in ("ort-cpu", "tensorrt"):
        assert quantize_static(source, tmp_path / "b.onnx", lambda: batches, target=target).layers == 4
        for n, h, w in (*sizes, (5, 49, 61)):
            images = np.random.default_rng(h).random((n, 3, h, w), dtype=np.float32)
            right, message = answers(source, images), answers(tmp_path / "b.onnx", images)
            assert right.shape == message.shape == (n, 5, h, w)
            assert np.linalg.norm(right - message) < 0.05 * np.linalg.norm(right)
    shape = onnx.load(tmp_path / "b.onnx").graph.input[0].type.tensor_type.shape
    assert [axis.dim_param or axis.dim_value for axis in shape.dim] == ["batch", 3, "height", "width"]


def test_joins_stay_int8_for_onnx_runtime(tmp_path: Path) -> None:
    source = small(Maps(), tmp_path / "a.onnx")
    quantize_static(source, tmp_path / "b.onnx", noise(2, 3, 12, 12), calibrator="minmax")
    kinds = optimized_operators(tmp_path / "b.onnx")
    assert kinds["QLinearConv"] == 4
    assert kinds["QLinearAdd"] == kinds["QLinearMul"] == kinds["QLinearConcat"] == 1
    assert not {"Conv", "Add", "Mul"} & set(kinds)


class Tokens(nn.Module):
    """Products of a transformer: patches with weights, and activations with activations."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.query, self.key = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        attention = (self.query(x) @ self.key(x).transpose(1, 2) / 4).softmax(-1)
        return self.head(attention @ x).mean(1)


def test_only_weighted_products_are_layers(tmp_path: Path) -> None:
    source = small(Tokens(), tmp_path / "a.onnx")
    for target in ("ort-cpu", "tensorrt"):
        record = quantize_static(source, tmp_path / "b.onnx", noise(4, 3, 12, 12), target=target)
        assert record.layers == 4
        assert min(record.calibrator_errors.values()) < 0.05
        wired = Wired(tmp_path / "b.onnx")
        weighted = [node for node in wired.of("MatMul") if wired.source(node.input[1]) == "DequantizeLinear"]
        weighted = [node for node in weighted if wired.producer[node.input[1]].input[0] in wired.values]
        assert len(weighted) == 3
        assert all(wired.values[wired.producer[node.input[1]].input[1]].shape[0] in (5, 16) for node in weighted)
        if target == "ort-cpu":
            kinds = optimized_operators(tmp_path / "b.onnx")
            assert kinds["QLinearMatMul"] + kinds["MatMulIntegerToFloat"] >= 3
            assert kinds["MatMul"] + kinds["FusedMatMul"] <= 1, "the one that softmax feeds"


def test_unsuitable_sources_raise(source: Path, made, tmp_path: Path) -> None:
    batches, path = noise(1, 3, 32, 32), tmp_path / "b.onnx"
    with pytest.raises(ExportError, match="quantized file"):
        quantize_static(made["ort-cpu"][0], path, batches)
    pooled = small(nn.Sequential(nn.AvgPool2d(4)), tmp_path / "pooled.onnx")
    with pytest.raises(ExportError, match=r"pooled\.onnx"):
        quantize_static(pooled, path, batches)
    old = onnx.version_converter.convert_version(onnx.load(pooled), 18)
    old.opset_import[0].version = 12
    onnx.save(old, tmp_path / "old.onnx")
    with pytest.raises(ExportError, match=r"old\.onnx: found opset 12"):
        quantize_static(tmp_path / "old.onnx", path, batches)
    (tmp_path / "cut.onnx").write_bytes(source.read_bytes()[:1000])
    with pytest.raises(RunnerError, match=r"cut\.onnx"):
        quantize_static(tmp_path / "cut.onnx", path, batches)
    for calibrator in ("auto", "minmax"):
        with pytest.raises(ExportError, match="calibration images"):
            quantize_static(source, path, noise(1, 5, 32, 32), calibrator=calibrator)
        with pytest.raises(ExportError, match="calibration images"):
            quantize_static(source, path, noise(1, 3, 32, 32, batches=0), calibrator=calibrator)
    assert not path.exists()


def test_external_weights_are_merged(source: Path, tmp_path: Path) -> None:
    onnx.save_model(load_unsealed(source), tmp_path / "a.onnx", save_as_external_data=True, location="a.onnx.data")
    (tmp_path / "out").mkdir()
    batches = batch_function(fashion_images("train", 16)[0])
    whole = quantize_static(source, tmp_path / "c.onnx", batches, calibrator="minmax")
    parts = quantize_static(tmp_path / "a.onnx", tmp_path / "out" / "b.onnx", batches, calibrator="minmax")
    assert replace(parts) == replace(whole)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["b.onnx"]
    assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "out" / "b.onnx").read_bytes()


def test_tensorrt_rtx_builds_only_its_scheme(made) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network, foreign = (
        builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)) for _ in range(2)
    )
    assert not trt.OnnxParser(foreign, builder.logger).parse(made["ort-cpu"][0].read_bytes())
    parser = trt.OnnxParser(network, builder.logger)
    assert parser.parse(made["tensorrt"][0].read_bytes()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, 3, 32, 32), (8, 3, 32, 32), (16, 3, 32, 32))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert engine.nbytes > 500_000


def test_openvino_runs_all_layers_int8(source: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    images, _ = fashion_images("train", 32)
    quantize_static(source, tmp_path / "a.onnx", batch_function(images), target="openvino", calibrator="minmax")
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(tmp_path / "a.onnx"), "CPU", hints)
    ran = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    precisions = Counter(
        str(info["runtimePrecision"].value)
        for info in ran
        if str(info["layerType"].value) in ("Convolution", "FullyConnected")
    )
    assert sum(precisions.values()) == LAYERS
    assert set(precisions) <= {"u8", "i8"}
    (message,) = compiled(images).values()
    assert (message.argmax(1) == answers(source, images).argmax(1)).mean() > 0.9
