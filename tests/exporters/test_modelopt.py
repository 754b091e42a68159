"""int8 by NVIDIA's Model Optimizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from fashion_teacher import batch_function, export_fashion, fashion_images, teacher
from onnx import numpy_helper

from exporters.errors import ExportError
from exporters.onnx_validation import model_metadata
from exporters.quantization import modelopt, static
from exporters.quantization.calibration import ReferenceOutputs
from exporters.seal import KEY as SEAL
from exporters.tensorrt.build import build_engine
from exporters.tensorrt.options import ShapeRanges

CONVOLUTIONS = 16  #: of WRN-16-2
HEAD = "/body/fc/Gemm"  #: which it leaves alone, as all products as small as that


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return export_fashion(teacher(), tmp_path_factory.mktemp("modelopt") / "fp32.onnx")


@pytest.fixture(scope="module")
def batches():
    return batch_function(fashion_images("train", 64)[0])


@pytest.fixture(scope="module")
def made(source: Path, batches) -> tuple[Path, static.QuantizationResult]:
    path = source.with_name("int8.onnx")
    with modelopt.calibrated_session(source, batches, target="tensorrt-rtx", calibrator="minmax") as session:
        return path, session.write(path)


def rounded(path: Path) -> set[str]:
    return static.quantized_layers(onnx.load(path), [node.name for node in onnx.load(path).graph.node])


@pytest.mark.slow
def test_modelopt_quantizes_every_convolution(source: Path, made) -> None:
    path, result = made
    assert (result.quantizer, result.layers, result.kept_fp32, result.images) == ("modelopt", CONVOLUTIONS, (HEAD,), 64)
    assert result.scheme.startswith("Model Optimizer 0.")
    tests = fashion_images("val", 200)[0]
    assert 0 < ReferenceOutputs(source, lambda: [tests], 200).relative_error(path) < 0.1
    props = model_metadata(onnx.load(path))
    assert props.items() >= {
        "precision": "int8", "int8.quantizer": "modelopt", "int8.target": "tensorrt-rtx"
    }.items()  # fmt: skip
    own = model_metadata(onnx.load(source)).items()
    assert props.items() >= {k: v for k, v in own if k not in ("precision", SEAL)}.items()


def test_modelopt_graph_builds_engine(made, tmp_path: Path) -> None:
    path, _ = made
    model = onnx.load(path)
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        values |= {node.output[0]: numpy_helper.to_array(node.attribute[0].t)} if node.op_type == "Constant" else {}
    zeros = [values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    build_engine(path, tmp_path / "a.engine", kind="tensorrt-rtx", shapes=ShapeRanges((1, 1, 4)))
    assert (tmp_path / "a.engine").stat().st_size > 0


@pytest.mark.slow
def test_modelopt_auto_takes_closest_calibrator(source: Path, batches, tmp_path: Path) -> None:
    with modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="auto") as session:
        result = session.write(tmp_path / "a.onnx")
    assert set(result.calibrator_errors) == {"entropy", "minmax"}
    assert result.calibrator == min(result.calibrator_errors, key=result.calibrator_errors.__getitem__)
    near = ReferenceOutputs(source, batches, 32).relative_error(tmp_path / "a.onnx")
    assert near == pytest.approx(result.calibrator_errors[result.calibrator], rel=1e-3)


@pytest.mark.slow
def test_modelopt_keeps_layer_in_fp32(source: Path, batches, tmp_path: Path) -> None:
    with modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="minmax") as session:
        name = session.layers[3]
        result = session.write(tmp_path / "a.onnx", [name])
    assert result.kept_fp32 == (name, HEAD)
    assert rounded(tmp_path / "a.onnx") == set(session.layers) - {name, HEAD}


@pytest.mark.parametrize(
    ("target", "calibrator", "message"),
    [
        ("ort-cpu", "auto", "found target ort-cpu"),
        ("tensorrt", "percentile", "found calibrator percentile"),
    ],
)
def test_modelopt_unsupported_target_or_calibrator(source: Path, batches, target, calibrator, message) -> None:
    with (
        pytest.raises(ExportError, match=message),
        modelopt.calibrated_session(source, batches, target=target, calibrator=calibrator),
    ):
        pass


def test_modelopt_missing(source: Path, batches, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ExportError, match=r"\[modelopt\]"),
        modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="auto"),
    ):
        pass


@pytest.mark.slow
def test_modelopt_failure_names_reason(source: Path, batches, tmp_path: Path) -> None:
    with modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="minmax") as session:
        session.preprocessed.write_bytes(b"no network")
        with pytest.raises(ExportError, match=r"^fp32\.onnx: Model Optimizer failed: .*") as caught:
            session.write(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.onnx").exists()


def test_modelopt_leaves_onnx_runtime_unpatched(made, source: Path, batches, tmp_path: Path) -> None:
    """Model Optimizer patches ONNX Runtime's quantizer on import."""
    result = static.quantize_static(source, tmp_path / "a.onnx", batches, target="tensorrt", calibrator="minmax")
    assert result.layers == CONVOLUTIONS + 1
