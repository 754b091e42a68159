"""One artefact at a time: what departs is refused with its operator, and nothing is left of it."""

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
def question() -> ReferenceModel:
    return create_reference(net(), IMAGES[:1], images=IMAGES)


@pytest.fixture(scope="module")
def base(question, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "model.onnx"
    write_onnx(question, path, metadata={"precision": "fp32", "classes": "4"})
    return path


def batches() -> Iterator[np.ndarray]:
    yield from IMAGES.numpy().reshape(3, 4, 3, 16, 16)


INT8 = Int8Options(batches, calibrator="minmax")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("format", ["onnx", "openvino", "tensorrt-rtx"])
def test_every_artefact_is_compared_and_says_where(question, base, tmp_path, format, precision) -> None:
    path = tmp_path / f"net{artifacts.SUFFIXES[format]}"
    found = export_artifact(question, base, path, format, precision, ExportSettings(int8=INT8, shapes=SHAPES))
    assert (found.format, found.precision, found.path) == (format, precision, str(path))
    assert found.bytes == sum(part.stat().st_size for part in tmp_path.iterdir())
    assert found.parity.images == len(IMAGES)
    assert found.parity.top1_agreement >= 0.9
    runs = format != "tensorrt-rtx" and (format, precision) != ("onnx", "bf16")
    assert (found.unverified is None) == (runs or torch.cuda.is_available())
    if runs:
        with load(path) as runner:
            assert (runner.precision == precision) == ("computing in" not in found.verified_in)
            assert runner.metadata["classes"] == "4"


def test_what_departs_is_refused_with_its_first_operator_and_leaves_nothing(
    question, base, tmp_path, monkeypatch
) -> None:
    right = artifacts.convert_float16

    def spoilt(origin: Path, draft: Path, precision, **more):
        found = right(origin, draft, precision, **more)
        model = onnx.load(draft)
        second = [node for node in model.graph.node if node.op_type == "Conv"][1]
        (weight,) = [one for one in model.graph.initializer if one.name == second.input[1]]
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float16(-1), weight.name))
        onnx.save(model, draft)
        return found

    monkeypatch.setattr(artifacts, "retype", spoilt)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"what was there")
    with pytest.raises(
        ExportError, match=r"net\.onnx: fp16 rejected: .*first operator to depart is .*\(Conv\)"
    ) as error:
        export_artifact(question, base, path, "onnx", "fp16")
    assert error.value.exit_code == 1
    assert path.read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_a_rejection_says_so_and_leaves_nothing(question, base, tmp_path) -> None:
    def slower(fp32: Path, draft: Path, runtime: str) -> None:
        assert fp32 == base
        assert (draft.name, runtime) == ("net.onnx", "onnxruntime")
        raise RejectedError("slower: 2.00 ms an image, fp32 1.00 ms")

    wish = replace(INT8, accept=slower)
    with pytest.raises(ExportError, match=r"net\.onnx: int8 rejected: slower"):
        export_artifact(question, base, tmp_path / "net.onnx", "onnx", "int8", ExportSettings(int8=wish))
    assert os.listdir(tmp_path) == []
    # for another place nobody is asked: it is not this machine's speed that counts
    export_artifact(
        question, base, tmp_path / "net.onnx", "onnx", "int8", ExportSettings(int8=replace(wish, target="tensorrt"))
    )
    export_artifact(question, base, tmp_path / "net32.onnx", "onnx", "fp32", ExportSettings(int8=wish))


def test_int8_without_images_and_a_tolerance_that_cannot_be_kept_are_refused(question, base, tmp_path) -> None:
    with pytest.raises(ExportError, match="no calibration data"):
        export_artifact(question, base, tmp_path / "net.onnx", "onnx", "int8")
    strict = {**TOLERANCES, "int8": replace(TOLERANCES["int8"], max_rel=1e-6)}
    with pytest.raises(ExportError, match=r"int8 rejected: differs by .*tolerance 1\.0e-06"):
        export_artifact(
            question, base, tmp_path / "net.onnx", "onnx", "int8", ExportSettings(tolerances=strict, int8=INT8)
        )
    assert os.listdir(tmp_path) == []


def test_a_budget_is_kept_by_the_score_that_is_given(question, base, tmp_path) -> None:
    asked = []

    def score(runner) -> float:
        asked.append(runner.precision)
        return 1.0 if runner.precision == "fp32" else 0.97

    found = export_artifact(
        question,
        base,
        tmp_path / "net.onnx",
        "onnx",
        "int8",
        ExportSettings(int8=INT8, budget=AccuracyBudget(0.05, score)),
    )
    assert asked[:2] == ["fp32", "int8"]
    assert found.details["int8"]
    with pytest.raises(ExportError, match="rejected"):
        export_artifact(
            question,
            base,
            tmp_path / "b.onnx",
            "onnx",
            "int8",
            ExportSettings(int8=INT8, budget=AccuracyBudget(0.01, score)),
        )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_budget_keeps_layers_of_typed_files_in_fp32_until_the_tolerance_holds_too(
    question, base, tmp_path, precision
) -> None:
    whole = export_artifact(question, base, tmp_path / "whole.onnx", "onnx", precision)
    assert whole.parity.max_rel is not None
    strict = {**TOLERANCES, precision: replace(TOLERANCES[precision], max_rel=0.7 * whole.parity.max_rel)}
    settings = ExportSettings(tolerances=strict)
    with pytest.raises(ExportError, match=f"{precision} rejected: differs"):
        export_artifact(question, base, tmp_path / "net.onnx", "onnx", precision, settings)
    found = export_artifact(
        question, base, tmp_path / "net.onnx", "onnx", precision, replace(settings, budget=AccuracyBudget(0.05))
    )
    assert found.parity.max_rel is not None
    assert found.parity.max_rel <= 0.7 * whole.parity.max_rel
    details = found.details[precision]
    assert len(details["kept"]) > 0
    low = [node.name for node in onnx.load(tmp_path / "net.onnx").graph.node if low_layer(node, precision)]
    assert len(low) + len(details["kept"]) == len(details["sensitivity"])
    assert not {*low} & {*details["kept"]}
    hopeless = {**TOLERANCES, precision: replace(TOLERANCES[precision], max_rel=1e-9)}
    settings = ExportSettings(tolerances=hopeless, budget=AccuracyBudget(0.05))
    with pytest.raises(ExportError, match=rf"rejected: accuracy: fp32 scores 1, {precision} nothing \(beyond its tol"):
        export_artifact(question, base, tmp_path / "b.onnx", "onnx", precision, settings)
    assert not (tmp_path / "b.onnx").exists()


def low_layer(node: onnx.NodeProto, precision: str) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1].endswith(f"_{precision}")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_openvino_file_that_departs_is_refused_in_one_sentence(question, base, tmp_path, precision) -> None:
    strict = {**TOLERANCES, precision: replace(TOLERANCES[precision], max_rel=1e-9)}
    with pytest.raises(ExportError, match=rf"net\.xml: {precision} rejected: differs by .*(depart|adds up)") as caught:
        export_artifact(question, base, tmp_path / "net.xml", "openvino", precision, ExportSettings(tolerances=strict))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
