"""`compress inspect`, `models`, `methods`: what a user reads, and what a script parses."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image

from compress.analysis.domain_shift import median_image_size, recommend_method, sample_images, shift_advice
from compress.cli import main
from compress.data.dataset import ImageSet
from compress.data.predictions import PixelCounts, Predictions
from compress.models.card import ModelCard
from compress.models.registry import build_model, build_network
from compress.models.serialization import save_model


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output + result.stderr
    assert "Traceback" not in result.stderr
    return result


def inspected(*arguments: str) -> dict:
    return json.loads(run("inspect", *arguments, "--json").stdout)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    card = ModelCard("wrn16_1", 3, (32, 32), class_names=["cat", "dog", "owl"], metrics={"accuracy": 0.75})
    card.provenance = {"recipe": "teacher.yaml"}
    save_model(tmp_path / "model", build_network(card), card)
    return tmp_path / "model"


def test_a_model_folder_is_described(folder):
    found = inspected(str(folder))
    assert (found["format"], found["architecture"], found["classes"]) == ("model folder", "wrn16_1", 3)
    assert found["image_size"] == [32, 32]
    assert found["metrics"] == {"accuracy": 0.75}
    assert found["class_names"] == ["cat", "dog", "owl"]
    assert found["params"] == sum(p.numel() for p in build_model("wrn16_1", classes=3).parameters())
    assert found["non_finite"] == []
    text = run("inspect", str(folder)).stdout
    for part in ("wrn16_1", "cat, dog, owl", "colour images of 32x32", "0.7500", "teacher.yaml", "all finite"):
        assert part in text


def test_a_strangers_checkpoint_is_recognised(tmp_path):
    state = {"module." + key: value for key, value in build_model("wrn16_2", classes=7).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 12, "state_dict_ema": state}, tmp_path / "w.pth")
    found = inspected(str(tmp_path / "w.pth"))
    assert (found["architecture"], found["classes"]) == ("wrn16_2", 7)
    assert found["wrapping"] == ["state_dict", "module."]
    assert found["facts"] == {"epoch": 12}
    assert found["provenance"]["assumed"] == ["image_size", "mean", "std"]
    text = run("inspect", str(tmp_path / "w.pth")).stdout
    assert "assumed: image_size, mean, std" in text
    assert "--ema" in text


def test_inspect_names_look_alikes(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), tmp_path / "w.pth")
    found = inspected(str(tmp_path / "w.pth"))
    assert (found["architecture"], found["candidates"], found["problem"]) == ("torchvision/resnet18", [], None)
    assert found["provenance"]["also_fits"] == ["timm/resnetblur18"]


def test_nan_and_infinity_are_named(tmp_path):
    state = build_model("wrn16_1", classes=3).state_dict()
    state["fc.bias"][0] = math.nan
    state["conv1.weight"][0, 0, 0, 0] = math.inf
    torch.save(state, tmp_path / "w.pth")
    assert sorted(inspected(str(tmp_path / "w.pth"))["non_finite"]) == ["conv1.weight", "fc.bias"]
    assert "this checkpoint is broken" in run("inspect", str(tmp_path / "w.pth")).stdout


def test_half_precision_is_told(tmp_path):
    torch.save(build_model("wrn16_1", classes=3).half().state_dict(), tmp_path / "w.pth")
    assert "float16" in inspected(str(tmp_path / "w.pth"))["dtypes"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_files_give_one_sentence_and_an_exit_code(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 nothing more")
    torch.save({"x": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    for name, code, words in [("none.pth", 2, "no such file"), ("cut.pth", 1, "truncated"), ("evil.pth", 1, "refused")]:
        result = run("inspect", str(tmp_path / name), code=code)
        assert result.stderr.startswith("Error: ")
        assert words in result.stderr
        assert result.stdout == ""
    assert not (tmp_path / "executed").exists()


def answers_of(logits: np.ndarray) -> Predictions:
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(1)
    return Predictions(entropy, p.max(1), p.argmax(1), logits.shape[1])


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (np.eye(3)[[0] * 10] * 9, "calls 100% of these images 'a': expect weak plain KD"),
        (np.eye(3)[[0, 0, 0, 1, 2]] * 9, "calls 60% of these images 'a'"),
        (np.eye(3) * 99, "plain KD will do well"),
        (np.eye(3) * 0.1, "far from its domain"),
        (np.eye(3) * 2.5, "middling certainty"),
        (np.eye(4)[:3] * 9, "1 of its 4 classes nowhere"),
    ],
)
def test_the_verdict_is_in_plain_words(logits, words):
    assert words in recommend_method(answers_of(logits), list("abcd"))


def test_far_images_are_said_to_be_worth_little_to_mosaickd_on_label_maps():
    one = answers_of(np.eye(3) * 9)
    maps = replace(one, pixels=PixelCounts(np.ones(10), np.ones(10), np.ones(3)))
    assert shift_advice(one, 9.0) == shift_advice(maps, None) == shift_advice(maps, 0.14) == ""
    assert "--set method.local=0 --set method.ood_fraction=0" in shift_advice(maps, 0.21)


def test_samples_are_evenly_spaced():
    images = ImageSet("x", [str(i) for i in range(10)], lambda i: Image.new("RGB", (i + 1, 1)), "x")
    few = sample_images(images, 5)
    assert list(few.names) == ["0", "2", "4", "6", "8"]
    assert few.read_image(3).size == (7, 1)
    assert sample_images(images, 10) is images
    assert median_image_size(images) == (1, 6)


def test_data_is_measured_against_the_model(folder, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(6):
        pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found = inspected(str(folder), "--ood", str(tmp_path / "photos"))["ood"]
    assert found["unreadable"] == 1
    assert found["unreadable_images"][0]["image"].endswith("broken.png")
    assert (found["images"], found["sampled"], found["median_size"]) == (7, 7, [40, 50])
    assert sum(found["entropy_histogram"]["counts"]) == found["crops"] >= 500
    assert set(found["class_shares"]) == {"cat", "dog", "owl"}
    assert sum(found["class_shares"].values()) == pytest.approx(1, abs=1e-5)
    text = run("inspect", str(folder), "--ood", str(tmp_path / "photos")).stdout
    assert "unreadable   1" in text
    assert "The teacher" in text


def test_models_are_listed():
    found = json.loads(run("models", "--json").stdout)
    assert {row["name"] for row in found["built_in"]} >= {"wrn40_2", "wrn16_1", "resnet34", "vgg11"}
    assert len(found["torchvision/"]) > 50
    assert "torchvision/resnet18" in run("models", "torchvision/resnet1").stdout
    assert "no model's name" in run("models", "nothing", code=2).stderr


def test_methods_are_listed_and_one_shows_its_settings():
    assert {row["name"] for row in json.loads(run("methods", "--json").stdout)["methods"]} >= {"mosaic", "kd"}
    found = json.loads(run("methods", "mosaic", "--json").stdout)
    settings = {row["name"]: row for row in found["settings"]}
    assert settings["patch"]["default"] == 8
    assert all(row["help"] for row in found["settings"])
    assert "method.NAME" in run("methods", "mosaic").stdout
    assert "did you mean 'mosaic'?" in run("methods", "mosiac", code=2).stderr


def test_data_sets_are_listed():
    names = {row["name"] for row in json.loads(run("datasets", "--json").stdout)["datasets"]}
    assert names >= {"cifar10", "cifar100", "svhn", "imagenet"}
