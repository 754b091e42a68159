"""Exported files end with a hash of themselves; files of other software are accepted without."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_files import small, written

from benchmarks.reliability.damaged import DAMAGES, damage_file
from exporters.errors import RunnerError
from exporters.onnx_validation import read_model, seal_model
from exporters.runtimes.onnxruntime import OnnxRuntimeRunner
from exporters.seal import KEY, check_seal, seal_file
from exporters.torch_exporters import save_model


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = written(tmp_path / "net.onnx", small(metadata={"classes": "4"}))
    seal_model(path)
    return path


def test_sealed_file_is_the_same_model(sealed: Path) -> None:
    plain = written(sealed.parent / "plain.onnx", small(metadata={"classes": "4"}))
    images = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    read_model(plain)
    with OnnxRuntimeRunner(sealed) as one, OnnxRuntimeRunner(plain) as other:
        assert np.array_equal(one(images), other(images))
    assert read_model(sealed).metadata_props[-1].key == KEY


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_file_is_refused(sealed: Path, kind: str) -> None:
    content, rng = sealed.read_bytes(), random.Random(0)
    whole = onnx.load(sealed)
    for _ in range(60):
        sealed.write_bytes(damage_file(content, kind, rng))
        try:
            model = read_model(sealed)
        except RunnerError:
            continue
        # only the end is missing, or the key of the hash has changed
        assert model.graph == whole.graph
        assert {entry.key for entry in model.metadata_props} >= {"classes"}


def test_weights_in_another_file_are_sealed(tmp_path: Path) -> None:
    weights = small().graph.initializer[0].raw_data
    (tmp_path / "weights.bin").write_bytes(weights)
    path = written(
        tmp_path / "net.onnx", small(outside={"location": "weights.bin", "offset": 0, "length": len(weights)})
    )
    seal_model(path)
    read_model(path)
    (tmp_path / "weights.bin").write_bytes(bytes([*weights[:-1], weights[-1] ^ 1]))
    with pytest.raises(RunnerError, match="sha256"):
        read_model(path)


def test_model_that_is_saved_again_is_sealed_once(sealed: Path) -> None:
    again = sealed.parent / "again.onnx"
    save_model(onnx.load(sealed), again)
    read_model(again)
    seal_model(again)
    assert [entry.key for entry in read_model(again).metadata_props].count(KEY) == 1


def test_edited_model_is_refused_until_the_key_is_removed(sealed: Path) -> None:
    model = onnx.load(sealed)
    model.graph.name = "edited"
    onnx.save(model, sealed)
    with pytest.raises(RunnerError, match=KEY):
        read_model(sealed)
    model.metadata_props.pop()
    onnx.save(model, sealed)
    read_model(sealed)


def test_xml_file_is_sealed_with_its_weights(tmp_path: Path) -> None:
    path, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    path.write_text('<net version="11"></net>\n')
    weights.write_bytes(bytes(100))
    check_seal(path, [weights])
    seal_file(path, [weights])
    check_seal(path, [weights])
    for file in (path, weights):
        content = file.read_bytes()
        for at in range(0, len(content), 7):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(RunnerError, match="sha256"):
                check_seal(path, [weights])
        file.write_bytes(content)
