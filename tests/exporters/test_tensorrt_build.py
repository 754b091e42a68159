"""Builds of engines: TensorRT-RTX for real, TensorRT by the same library under its name."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_files as cases
import onnx
import pytest
import tensorrt_rtx
import torch
from engine_files import SHAPES, engine_of, read_json
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from compress.errors import UsageError
from exporters.cuda import Gpu
from exporters.errors import ExportError, MissingFileError, RuntimeUnavailableError
from exporters.onnx_export import export_onnx
from exporters.pre_post import Preprocessing
from exporters.tensorrt.build import EngineBuildResult, build_engine
from exporters.tensorrt.libraries import capture_messages
from exporters.tensorrt.options import BuildOptions, ShapeRanges


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return cases.classifier_with_metadata(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(source: Path) -> tuple[Path, EngineBuildResult]:
    return engine_of(source)


def test_build_writes_metadata(source: Path, made) -> None:
    engine, built = made
    result = read_json(engine)
    content = engine.read_bytes()
    assert built.bytes == len(content) > 1000
    assert result["sha256"] == built.sha256 == hashlib.sha256(content).hexdigest()
    assert result["source"] == {"name": "net.onnx", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert (result["format"], result["kind"], result["version"]) == (2, "tensorrt-rtx", tensorrt_rtx.__version__)
    assert result["profiles"] == [{"min": [1, 3, 8, 10], "opt": [8, 3, 8, 10], "max": [64, 3, 8, 10]}]
    assert result["inputs"] == {"images": {"shape": ["batch", 3, 8, 10], "type": "float32"}}
    assert result["outputs"] == {"logits": {"shape": ["batch", 4], "type": "float32"}}
    assert result["metadata"] == {"classes": "4", "precision": "fp32"}
    assert result["compute_capabilities"] == ["8.0+"]
    assert result["precision"] == built.precision == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_build_reports_missing_gpu(made) -> None:
    _, built = made
    assert "NVIDIA GPU" in str(built.incompatibility)
    assert read_json(made[0])["gpu"] is built.gpu is None


def test_precision_inferred_from_graph(tmp_path: Path) -> None:
    _, built = engine_of(cases.halved(tmp_path / "half.onnx"))
    assert built.precision == "fp16"


def test_build_int8_graph(source: Path, tmp_path: Path) -> None:
    class Noise(CalibrationDataReader):
        batches = iter([{"images": cases.noise(2, 3, *cases.SIZE)}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantized = tmp_path / "int8.onnx"
    quantize_static(
        source,
        quantized,
        Noise(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True},
    )
    model = onnx.load(quantized)
    del model.metadata_props[:]
    onnx.save(model, quantized)
    _, built = engine_of(quantized)
    assert built.precision == "int8"


def test_build_range_of_sizes(tmp_path: Path) -> None:
    engine, built = engine_of(
        cases.segmenter(tmp_path / "maps.onnx"), ShapeRanges((1, 2, 4), ((8, 9), (16, 17), (32, 48)))
    )
    assert built.profile.min == (1, 3, 8, 9)
    assert built.profile.opt == (2, 3, 16, 17)
    assert built.profile.max == (4, 3, 32, 48)
    assert read_json(engine)["outputs"]["logits"]["shape"] == ["batch", 4, "height", "width"]


def test_build_uint8_input_and_labels(tmp_path: Path) -> None:
    engine, built = engine_of(cases.labeller(tmp_path / "labels.onnx"), ShapeRanges((1, 2, 4), (12, 16)))
    assert built.profile.max == (4, 12, 16, 3)
    assert read_json(engine)["inputs"]["images"] == {"shape": ["batch", "height", "width", 3], "type": "uint8"}
    assert read_json(engine)["outputs"]["labels"]["type"] == "uint8"


def test_build_fixed_shape(tmp_path: Path) -> None:
    _, built = engine_of(cases.classifier(tmp_path / "fixed.onnx", batch=2), ShapeRanges((2, 2, 2), cases.SIZE))
    assert built.profile.min == built.profile.max == (2, 3, 8, 10)


def test_build_is_deterministic(source: Path, made, tmp_path: Path) -> None:
    again = build_engine(source, tmp_path / "again.engine", kind="tensorrt-rtx", shapes=SHAPES)
    assert again.sha256 == made[1].sha256


def test_build_for_compute_capabilities(source: Path, made, tmp_path: Path) -> None:
    capabilities = ("7.5", "8.0", "8.6", "8.9", "12.0")
    options = BuildOptions(compute_capabilities=capabilities)
    built = build_engine(source, tmp_path / "all.engine", kind="tensorrt-rtx", shapes=SHAPES, options=options)
    assert (
        built.compute_capabilities == tuple(read_json(tmp_path / "all.engine")["compute_capabilities"]) == capabilities
    )
    assert built.bytes > made[1].bytes  # Turing needs separate code


def test_tf32_changes_engine(source: Path, made, tmp_path: Path) -> None:
    options = BuildOptions(tf32=True)
    other = build_engine(source, tmp_path / "other.engine", kind="tensorrt-rtx", shapes=SHAPES, options=options)
    assert other.sha256 != made[1].sha256


def test_workspace_too_small(source: Path, tmp_path: Path) -> None:
    draft = tmp_path / "small.engine"
    with pytest.raises(ExportError, match="workspace"):
        build_engine(source, draft, kind="tensorrt-rtx", shapes=SHAPES, options=BuildOptions(workspace_bytes=1 << 20))
    assert list(tmp_path.iterdir()) == []


def test_parser_errors_name_operators(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Wibble", ["images"], ["a"], name="first", domain="acme"),
        helper.make_node("Unique", ["a"], ["b"], name="second"),
        helper.make_node("Wobble", ["b"], ["y"], name="third", domain="acme"),
    ]
    answers: dict[str, Any] = {"y": (TensorProto.FLOAT, ["n"])}
    path = cases.save(tmp_path / "odd.onnx", nodes, ["n", 3, 8, 8], answers)
    with pytest.raises(ExportError, match=r"odd\.onnx") as caught:
        engine_of(path)
    text = str(caught.value)
    for operator, name in (("Wibble", "first"), ("Unique", "second"), ("Wobble", "third")):
        assert f'{operator} (node {("first", "second", "third").index(name)} "{name}")' in text
    assert not path.with_suffix(".engine").exists()


def test_parser_error_names_type(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["images"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    answers: dict[str, Any] = {"y": (TensorProto.FLOAT, ["n", 3, 8, 8])}
    path = cases.save(tmp_path / "bytes.onnx", nodes, ["n", 8, 8, 3], answers, kind=TensorProto.UINT8)
    with pytest.raises(ExportError, match=r"Transpose \(node 0\).*type UInt8"):
        engine_of(path)


def test_source_without_images(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["images"], ["y"])]
    answers: dict[str, Any] = {"y": (TensorProto.FLOAT, ["n", 4])}
    with pytest.raises(ExportError, match="expected one, float32"):
        engine_of(cases.save(tmp_path / "vector.onnx", nodes, ["n", 4], answers))


@pytest.mark.parametrize("length", [0, 30, -20])
def test_source_damaged(source: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(source.read_bytes()[:length])
    with pytest.raises(ExportError, match=r"damaged\.onnx: "):
        engine_of(path)


def test_source_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.onnx: no such file"):
        engine_of(tmp_path / "nothing.onnx")


def test_external_weights_are_read(source: Path, made, tmp_path: Path) -> None:
    model = onnx.load(source)
    path = tmp_path / "apart.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="apart.data", size_threshold=0)
    assert (tmp_path / "apart.data").stat().st_size >= 432
    assert abs(engine_of(path)[1].bytes - made[1].bytes) < 1000


@pytest.mark.parametrize(("location", "datum"), [("../w.bin", r"\.\./w\.bin"), ("w.bin", r"w\.bin")])
def test_external_weights_outside_or_missing(tmp_path: Path, location: str, datum: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(432))
    (tmp_path / "in").mkdir()
    path = cases.classifier(tmp_path / "in" / "far.onnx")
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weights, location, offset=0, length=432)
    weights.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=datum):
        engine_of(path)


@pytest.mark.parametrize(
    ("option", "datum"),
    [
        ({"timing_cache": Path("cache")}, "timing_cache: TensorRT-RTX"),
        ({"version_compatible": True}, "version_compatible: TensorRT-RTX"),
        ({"hardware_compatible": "ampere+"}, "hardware_compatible: TensorRT-RTX"),
        ({"optimization_level": 3}, "optimization_level: TensorRT-RTX"),
        ({"workspace_bytes": 0}, "workspace_bytes: found 0"),
        ({"compute_capabilities": ("9.9",)}, r"compute_capabilities: found '9\.9'"),
        ({"compute_capabilities": ("8.0", "8.0")}, "compute_capabilities: found 8.0, 8.0"),
        ({"compute_capabilities": ("8.0", "current")}, "current"),
    ],
)
def test_unsupported_options(source: Path, option, datum: str) -> None:
    with pytest.raises(ExportError, match=datum):
        engine_of(source, **option)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_build_needs_gpu(source: Path, monkeypatch) -> None:
    with pytest.raises(ExportError, match=r'"current".*NVIDIA GPU'):
        engine_of(source, compute_capabilities=("current",))
    cases.install(monkeypatch, cases.fake_tensorrt("10.13.3.9"))
    with pytest.raises(ExportError, match=r"TensorRT.*NVIDIA GPU"):
        engine_of(source, kind="tensorrt")


def test_library_missing(source: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install tensorrt"):
        engine_of(source, kind="tensorrt")


@pytest.mark.parametrize("code", ["raise OSError('libnvinfer.so.10: cannot open')", "import no_such_part", "x = 1"])
def test_library_does_not_load(source: Path, tmp_path: Path, monkeypatch, code: str) -> None:
    (tmp_path / "tensorrt.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(RuntimeUnavailableError, match="pip install"):
        engine_of(source, kind="tensorrt")


@pytest.fixture
def gpu(monkeypatch) -> None:
    cases.plug_in(monkeypatch)


@pytest.mark.usefixtures("gpu")
def test_tensorrt_10_is_strongly_typed(source: Path, tmp_path: Path, monkeypatch) -> None:
    trt: Any = cases.install(monkeypatch, cases.fake_tensorrt("10.13.3.9"))
    engine = tmp_path / "a10.engine"
    built = build_engine(source, engine, kind="tensorrt", shapes=SHAPES)
    assert trt.recorded.network == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert (built.kind, built.version, built.gpu) == ("tensorrt", "10.13.3.9", Gpu("NVIDIA A10", "8.6"))
    assert built.compute_capabilities == ("8.6",)
    assert built.incompatibility is None
    assert read_json(engine)["gpu"] == {"name": "NVIDIA A10", "capability": "8.6"}
    assert not trt.recorded.config.real.get_flag(trt.BuilderFlag.TF32)


@pytest.mark.usefixtures("gpu")
def test_tensorrt_11_has_no_flag(source: Path, tmp_path: Path, monkeypatch) -> None:
    flags = SimpleNamespace(__members__={})
    trt: Any = cases.install(monkeypatch, cases.fake_tensorrt("11.4.1.2", NetworkDefinitionCreationFlag=flags))
    build_engine(source, tmp_path / "a10.engine", kind="tensorrt", shapes=SHAPES)
    assert trt.recorded.network == 0


@pytest.mark.usefixtures("gpu")
def test_options_reach_tensorrt(source: Path, tmp_path: Path, monkeypatch) -> None:
    trt: Any = cases.install(monkeypatch, cases.fake_tensorrt("10.13.3.9"))
    engine = tmp_path / "a10.engine"
    options = BuildOptions(
        workspace_bytes=1 << 28,
        version_compatible=True,
        hardware_compatible="ampere+",
        optimization_level=5,
        tf32=True,
    )
    built = build_engine(source, engine, kind="tensorrt", shapes=SHAPES, options=options)
    config = trt.recorded.config
    assert config.flags == ["VERSION_COMPATIBLE"]
    assert config.recorded_options == {
        "builder_optimization_level": 5,
        "hardware_compatibility_level": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }
    assert config.real.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 28
    assert config.real.get_flag(trt.BuilderFlag.TF32)
    assert built.compute_capabilities == ("8.0+",)
    assert read_json(engine)["options"]["hardware_compatible"] == "ampere+"


@pytest.mark.usefixtures("gpu")
def test_old_tensorrt_lacks_options(source: Path, monkeypatch) -> None:
    levels = SimpleNamespace(AMPERE_PLUS=1)
    cases.install(monkeypatch, cases.fake_tensorrt("10.0.1.6", HardwareCompatibilityLevel=levels))
    with pytest.raises(ExportError, match=r"hardware_compatible: TensorRT 10\.0\.1\.6 has no"):
        engine_of(source, kind="tensorrt", hardware_compatible="same-capability")
    with pytest.raises(ExportError, match="compute_capabilities: TensorRT"):
        engine_of(source, kind="tensorrt", compute_capabilities=("8.0",))
    with pytest.raises(ExportError, match="optimization_level: found 6, expected 0 to 5"):
        engine_of(source, kind="tensorrt", optimization_level=6)
    cases.install(monkeypatch, cases.fake_tensorrt("8.6.1"))
    with pytest.raises(RuntimeUnavailableError, match=r"8\.6\.1"):
        engine_of(source, kind="tensorrt")


@pytest.mark.usefixtures("gpu")
def test_timing_cache_new_read_replaced(source: Path, tmp_path: Path, monkeypatch) -> None:
    trt: Any = cases.install(monkeypatch, cases.fake_tensorrt("10.13.3.9"))
    cache = tmp_path / "caches" / "timing.cache"

    def again() -> EngineBuildResult:
        options = BuildOptions(timing_cache=cache)
        return build_engine(source, tmp_path / "a10.engine", kind="tensorrt", shapes=SHAPES, options=options)

    assert again().timing_cache == "new"
    assert cache.read_bytes() == b"timed"
    assert again().timing_cache == "read"
    assert trt.recorded.config.get_timing_cache().content == b"timed"
    cache.write_bytes(b"of another version")
    built = again()
    assert built.timing_cache is not None
    assert built.timing_cache.startswith("replaced: ")
    assert "the cache is of another version" in built.timing_cache
    assert built.warnings == ()
    assert cache.read_bytes() == b"timed"
    assert [part.name for part in cache.parent.iterdir()] == ["timing.cache"]
    assert read_json(tmp_path / "a10.engine")["options"]["timing_cache"] == "timing.cache"
    cache.unlink()
    os.mkfifo(cache)
    with pytest.raises(UsageError):
        again()


def test_build_reports_warnings(tmp_path: Path) -> None:
    nodes = [helper.make_node("ArgMax", ["images"], ["y"], axis=1, keepdims=0)]
    answers: dict[str, Any] = {"y": (TensorProto.INT64, ["n", 8, 8])}
    _, built = engine_of(cases.save(tmp_path / "wide.onnx", nodes, ["n", 3, 8, 8], answers))
    assert any("Int64" in warning for warning in built.warnings)


def test_errors_captured_while_builder_lives(source: Path, tmp_path: Path) -> None:
    """The library keeps its first logger while any of its objects lives."""
    with capture_messages(tensorrt_rtx) as (logger, _):
        alive = tensorrt_rtx.Builder(logger)
    with pytest.raises(ExportError, match="workspace"):
        engine_of(source, workspace_bytes=1 << 20)
    assert alive.num_DLA_cores == 0


@pytest.mark.slow
def test_build_export_with_preprocessing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    path = tmp_path / "whole.onnx"
    export_onnx(network, torch.zeros(1, 3, 16, 16), path, preprocessing=Preprocessing((16, 16)), postprocess="topk")
    engine, built = engine_of(path, ShapeRanges((1, 2, 4), ((8, 9), (20, 20), (64, 48))))
    assert built.profile.max == (4, 64, 48, 3)
    assert list(read_json(engine)["outputs"]) == ["labels", "probabilities"]
