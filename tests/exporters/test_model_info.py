"""What a file says of itself without a runtime is what its runner says of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import engine_cases as cases
import numpy as np
import onnx
import pytest
from engine_cases import described, engine_of

from exporters.model_info import OnnxModelInfo, EngineModelInfo
from exporters.errors import MissingFileError, RunnerError
from exporters.runtimes.base import Runner
from exporters.loading import load

FACTS = (
    "runtime", "provider", "precision", "input_size", "channels", "batch_size", "batches", "takes_bytes", "classes",
    "labels", "dense", "metadata",
)  # fmt: skip


def facts(runner: Runner) -> dict[str, Any]:
    return {name: getattr(runner, name) for name in FACTS}


@pytest.mark.parametrize("make", [cases.classifier, cases.segmenter, cases.labeller, cases.halved])
def test_an_onnx_file_says_what_its_runner_says(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / "net.onnx")
    with load(path) as runner:
        assert facts(OnnxModelInfo(path)) == facts(runner)


def test_a_fixed_batch_and_the_metadata_are_read(tmp_path: Path) -> None:
    found = OnnxModelInfo(cases.classifier(tmp_path / "net.onnx", batch=4, metadata={"precision": "int8"}))
    assert (found.batch_range, found.precision, found.metadata) == ((4, 4), "int8", {"precision": "int8"})


def test_the_files_of_its_weights_are_named_once_each(tmp_path: Path) -> None:
    path = cases.classifier(tmp_path / "net.onnx")
    assert OnnxModelInfo(path).beside == ()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert OnnxModelInfo(path).beside == (tmp_path / "weights.bin",)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(RunnerError, match="its weights are missing"):
        OnnxModelInfo(path)


def test_what_is_no_network_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        OnnxModelInfo(tmp_path / "nothing.onnx")
    path = cases.save(
        tmp_path / "flat.onnx", [onnx.helper.make_node("Relu", ["images"], ["y"])], [1, 3], {"y": (1, [1, 3])}
    )
    with pytest.raises(RunnerError, match=r"found inputs \[\('images', \[1, 3\]\)\], expected one float input"):
        OnnxModelInfo(path)


def test_it_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="only described"):
        OnnxModelInfo(cases.classifier(tmp_path / "net.onnx"))(np.zeros((1, 3, 8, 10), np.float32))


def test_an_engine_is_described_without_library_and_gpu(tmp_path: Path, monkeypatch) -> None:
    engine, _ = engine_of(cases.shipped(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    found = EngineModelInfo(engine)
    assert (found.runtime, found.provider, found.batch_range, found.input_size) == (
        "tensorrt-rtx",
        "cuda",
        (1, 64),
        (8, 10),
    )
    assert found.metadata["classes"] == "4"
    assert found.beside == (tmp_path / "net.engine.json",)


def test_an_engine_that_brings_code_is_described_only_if_it_is_trusted(tmp_path: Path) -> None:
    engine, _ = engine_of(cases.shipped(tmp_path))
    text = described(engine) | {"options": {"version_compatible": True}}
    engine.with_name("net.engine.json").write_text(json.dumps(text))
    with pytest.raises(RunnerError, match="pass --trust-engine"):
        EngineModelInfo(engine)
    assert EngineModelInfo(engine, trusted=True).runtime == "tensorrt-rtx"
