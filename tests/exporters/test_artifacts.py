"""One exported file: verification, rejection with the divergent operator, accuracy budget."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters import artifacts
from exporters.artifacts import AccuracyBudget, ExportSettings, Int8Options, export_artifact
from exporters.errors import ExportError, RejectedError
from exporters.loading import load
from exporters.onnx_export import ReferenceModel, create_reference, write_onnx
from exporters.parity import TOLERANCES
from exporters.tensorrt.options import ShapeRanges

IMAGES = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SHAPES = ShapeRanges((1, 2, 8))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return create_reference(net(), IMAGES[:1], images=IMAGES)


@pytest.fixture(scope="module")
def base(reference, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "model.onnx"
    write_onnx(reference, path, metadata={"precision": "fp32", "classes": "4"})
    return path


def batches() -> Iterator[np.ndarray]:
    yield from IMAGES.numpy().reshape(3, 4, 3, 16, 16)


INT8 = Int8Options(batches, calibrator="minmax")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("format", ["onnx", "openvino", "tensorrt-rtx"])
def test_artifact_names_verifying_runtime(reference, base, tmp_path, format, precision) -> None:
    path = tmp_path / f"net{artifacts.SUFFIXES[format]}"
    result = export_artifact(reference, base, path, format, precision, ExportSettings(int8=INT8, shapes=SHAPES))
    assert (result.format, result.precision, result.path) == (format, precision, str(path))
    assert result.bytes == sum(part.stat().st_size for part in tmp_path.iterdir())
    assert result.parity.images == len(IMAGES)
    assert result.parity.top1_agreement >= 0.9
    runs = format != "tensorrt-rtx" and (format, precision) != ("onnx", "bf16")
    assert (result.unverified is None) == (runs or torch.cuda.is_available())
    if runs:
        with load(path) as runner:
            assert (runner.precision == precision) == ("computing in" not in result.verified_in)
            assert runner.metadata["classes"] == "4"


def test_divergent_artifact_names_operator(reference, base, tmp_path, monkeypatch) -> None:
    right = artifacts.convert_float16

    def damaged_index(origin: Path, draft: Path, precision, **more):
        result = right(origin, draft, precision, **more)
        model = onnx.load(draft)
        second = [node for node in model.graph.node if node.op_type == "Conv"][1]
        (weight,) = [one for one in model.graph.initializer if one.name == second.input[1]]
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float16(-1), weight.name))
        onnx.save(model, draft)
        return result

    monkeypatch.setattr(artifacts, "convert_float16", damaged_index)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"what was there")
    with pytest.raises(ExportError, match=r"net\.onnx: fp16 rejected: .*\(Conv\)") as error:
        export_artifact(reference, base, path, "onnx", "fp16")
    assert error.value.exit_code == 1
    assert path.read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_rejected_artifact_leaves_nothing(reference, base, tmp_path) -> None:
    def slower(fp32: Path, draft: Path, runtime: str) -> None:
        assert fp32 == base
        assert (draft.name, runtime) == ("net.onnx", "onnxruntime")
        raise RejectedError("slower: 2.00 ms an image, fp32 1.00 ms")

    wish = replace(INT8, accept=slower)
    with pytest.raises(ExportError, match=r"net\.onnx: int8 rejected: slower"):
        export_artifact(reference, base, tmp_path / "net.onnx", "onnx", "int8", ExportSettings(int8=wish))
    assert os.listdir(tmp_path) == []
    # no test for another target: the speed of this machine does not matter
    export_artifact(
        reference, base, tmp_path / "net.onnx", "onnx", "int8", ExportSettings(int8=replace(wish, target="tensorrt"))
    )
    export_artifact(reference, base, tmp_path / "net32.onnx", "onnx", "fp32", ExportSettings(int8=wish))


def test_int8_needs_calibration_and_tolerance(reference, base, tmp_path) -> None:
    with pytest.raises(ExportError, match="--calibration"):
        export_artifact(reference, base, tmp_path / "net.onnx", "onnx", "int8")
    strict = {**TOLERANCES, "int8": replace(TOLERANCES["int8"], max_rel=1e-6)}
    with pytest.raises(ExportError, match=r"int8 rejected: .*1\.0e-06"):
        export_artifact(
            reference, base, tmp_path / "net.onnx", "onnx", "int8", ExportSettings(tolerances=strict, int8=INT8)
        )
    assert os.listdir(tmp_path) == []


def test_budget_uses_given_score(reference, base, tmp_path) -> None:
    calls = []

    def score(runner) -> float:
        calls.append(runner.precision)
        return 1.0 if runner.precision == "fp32" else 0.97

    result = export_artifact(
        reference,
        base,
        tmp_path / "net.onnx",
        "onnx",
        "int8",
        ExportSettings(int8=INT8, budget=AccuracyBudget(0.05, score)),
    )
    assert calls[:2] == ["fp32", "int8"]
    assert result.details["int8"]
    with pytest.raises(ExportError, match="rejected"):
        export_artifact(
            reference,
            base,
            tmp_path / "b.onnx",
            "onnx",
            "int8",
            ExportSettings(int8=INT8, budget=AccuracyBudget(0.01, score)),
        )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_float16_budget_meets_tolerance(reference, base, tmp_path, precision) -> None:
    whole = export_artifact(reference, base, tmp_path / "whole.onnx", "onnx", precision)
    assert whole.parity.max_rel is not None
    strict = {**TOLERANCES, precision: replace(TOLERANCES[precision], max_rel=0.7 * whole.parity.max_rel)}
    settings = ExportSettings(tolerances=strict)
    with pytest.raises(ExportError, match=f"{precision} rejected"):
        export_artifact(reference, base, tmp_path / "net.onnx", "onnx", precision, settings)
    result = export_artifact(
        reference, base, tmp_path / "net.onnx", "onnx", precision, replace(settings, budget=AccuracyBudget(0.05))
    )
    assert result.parity.max_rel is not None
    assert result.parity.max_rel <= 0.7 * whole.parity.max_rel
    details = result.details[precision]
    assert len(details["kept_fp32"]) > 0
    low = [node.name for node in onnx.load(tmp_path / "net.onnx").graph.node if low_layer(node, precision)]
    assert len(low) + len(details["kept_fp32"]) == len(details["sensitivity"])
    assert not {*low} & {*details["kept_fp32"]}
    hopeless = {**TOLERANCES, precision: replace(TOLERANCES[precision], max_rel=1e-9)}
    settings = ExportSettings(tolerances=hopeless, budget=AccuracyBudget(0.05))
    with pytest.raises(ExportError, match=f"rejected: accuracy: found {precision}"):
        export_artifact(reference, base, tmp_path / "b.onnx", "onnx", precision, settings)
    assert not (tmp_path / "b.onnx").exists()


def low_layer(node: onnx.NodeProto, precision: str) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1].endswith(f"_{precision}")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_divergent_openvino_file_is_rejected(reference, base, tmp_path, precision) -> None:
    strict = {**TOLERANCES, precision: replace(TOLERANCES[precision], max_rel=1e-9)}
    with pytest.raises(ExportError, match=rf"net\.xml: {precision} rejected"):
        export_artifact(reference, base, tmp_path / "net.xml", "openvino", precision, ExportSettings(tolerances=strict))
    assert os.listdir(tmp_path) == []
