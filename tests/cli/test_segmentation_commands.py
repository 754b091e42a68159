"""export, eval, inspect, profile and bench of a segmentation model, as their users see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from compress.cli import main
from compress.models import network
from compress.models.card import Card
from compress.models.folder import save_model

NAMES = ["ground", "square", "disc"]
SIZE = (32, 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    card = Card("deeplab_wrn16_1", 3, SIZE, task="segmentation", class_names=NAMES)
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, network(card), card)
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


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments])


def answer(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def exported(model: Path, scenes: Path, path: Path, *more: object) -> dict[str, Any]:
    images = ["--images", scenes / "images", "--exporter", "torchscript", "--json"]
    return answer(run("export", model, "--out", path, *images, *more))


@pytest.mark.parametrize("postprocess", ["none", "argmax"])
def test_a_file_of_logits_or_labels_scores_as_its_model(model, scenes, tmp_path, postprocess) -> None:
    path = tmp_path / "net.onnx"
    found = exported(model, scenes, path, "--postprocess", postprocess, "--input-size", "dynamic")
    assert found["dynamic_size"]
    parity = found["artefacts"][0]["parity"]
    assert parity["top1_agreement"] > 0.999
    assert parity["miou"] > 0.999
    assert (parity["max_rel"] is None) == (postprocess == "argmax")
    expected = answer(run("eval", model, "--val", scenes, "--json"))["metrics"]
    scored = answer(run("eval", path, "--val", scenes, "--json"))["metrics"]
    assert scored == pytest.approx(expected, abs=1e-3)
    assert {"miou", "pixel_accuracy", "iou/ground", "iou/square"} <= set(scored)


def test_the_metadata_say_task_classes_and_that_labels_come_out(model, scenes, tmp_path) -> None:
    from exporters.runtime import load

    exported(model, scenes, tmp_path / "net.onnx", "--postprocess", "argmax")
    found = load(tmp_path / "net.onnx").metadata
    assert found["task"] == "segmentation"
    assert json.loads(found["class_names"]) == NAMES
    assert (found["postprocess"], found["input_size"]) == ("argmax", "image_size")
    assert found["output"].startswith("labels: uint8 [batch] or [batch, height, width]")


def test_eval_prints_a_table_of_all_classes(model, scenes) -> None:
    found = run("eval", model, "--val", scenes)
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[1].startswith("miou: ")
    assert lines[2].startswith("pixel_accuracy: ")
    assert [line.split()[0] for line in lines[-3:]] == NAMES
    assert all(line.endswith(("%", "-")) for line in lines[-3:])


def test_inspect_counts_pixels(model, scenes) -> None:
    found = answer(run("inspect", model, "--ood", scenes / "images", "--ood-samples", 4, "--json"))
    assert found["task"] == "segmentation"
    seen = found["ood"]
    assert seen["decisions"] == seen["crops"] * SIZE[0] * SIZE[1]
    assert sum(seen["class_shares"].values()) == pytest.approx(1, abs=1e-5)
    assert set(seen["class_shares"]) == set(NAMES)
    assert sum(seen["entropy_histogram"]["counts"]) == seen["decisions"]
    assert 0 <= seen["entropy_mean"] <= np.log(3)


def test_profile_and_bench_take_names_of_segmenters() -> None:
    found = answer(run("profile", "deeplab_wrn16_1", "--classes", 3, "--input-size", "32x32", "--json"))
    assert found["macs"] > 0
    rows = answer(
        run("bench", "deeplab_wrn16_1", "--input-size", "32x32", "--duration", "0.05s", "--json", "--runtimes", "torch")
    )["results"]
    assert [row["runtime"] for row in rows] == ["torch"]


def test_a_deeplab_of_stride_8_is_exported_for_sizes_that_8_does_not_divide(tmp_path) -> None:
    from exporters.onnx import export
    from exporters.runtime import load

    net = network(Card("deeplabv3_mobilenet_v2", 3, (33, 41), task="segmentation")).eval()
    export(net, torch.zeros(1, 3, 33, 41), tmp_path / "a.onnx", exporter="torchscript", dynamic_size=True)
    images = torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        expected = net(images).numpy()
    found = load(tmp_path / "a.onnx")(images)
    assert found.shape == (1, 3, 65, 97)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
