"""Commands on segmentation models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invoking import read_result, run
from PIL import Image

from compress.models.card import ModelCard
from compress.models.registry import build_network
from compress.models.serialization import save_model

NAMES = ["ground", "square", "disc"]
SIZE = (32, 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    card = ModelCard("deeplab_wrn16_1", 3, SIZE, task="segmentation", class_names=NAMES)
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, build_network(card), card)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    noise = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(6):
        Image.fromarray(noise.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        mask = np.zeros(SIZE, np.uint8)
        mask[8:20, 4 + i : 16] = 1
        mask[0] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def exported(model: Path, scenes: Path, path: Path, *more: object) -> dict[str, Any]:
    images = ["--images", scenes / "images", "--exporter", "torchscript", "--json"]
    return read_result(run("export", model, "--out", path, *images, *more))


@pytest.mark.parametrize("postprocess", ["none", "argmax"])
def test_exported_segmenter_scores_as_model(model, scenes, tmp_path, postprocess) -> None:
    path = tmp_path / "net.onnx"
    found = exported(model, scenes, path, "--postprocess", postprocess, "--input-size", "dynamic")
    assert found["dynamic_size"]
    parity = found["artifacts"][0]["parity"]
    assert parity["top1_agreement"] > 0.999
    assert parity["miou"] > 0.999
    assert (parity["max_rel"] is None) == (postprocess == "argmax")
    expected = read_result(run("eval", model, "--val", scenes, "--json"))["metrics"]
    scored = read_result(run("eval", path, "--val", scenes, "--json"))["metrics"]
    assert scored == pytest.approx(expected, abs=1e-3)
    assert {"miou", "pixel_accuracy", "iou/ground", "iou/square"} <= set(scored)


def test_metadata_describe_label_maps(model, scenes, tmp_path) -> None:
    from exporters.loading import load

    exported(model, scenes, tmp_path / "net.onnx", "--postprocess", "argmax")
    found = load(tmp_path / "net.onnx").metadata
    assert found["task"] == "segmentation"
    assert json.loads(found["class_names"]) == NAMES
    assert (found["postprocess"], found["input_size"]) == ("argmax", "image_size")
    assert found["output"].startswith("labels: uint8")


def test_eval_prints_every_class(model, scenes) -> None:
    found = run("eval", model, "--val", scenes)
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[1].startswith("miou: ")
    assert lines[2].startswith("pixel_accuracy: ")
    assert [line.split()[0] for line in lines[-3:]] == NAMES
    assert all(line.endswith(("%", "-")) for line in lines[-3:])


def test_inspect_counts_pixels(model, scenes) -> None:
    found = read_result(run("inspect", model, "--ood", scenes / "images", "--ood-samples", 4, "--json"))
    assert found["card"]["task"] == "segmentation"
    shift = found["unlabeled"]
    facts = shift["predictions"]
    assert facts["decisions"] == facts["images"] * SIZE[0] * SIZE[1]
    assert sum(shift["class_shares"].values()) == pytest.approx(1, abs=1e-5)
    assert set(shift["class_shares"]) == set(NAMES)
    assert sum(facts["entropy_histogram"]["counts"]) == facts["decisions"]
    assert 0 <= facts["entropy_mean"] <= np.log(3)


def test_profile_and_bench_name_segmenters() -> None:
    found = read_result(run("profile", "deeplab_wrn16_1", "--classes", 3, "--input-size", "32x32", "--json"))
    assert found["macs"] > 0
    rows = read_result(
        run("bench", "deeplab_wrn16_1", "--input-size", "32x32", "--duration", "0.05s", "--json", "--runtimes", "torch")
    )["results"]
    assert [row["runtime"] for row in rows] == ["torch"]


def test_deeplab_export_handles_odd_sizes(tmp_path) -> None:
    from exporters.loading import load
    from exporters.onnx_export import export_onnx

    net = build_network(ModelCard("deeplabv3_mobilenet_v2", 3, (33, 41), task="segmentation")).eval()
    export_onnx(net, torch.zeros(1, 3, 33, 41), tmp_path / "a.onnx", exporter="torchscript", dynamic_size=True)
    images = torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        expected = net(images).numpy()
    found = load(tmp_path / "a.onnx")(images)
    assert found.shape == (1, 3, 65, 97)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
