"""`compress export`, `bench` and `doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from invoking import read_error, read_result, run
from PIL import Image

from compress import environment
from compress.models.card import ModelCard
from compress.models.metadata import card_from_metadata
from compress.models.registry import build_network
from compress.models.serialization import save_model
from compress.predictor import load_predictor

NAMES = ["T-shirt", "Trouser", "Pullover", "Dress"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    card = ModelCard(
        "wrn16_1", 4, (16, 16), mean=(0.3,), std=(0.4,), grayscale=True, class_names=NAMES, metrics={"accuracy": 0.5}
    )
    directory = tmp_path_factory.mktemp("models") / "model"
    save_model(directory, build_network(card), card)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(directory / f"{i}.png")
    return directory


@pytest.fixture(scope="module")
def exported(model: Path, images: Path) -> tuple[Path, dict[str, Any]]:
    path = model.parent / "net.onnx"
    arguments = ["export", model, "--out", path, "--images", images, "--exporter", "torchscript", "--json"]
    return path, read_result(run(*arguments))


# Export.


def test_export_compares_on_given_images(exported, images: Path) -> None:
    path, result = exported
    (artifact,) = result["artifacts"]
    assert artifact["parity"]["top1_agreement"] == 1.0
    assert artifact["parity"]["max_rel"] < 1e-5
    assert (artifact["real_images"], result["images"], result["opset"]) == (True, str(images), 18)
    assert artifact["batch_sizes"][:3] == [1, 2, 5]
    assert artifact["bytes"] == path.stat().st_size


def test_exported_file_contains_card(exported, model: Path) -> None:
    path, _ = exported
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["class_names"]) == NAMES
    card = card_from_metadata(metadata, path)
    assert card is not None
    assert (card.classes, card.image_size, card.grayscale, card.metrics) == (4, (16, 16), True, {"accuracy": 0.5})
    x = torch.rand(3, 3, 16, 16)
    network, file = (load_predictor(str(one)).predict(x) for one in (model, path))
    torch.testing.assert_close(file, network, rtol=1e-4, atol=1e-5)


def test_failed_export_leaves_no_file(model: Path, tmp_path: Path, images: Path) -> None:
    arguments = ["--images", images, "--exporter", "torchscript", "--tolerance", 0]
    read_error(run("export", model, "--out", tmp_path / "out.onnx", *arguments), 1)
    assert os.listdir(tmp_path) == []


def test_export_names_missing_files(model: Path, tmp_path: Path) -> None:
    assert "nothing" in read_error(run("export", tmp_path / "nothing"), 2)
    assert "nothing" in read_error(run("export", model, "--images", tmp_path / "nothing"), 2)


def test_bare_onnx_is_described_by_overrides(exported, tmp_path: Path) -> None:
    bare = onnx.load(exported[0])
    del bare.metadata_props[:]
    path = tmp_path / "bare.onnx"
    onnx.save(bare, path)
    predictor = load_predictor(str(path), mean=[0.5], std=[0.25])
    assert (predictor.card.classes, predictor.card.image_size) == (4, (16, 16))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(predictor.predict(x), load_predictor(str(exported[0])).predict((x - 0.5) / 0.25))


# Bench.


def test_bench_times_models_runtimes_batches(exported, model: Path) -> None:
    arguments = ["bench", model, exported[0], "--batch-size", "1,2", "--duration", "0.05s", "--threads", 1, "--json"]
    result = read_result(run(*arguments))
    rows = [(Path(row["model"]).name, row["runtime"], row["batch_size"]) for row in result["results"]]
    pairs = [("model", "torch"), ("model", "onnxruntime"), ("net.onnx", "onnxruntime")]
    assert sorted(rows) == sorted((*pair, size) for pair in pairs for size in (1, 2))
    for row in result["results"]:
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"]
        assert row["throughput_ips"] > 0
        assert row["runs"] >= 10
        assert (row["device"], row["precision"], row["threads"]) == ("cpu", "fp32", 1)
    assert result["machine"]["versions"]["torch"]
    ratios = [(one["result"], one["against"]) for one in result["ratios"]]
    assert all(rows[i][2] == rows[j][2] and j < i for i, j in ratios)


def test_bench_restores_thread_count() -> None:
    before = torch.get_num_threads()
    result = run("bench", "wrn16_1", "--runtimes", "torch", "--duration", "0.05s", "--threads", before + 1)
    assert result.stdout.splitlines()[0].split()[:2] == ["model", "runtime"]
    assert torch.get_num_threads() == before


def test_bench_rejects_invalid_options(exported, tmp_path: Path) -> None:
    assert "'onnxruntime'" in read_error(run("bench", "wrn16_1", "--runtimes", "onnxruntme"), 2)
    assert "--batch-size" in read_error(run("bench", "wrn16_1", "--batch-size", "0"), 2)
    assert "torch" in read_error(run("bench", exported[0], "--runtimes", "torch"), 2)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported[0].read_bytes()[:5000])
    assert "broken.onnx" in read_error(run("bench", broken), 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_bench_never_falls_back_to_cpu(exported) -> None:
    assert "CUDA" in read_error(run("bench", exported[0], "--device", "cuda"), 1)


# Doctor.


def test_doctor_reports_packages_and_machine() -> None:
    result = read_result(run("doctor", "--json"))
    assert result["ok"] is True
    assert {"torch", "torchvision", "onnx", "onnxruntime", "click"} <= set(result["core"])
    assert result["optional"]["timm"]["install"].startswith("pip install")
    assert result["bf16"] in ("fast", "native", "emulated")


@pytest.mark.parametrize(
    ("package", "version", "broken"), [("onnx", None, "onnx"), ("torch", "2.15.0+cpu", "torchvision")]
)
def test_doctor_fails_on_broken_package(monkeypatch, package: str, version: str | None, broken: str) -> None:
    installed = environment.installed_version
    monkeypatch.setattr(environment, "installed_version", lambda name: version if name == package else installed(name))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert not report["ok"]
    assert report["core"][broken]["problem"]


@pytest.mark.slow
def test_thorough_doctor_imports_core_packages() -> None:
    assert read_result(run("doctor", "--thorough", "--json"))["ok"] is True
