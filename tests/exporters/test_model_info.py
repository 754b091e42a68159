"""Inputs and outputs read from a file without a runtime equal those of its runner."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import engine_files as cases
import onnx
import pytest
from engine_files import engine_of, read_json

from exporters.errors import MissingFileError, RunnerError
from exporters.loading import load
from exporters.model_info import OnnxModelInfo, read_model_info
from exporters.runtimes import ModelInfo

FIELDS = (
    "runtime", "provider", "precision", "input_size", "channels", "batch_size", "batch_range", "expects_uint8",
    "classes", "returns_labels", "predicts_maps", "metadata",
)  # fmt: skip


def fields(info: ModelInfo) -> dict[str, Any]:
    return {name: getattr(info, name) for name in FIELDS}


@pytest.mark.parametrize("make", [cases.classifier, cases.segmenter, cases.labeller, cases.halved])
def test_onnx_info_equals_runner(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "net.onnx")
    with load(path) as runner:
        assert fields(OnnxModelInfo(path)) == fields(runner)


def test_onnx_info_fixed_batch(tmp_path: Path) -> None:
    info = OnnxModelInfo(cases.classifier(tmp_path / "net.onnx", batch=4, metadata={"precision": "int8"}))
    assert (info.batch_range, info.precision, info.metadata) == ((4, 4), "int8", {"precision": "int8"})


def test_onnx_info_names_weight_files(tmp_path: Path) -> None:
    path = cases.classifier(tmp_path / "net.onnx")
    assert OnnxModelInfo(path).companion_files == ()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert OnnxModelInfo(path).companion_files == (tmp_path / "weights.bin",)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(RunnerError, match=r"weights\.bin"):
        OnnxModelInfo(path)


def test_onnx_info_without_images(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_model_info(tmp_path / "nothing.onnx")
    relu = onnx.helper.make_node("Relu", ["images"], ["y"])
    path = cases.save(tmp_path / "flat.onnx", [relu], [1, 3], {"y": (1, [1, 3])})
    with pytest.raises(RunnerError, match=r"\('images', \[1, 3\]\)"):
        read_model_info(path)


def test_engine_info_needs_no_library(tmp_path: Path, monkeypatch) -> None:
    engine, _ = engine_of(cases.classifier_with_metadata(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    info = read_model_info(engine)
    assert (info.runtime, info.provider) == ("tensorrt-rtx", "cuda")
    assert (info.batch_range, info.input_size, info.metadata["classes"]) == ((1, 64), (8, 10), "4")
    assert info.companion_files == (tmp_path / "net.engine.json",)


def test_engine_info_needs_trust(tmp_path: Path) -> None:
    engine, _ = engine_of(cases.classifier_with_metadata(tmp_path))
    metadata = read_json(engine) | {"options": {"version_compatible": True}}
    engine.with_name("net.engine.json").write_text(json.dumps(metadata))
    with pytest.raises(RunnerError, match="--trust-engine"):
        read_model_info(engine)
    assert read_model_info(engine, trust_engine=True).runtime == "tensorrt-rtx"
