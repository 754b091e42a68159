"""NVIDIA's Model Optimizer in the place of ONNX Runtime's quantiser."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from garments import exported, garments, in_batches, teacher
from onnx import numpy_helper

from exporters.errors import ExportError
from exporters.onnx_validation import model_metadata
from exporters.quantization import modelopt, static
from exporters.quantization.calibration import ReferenceOutputs
from exporters.tensorrt.build import build_engine
from exporters.tensorrt.options import ShapeRanges

CONVOLUTIONS = 16  #: of WRN-16-2
HEAD = "/body/fc/Gemm"  #: which it leaves alone, as all products as small as that


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return exported(teacher(), tmp_path_factory.mktemp("modelopt") / "fp32.onnx")


@pytest.fixture(scope="module")
def batches():
    return in_batches(garments("train", 64)[0])


@pytest.fixture(scope="module")
def made(source: Path, batches) -> tuple[Path, static.QuantizationResult]:
    path = source.with_name("int8.onnx")
    with modelopt.calibrated_session(source, batches, target="tensorrt-rtx", calibrator="minmax") as subject:
        return path, subject.write(path)


def rounded(path: Path) -> set[str]:
    return static.quantized_layers(onnx.load(path), [node.name for node in onnx.load(path).graph.node])


def test_every_convolution_is_in_int8_and_answers_nearly_as_before(source: Path, made) -> None:
    path, found = made
    assert (found.quantizer, found.layers, found.kept, found.images) == ("modelopt", CONVOLUTIONS, (HEAD,), 64)
    assert found.scheme.startswith("Model Optimizer 0.")
    tests = garments("val", 200)[0]
    assert 0 < ReferenceOutputs(source, lambda: [tests], 200).relative_error(path) < 0.1
    props = model_metadata(onnx.load(path))
    assert props.items() >= {
        "precision": "int8", "int8.quantizer": "modelopt", "int8.target": "tensorrt-rtx"
    }.items()  # fmt: skip
    assert props.items() >= {k: v for k, v in model_metadata(onnx.load(source)).items() if k != "precision"}.items()


def test_zero_is_zero_as_tensorrt_wants_it_and_an_engine_is_built(made, tmp_path: Path) -> None:
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


def test_the_calibrator_taken_is_the_one_that_came_closest(source: Path, batches, tmp_path: Path) -> None:
    with modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="auto") as subject:
        found = subject.write(tmp_path / "a.onnx")
    assert set(found.calibrator_errors) == {"entropy", "minmax"}
    assert found.calibrator == min(found.calibrator_errors, key=found.calibrator_errors.__getitem__)
    near = ReferenceOutputs(source, batches, 32).relative_error(tmp_path / "a.onnx")
    assert near == pytest.approx(found.calibrator_errors[found.calibrator], rel=1e-3)


def test_a_layer_that_is_to_be_kept_stays_in_fp32(source: Path, batches, tmp_path: Path) -> None:
    with modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="minmax") as subject:
        name = subject.layers[3]
        found = subject.write(tmp_path / "a.onnx", [name])
    assert found.kept_fp32 == (name, HEAD)
    assert rounded(tmp_path / "a.onnx") == set(subject.layers) - {name, HEAD}


@pytest.mark.parametrize(
    ("target", "calibrator", "said"),
    [
        ("ort-cpu", "auto", "not for ort-cpu; expected one of tensorrt, tensorrt-rtx, ort-cuda"),
        ("tensorrt", "percentile", "no calibrator percentile; expected one of auto, entropy, minmax"),
    ],
)
def test_what_it_has_not_is_refused(source: Path, batches, target, calibrator, said) -> None:
    with (
        pytest.raises(ExportError, match=said),
        modelopt.calibrated_session(source, batches, target=target, calibrator=calibrator),
    ):
        pass


def test_without_it_the_sentence_says_what_to_install(source: Path, batches, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ExportError, match=r'^NVIDIA Model Optimizer is not installed; .*"compress\[modelopt\]"\.$'),
        modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="auto"),
    ):
        pass


def test_what_it_fails_with_is_one_sentence(source: Path, batches, tmp_path: Path) -> None:
    with modelopt.calibrated_session(source, batches, target="tensorrt", calibrator="minmax") as subject:
        subject.preprocessed.write_bytes(b"no network")
        with pytest.raises(ExportError, match=r"^fp32\.onnx: Model Optimizer failed: .*") as caught:
            subject.write(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.onnx").exists()


def test_onnx_runtimes_quantiser_is_as_before_afterwards(made, source: Path, batches, tmp_path: Path) -> None:
    """Model Optimizer replaces parts of it where it is imported."""
    found = static.quantize_static(source, tmp_path / "a.onnx", batches, target="tensorrt", calibrator="minmax")
    assert found.layers == CONVOLUTIONS + 1
