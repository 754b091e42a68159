"""`compress predict` on own models and pictures, against the original network and `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image

import compress
from compress.cli import main

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SCENES = "embedded/scenes_deeplab"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments])


def read_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def save_pictures(folder: Path, *sizes: tuple[int, int], seed: int = 0) -> list[Path]:
    """Save smooth random pictures of (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for i, size in enumerate(sizes):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"picture {i}.png")
        paths.append(folder / f"picture {i}.png")
    return paths


def read_floats(path: Path) -> torch.Tensor:
    """Float [1, 3, h, w] in [0, 1]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def read_labels(path: str | Path | None) -> np.ndarray:
    """uint8 [h, w]: the values of a PNG, without its palette."""
    assert path is not None
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A torchvision ResNet-18 of 6 classes that a user has saved as a state dict."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=6).eval()
    path = tmp_path_factory.mktemp("classifier") / "teacher.pt"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.fixture(scope="module")
def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.AvgPool2d(8), torch.nn.Flatten(),
        torch.nn.Linear(32, 6),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def exported(small_network, tmp_path_factory) -> dict[str, Path]:
    """ONNX files for images of 64 pixels: plain, with softmax, argmax, top five, and uint8 input."""
    folder = tmp_path_factory.mktemp("exported")
    kinds: dict[str, dict[str, Any]] = {
        "none": {}, "softmax": {"postprocess": "softmax"}, "argmax": {"postprocess": "argmax"},
        "topk": {"postprocess": "topk"}, "uint8": {"preprocess": True},
    }  # fmt: skip
    for name, options in kinds.items():
        compress.export(
            small_network, folder / f"{name}.onnx", image_size=(64, 64), classes=6,
            exporter="dynamo" if "preprocess" in options else "torchscript", **options,
        )  # fmt: skip
    return {name: folder / f"{name}.onnx" for name in kinds}


def expected_probabilities(network: torch.nn.Module, path: Path) -> torch.Tensor:
    with torch.no_grad():
        return network(read_floats(path)).softmax(1)[0]


def test_probabilities_are_those_of_the_network(classifier, tmp_path) -> None:
    network, model = classifier
    paths = save_pictures(tmp_path, (64, 64), (64, 64), (64, 64))
    arguments = ("--arch", "torchvision/resnet18", "--image-size", 64, "--top", 6, "--json")
    result = read_json(run("predict", model, *paths, *arguments))
    assert [one["image"] for one in result["predictions"]] == [str(path) for path in paths]
    normalized = torch.nn.Sequential(torchvision.transforms.Normalize(*IMAGENET), network)
    for one, path in zip(result["predictions"], paths, strict=True):
        expected = expected_probabilities(normalized, path)
        assert [c["index"] for c in one["classes"]] == expected.argsort(descending=True).tolist()
        found = torch.tensor([c["probability"] for c in sorted(one["classes"], key=lambda c: c["index"])])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["none", "softmax", "topk", "uint8"])
def test_exported_file_predicts_as_the_network(small_network, exported, tmp_path, kind) -> None:
    (path,) = save_pictures(tmp_path, (64, 64))
    expected = expected_probabilities(small_network, path).sort(descending=True)
    (one,) = read_json(run("predict", exported[kind], path, "--top", 5, "--json"))["predictions"]
    assert [c["index"] for c in one["classes"]] == expected.indices[:5].tolist()
    found = torch.tensor([c["probability"] for c in one["classes"]])
    torch.testing.assert_close(found, expected.values[:5], atol=1e-4, rtol=0)


def test_file_of_labels_has_no_probabilities(small_network, exported, tmp_path) -> None:
    (path,) = save_pictures(tmp_path, (64, 64))
    (one,) = read_json(run("predict", exported["argmax"], path, "--json"))["predictions"]
    (only,) = one["classes"]
    assert only["index"] == int(expected_probabilities(small_network, path).argmax())
    assert only["probability"] is None


@pytest.mark.parametrize("kind", ["network", "none", "uint8"])
def test_as_many_are_right_as_eval_counts(classifier, exported, tmp_path, kind) -> None:
    model = classifier[1] if kind == "network" else exported[kind]
    options = ("--arch", "torchvision/resnet18", "--image-size", 64) if kind == "network" else ()
    for c in range(6):
        save_pictures(tmp_path / str(c), (64, 64), (120, 80), (75, 130), seed=c)
    predicted = read_json(run("predict", model, tmp_path, "--top", 1, "--json", *options))["predictions"]
    right = [int(Path(one["image"]).parent.name) == one["classes"][0]["index"] for one in predicted]
    scored = read_json(run("eval", model, "--data", tmp_path, "--json", *options))
    assert len(right) == scored["images"] == 18
    assert sum(right) / 18 == pytest.approx(scored["metrics"]["accuracy"], abs=1e-6)


def test_label_maps_are_those_of_the_network(tmp_path) -> None:
    (path,) = save_pictures(tmp_path / "in", (96, 64))
    arguments = ("predict", SCENES, path, "--out", tmp_path / "out", "--json")
    (one,) = read_json(run(*arguments))["predictions"]
    network, _ = compress.load_model(SCENES)
    with torch.no_grad():
        expected = network(read_floats(path))[0].argmax(0).numpy()
    labels = read_labels(one["labels"])
    assert labels.shape == (64, 96)
    assert (labels == expected).all()
    counts = {c["index"]: c["share"] for c in one["classes"]}
    assert counts == {int(c): pytest.approx((expected == c).mean()) for c in np.unique(expected)}
    assert read_floats(Path(one["overlay"])).shape == (1, 3, 64, 96)
    assert read_json(run(*arguments))["predictions"] == [one]  # its own files are replaced


def test_maps_have_the_size_of_each_image(tmp_path) -> None:
    sizes = [(300, 200), (64, 64), (90, 180)]
    paths = save_pictures(tmp_path, *sizes)
    result = compress.predict(SCENES, paths, output_dir=tmp_path / "out")
    for one, size in zip(result.predictions, sizes, strict=True):
        labels = read_labels(one.labels)
        assert labels.shape == size[::-1]
        assert set(np.unique(labels)) == {c.index for c in one.classes}
        assert sum(c.share or 0 for c in one.classes) == pytest.approx(1)


@pytest.mark.slow
def test_segmentation_files_of_one_size_and_with_preprocessing(tmp_path) -> None:
    path, plain = save_pictures(tmp_path, (96, 64))[0], compress.load_model(SCENES)[0]
    center = read_floats(path)[..., 16:80]
    with torch.no_grad():
        cropped = plain(center)[0].argmax(0).numpy()
    for crops in (False, True):
        file = tmp_path / f"{crops}.onnx"
        compress.export(SCENES, file, exporter="dynamo" if crops else "torchscript", preprocess=crops)
        (one,) = compress.predict(file, path, output_dir=tmp_path / file.stem).predictions
        labels = read_labels(one.labels)
        assert labels.shape == (64, 96)
        if crops:  # the file has cropped the center
            assert (labels[:, 16:80] == cropped).mean() > 0.99
            assert (labels[:, :16] == 255).all()
            assert (labels[:, 80:] == 255).all()
        else:
            assert labels.max() < 255


def test_unreadable_images_are_named_after_the_others(classifier, tmp_path) -> None:
    (good,) = save_pictures(tmp_path, (64, 64))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    result = run("predict", classifier[1], tmp_path, "--arch", "torchvision/resnet18", "--image-size", 64, "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert [one["image"] for one in content["predictions"]] == [str(good)]
    assert [one["image"] for one in content["unreadable"]] == [str(bad)]
    assert str(bad) in result.stderr
    assert "internal error" not in result.stderr


def test_files_of_others_stay(tmp_path) -> None:
    (path,) = save_pictures(tmp_path / "in", (64, 64))
    mine = tmp_path / "in" / "out" / "labels" / path.name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(path.read_bytes())
    result = run("predict", SCENES, path, "--out", tmp_path / "in" / "out")
    assert result.exit_code == 2
    assert str(mine) in result.stderr
    assert mine.read_bytes() == path.read_bytes()


def test_folders_and_globs(classifier, tmp_path) -> None:
    paths = save_pictures(tmp_path / "a" / "b", (64, 64), (64, 64))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    for source in (tmp_path / "a", tmp_path / "*" / "b" / "*.png", tmp_path / "**" / "*.png"):
        result = compress.predict(SCENES, source, output_dir=tmp_path / "a" / "out")
        assert [one.image for one in result.predictions] == [str(path) for path in paths]


def test_missing_images_are_usage_errors(tmp_path) -> None:
    result = run("predict", SCENES, tmp_path / "one.png", tmp_path / "two.jpg")
    assert result.exit_code == 2
    assert "one.png" in result.stderr
    assert "two.jpg" in result.stderr
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "*.png", "no_such_data"):
        assert run("predict", SCENES, source).exit_code == 2


def test_pictures_in_memory() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    network, _ = compress.load_model("embedded/fashion_wrn16_2")
    (one,) = compress.predict(network, picture, image_size=(40, 40), classes=10).predictions
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        expected = network(pixels).softmax(1)[0]
    assert one.classes[0].index == int(expected.argmax())
    assert one.classes[0].probability == pytest.approx(float(expected.max()), abs=1e-5)
