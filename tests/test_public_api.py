"""The public API accepts modules and data sets wherever it accepts names, and prints nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.data import TensorDataset

import compress
from compress.cli.output import to_json

SMALL = {"method.width_G": 8, "method.width_D": 8, "data.views": 1}


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def net() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 10),
    )  # fmt: skip


@pytest.fixture
def images() -> TensorDataset:
    return TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)


def test_distill_accepts_module_and_datasets(net, images, capsys) -> None:
    run = compress.distill(
        net, student="wrn16_1", unlabeled=images, validation=images, steps=2, batch_size=8, precision="32",
        device="cpu", settings={**SMALL, "task.image_size": [32, 32]}, output_dir="run",
    )  # fmt: skip
    assert run is not None
    assert run.steps == 2
    assert 0 <= run.metrics["accuracy"] <= 1
    student, card = compress.load_model(run.best)
    assert student(card.example_input(2)).shape == (2, 10)
    assert capsys.readouterr().out == ""


def test_measurements_accept_module(net, images) -> None:
    assert compress.evaluate(net, images, image_size=(32, 32), classes=10).images == 20
    assert compress.profile(net, image_size=(32, 32), classes=10).macs > 0
    exported = compress.export(
        net, "net.onnx", images="embedded/photos", image_size=(32, 32), classes=10, exporter="torchscript"
    )
    (artifact,) = exported.artifacts
    assert artifact.parity.top1_agreement == 1
    timed = compress.benchmark(
        [net, artifact.path],
        image_size=(32, 32),
        classes=10,
        runtimes=["torch", "onnxruntime"],
        threads=1,
        duration=0.05,
    )
    assert {row.runtime for row in timed.results} == {"torch", "onnxruntime"}


def test_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="stepz"):
        compress.estimate_training("embedded/fashion_wrn16_2", stepz=1)


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        compress.nothing  # noqa: B018
    assert "distill" in dir(compress)


def test_to_json_converts_nested_results() -> None:
    @dataclasses.dataclass
    class Inner:
        score: float

    assert to_json({"a": [Inner(float("nan"))], "b": (1, 2)}) == {"a": [{"score": None}], "b": [1, 2]}
