"""The public functions: export to a directory, and load."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import exporters
from compress.errors import UsageError
from exporters.api import create_batch_function, create_tolerances, export, export_all, resolve_output_path
from exporters.artifacts import ExportSettings, Int8Options
from exporters.errors import ExportError
from exporters.onnx_export import create_reference
from exporters.parity import Tolerance

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def test_export_writes_every_combination(network: nn.Module, tmp_path: Path) -> None:
    files = export(
        network, IMAGES[:1], tmp_path, formats=["onnx", "openvino"], precisions=["fp32", "int8"], images=IMAGES,
        calibration=[(IMAGES[:4], torch.zeros(4)), IMAGES[4:].numpy()], metadata={"author": "test"},
    )  # fmt: skip
    assert [(file.format, file.precision) for file in files] == [
        ("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"),
    ]  # fmt: skip
    assert [Path(file.path).name for file in files] == ["model.onnx", "model.int8.onnx", "model.xml", "model.int8.xml"]
    with torch.no_grad():
        expected = network(IMAGES).numpy()
    for file in files:
        with exporters.load(file.path, threads=1) as runner:
            logits = runner(IMAGES)
            assert runner.metadata["author"] == "test"
        np.testing.assert_allclose(logits, expected, atol=1e-5 if file.precision == "fp32" else 0.05)


def test_export_of_one_file_and_rejection(network: nn.Module, tmp_path: Path) -> None:
    (file,) = export(network, IMAGES[:1], tmp_path / "a", precisions=["fp16"])
    assert Path(file.path) == tmp_path / "a" / "model.fp16.onnx"
    settings = ExportSettings(tolerances=create_tolerances(1e-9) | {"fp32": Tolerance(1e-3, None)})
    messages: list[str] = []
    with pytest.raises(ExportError, match="fp16 rejected"):
        export(
            network,
            IMAGES[:1],
            tmp_path / "b",
            precisions=["fp32", "fp16"],
            settings=settings,
            progress=messages.append,
        )
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["model.onnx"]
    assert len(messages) == 1


def test_export_all_reports_rejections(network: nn.Module, tmp_path: Path) -> None:
    outcome = export_all(create_reference(network, IMAGES[:1]), tmp_path, ["onnx"], ["fp32", "int8"])
    assert [artifact.precision for artifact in outcome.artifacts] == ["fp32"]
    (rejected,) = outcome.rejected
    assert (rejected.format, rejected.precision) == ("onnx", "int8")
    assert outcome.source.exporter == "dynamo"


def test_export_takes_calibration_once(network: nn.Module, tmp_path: Path) -> None:
    settings = ExportSettings(int8=Int8Options(lambda: iter([IMAGES.numpy()])))
    with pytest.raises(ExportError, match="calibration"):
        export(network, IMAGES[:1], tmp_path, calibration=[IMAGES], settings=settings)


def test_batch_function_is_repeatable() -> None:
    for source in ([IMAGES, IMAGES], iter([IMAGES, IMAGES]), lambda: iter([IMAGES, IMAGES])):
        batches = create_batch_function(source)
        assert [len(list(batches())) for _ in range(2)] == [2, 2]


def test_tolerances_replace_defaults() -> None:
    tolerances = create_tolerances(0.5, 0.9)
    assert tolerances["fp32"] == Tolerance(0.5, None)
    assert tolerances["int8"].max_rel == 0.5
    assert tolerances["int8"].max_disagreement == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("output", "formats", "precisions", "expected"),
    [
        (None, ["onnx"], ["fp32"], "model.onnx"),
        (None, ["openvino"], ["fp16"], "model.fp16.xml"),
        (Path("a/b"), ["onnx"], ["fp32"], "a/b/model.onnx"),
        (Path("a.onnx"), ["onnx"], ["fp32"], "a.onnx"),
        (Path("a"), ["onnx"], ["fp32", "fp16"], "a"),
    ],
)
def test_output_path(output, formats, precisions, expected) -> None:
    assert resolve_output_path("name", output, formats, precisions) == Path(expected)


@pytest.mark.parametrize(
    ("output", "formats", "precisions"),
    [(Path("a.onnx"), ["onnx"], ["fp32", "fp16"]), (Path("a.onnx"), ["openvino"], ["fp32"])],
)
def test_output_path_of_wrong_kind(output, formats, precisions) -> None:
    with pytest.raises(UsageError, match=r"a\.onnx"):
        resolve_output_path("name", output, formats, precisions)


@pytest.mark.parametrize(
    "name",
    [
        "api", "cpu", "loading", "onnx_export", "onnx_validation", "packages", "parity", "pre_post",
        "quantization.static", "tensorrt.options",
    ],
)  # fmt: skip
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"exporters.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_package_is_lazy_and_complete() -> None:
    assert all(getattr(exporters, name) is not None for name in exporters.__all__)
    assert set(exporters.PUBLIC) == set(exporters.__all__)
    with pytest.raises(AttributeError):
        exporters.nothing  # noqa: B018
    code = "import sys, exporters, exporters.runtimes; print('torch' in sys.modules, 'onnx' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
