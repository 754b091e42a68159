"""What the file of a model does not say: given by options, or assumed and named; compared with the original network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from cli.invoking import TEACHER, read_error, read_result, run
from click.testing import Result
from PIL import Image
from torch import Tensor, nn

from compress.models import ModelOverrides, load_model
from compress.models.card import IMAGENET_MEAN, IMAGENET_STD
from compress.models.pretrained import default_preprocessing
from compress.training.teacher_score import TeacherScore

SIZE, NAMES, COUNT = 64, ["ant", "bee", "cow", "dog"], 24
MEAN, STD = (0.3, 0.5, 0.4), (0.2, 0.25, 0.3)
INPUT = ("--image-size", SIZE, "--mean", "0.3,0.5,0.4", "--std", "0.2,0.25,0.3")


def normalize(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Images uint8 [n, 3, 64, 64] of different colors and noise."""
    random = np.random.default_rng(0)
    colors, noise = random.integers(0, 200, (COUNT, 3, 1, 1)), random.integers(0, 56, (COUNT, 3, SIZE, SIZE))
    return torch.from_numpy((colors + noise).astype(np.uint8))


@pytest.fixture(scope="module")
def network(images: Tensor) -> nn.Module:
    """A resnet18 for 64x64 whose predictions for the images have several classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.resnet18(num_classes=len(NAMES)).eval()
    with torch.no_grad():
        logits = network(normalize(images / 255))
        network.fc.bias -= logits.mean(0)
        network.fc.weight *= 100 / logits.std()
        network.fc.bias *= 100 / logits.std()
    return network


@pytest.fixture(scope="module")
def data(images: Tensor, network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in the folder of the class that the original network predicts: its accuracy is 1."""
    folder = tmp_path_factory.mktemp("data")
    with torch.no_grad():
        labels = network(normalize(images / 255)).argmax(1).tolist()
    assert len(set(labels)) > 1
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / NAMES[label] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def onnx_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network without its normalization, as somebody else exports it."""
    path = tmp_path_factory.mktemp("onnx") / "resnet18.onnx"
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of this exporter, which is the faster one
        torch.onnx.export(
            network, example, path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes
        )
    return path


def distill(*arguments: object, ood: Path, out: Path) -> Result:
    return run(
        "distill", "--teacher", TEACHER, "--ood", ood, "--out", out, "--student", "wrn16_1", "--method", "kd",
        "--steps", 1, "--batch-size", 4, "--set", "data.views=1", *arguments,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["weights", "onnx_file"])
def test_eval_with_options_equals_original_network(kind, data, request) -> None:
    model = request.getfixturevalue(kind)
    found = read_result(run("eval", model, "--data", data, *INPUT, "--class-names", ",".join(NAMES), "--json"))
    assert found["metrics"]["accuracy"] == 1
    assert (found["input"]["image_size"], found["input"]["assumed"]) == ([SIZE, SIZE], [])
    assert {found["input"]["sources"][name] for name in ("mean", "std", "class_names")} == {"option"}


def test_eval_without_options_names_what_is_assumed(weights, data) -> None:
    done = run("eval", weights, "--data", data, "--class-names", ",".join(NAMES), "--json")
    found = read_result(done)["input"]
    assert found["assumed"] == ["image_size", "resize", "mean", "std"]
    assert (found["image_size"], found["resize"]) == ([224, 224], 256)
    assert all(option in done.stderr for option in ("Assumed:", "--image-size", "--mean", "--std"))


def test_foreign_onnx_assumes_no_normalization(onnx_file, data) -> None:
    names = ",".join(NAMES)
    found = read_result(run("eval", onnx_file, "--data", data, "--class-names", names, "--json"))["input"]
    assert (found["assumed"], found["mean"], found["std"]) == (["mean", "std"], [0, 0, 0], [1, 1, 1])
    assert found["sources"]["image_size"] == "the file"


def test_class_names_come_from_a_file(weights, data, tmp_path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    found = read_result(run("eval", weights, "--data", data, *INPUT, "--class-names", tmp_path / "names.txt", "--json"))
    assert found["class_names"] == NAMES
    assert found["metrics"]["accuracy"] == 1


def test_networks_logits_equal_the_original(weights, network, images) -> None:
    given = ModelOverrides(image_size=(SIZE, SIZE), mean=MEAN, std=STD)
    loaded, _ = load_model(weights, given)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images / 255), network(normalize(images / 255)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("command", ["inspect", "profile"])
def test_describing_commands_take_the_same_options(weights, command) -> None:
    found = read_result(run(command, weights, *INPUT, "--resize", 72, "--json"))["input"]
    assert (found["image_size"], found["resize"], found["mean"]) == ([SIZE, SIZE], 72, list(MEAN))
    assert set(found["sources"].values()) == {"option", "the file"}  # the file says whether it is grayscale


@pytest.mark.slow
def test_exported_file_has_the_given_normalization(weights, network, images, data, tmp_path) -> None:
    out = tmp_path / "out.onnx"
    read_result(run("export", weights, *INPUT, "--class-names", ",".join(NAMES), "--out", out, "--json"))
    again = read_result(run("eval", out, "--data", data, "--json"))
    assert again["metrics"]["accuracy"] == 1
    assert again["input"]["mean"] == list(MEAN)


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_plans_state_the_teachers_input(command, weights, data, tmp_path) -> None:
    found = read_result(run(
        command, "--teacher", weights, *INPUT, "--ood", data, "--val", data, "--class-names", ",".join(NAMES),
        "--student", "wrn16_1", "--steps", 1, "--batch-size", 4, "--out", tmp_path / "run", "--dry-run", "--json",
        *(("--methods", "kd", "--seeds", 1) if command == "compare" else ("--method", "kd")),
    ))  # fmt: skip
    assert found["teacher_input"]["mean"] == list(MEAN)
    assert found["teacher_input"]["image_size"] == [SIZE, SIZE]


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["file", pytest.param("module", marks=pytest.mark.slow)])
def test_transform_input_equals_published_preprocessing(name, kind, tmp_path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = torchvision.models.get_model(name, transform_input=True, aux_logits=True, init_weights=False).eval()
    torch.save(original.state_dict(), tmp_path / "published.pth")
    loaded, card = load_model(tmp_path / "published.pth" if kind == "file" else original)
    x = torch.rand(2, 3, *card.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original(normalize(x, IMAGENET_MEAN, IMAGENET_STD))
        torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/resnet10t"])
def test_published_resize_is_that_of_the_name(name, tmp_path) -> None:
    library, _, model = name.partition("/")
    if library == "timm":
        timm = pytest.importorskip("timm")
        network = timm.create_model(model, num_classes=5)
    else:
        network = torchvision.models.get_model(model, num_classes=5)
    torch.save({"state_dict": network.state_dict(), "arch": model}, tmp_path / "net.pth")
    _, card = load_model(tmp_path / "net.pth", ModelOverrides(architecture=name))
    usual = default_preprocessing(name)
    assert (card.image_size, card.resize) == (usual.image_size, usual.resize)
    assert card.resize is not None
    _, smaller = load_model(tmp_path / "net.pth", ModelOverrides(architecture=name, image_size=(96, 96)))
    assert smaller.resize is None


@pytest.fixture
def shuffled(tmp_path) -> Path:
    """60 images in folders of the teacher's classes that have nothing to do with them."""
    names = load_model(TEACHER)[1].class_names
    assert names is not None
    random = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "shuffled" / names[i % 10].replace("/", "-") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "shuffled"


def test_teacher_is_scored_first_and_only_once(shuffled, data, tmp_path) -> None:
    arguments = ("--allow-bad-teacher", "--val", shuffled, "--json")
    known = read_result(run("eval", TEACHER, "--data", shuffled, "--json"))["metrics"]["accuracy"]
    found = read_result(distill(*arguments, ood=data, out=tmp_path / "run"))
    assert found["teacher_metrics"]["accuracy"] == pytest.approx(known, abs=1e-3)
    stored = json.loads((tmp_path / "run" / "compress-run.json").read_text())
    stored["teacher_metrics"]["accuracy"] = 0.5
    (tmp_path / "run" / "compress-run.json").write_text(json.dumps(stored))
    again = read_result(distill(*arguments, ood=data, out=tmp_path / "run"))
    assert again["teacher_metrics"]["accuracy"] == 0.5


def test_teacher_near_chance_stops(shuffled, data, tmp_path) -> None:
    error = read_error(distill("--val", shuffled, ood=data, out=tmp_path / "run"), 1)
    assert all(option in error for option in ("--image-size", "--mean", "--std", "--allow-bad-teacher"))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("correct", "chance", "images", "is_near"),
    [
        (0.1607, 0.1, 10_000, True), (0.1429, 0.1, 10_000, True), (0.7214, 0.1, 10_000, False),
        (0.05, 0.001, 50_000, False), (0.0015, 0.001, 50_000, True), (0.9, 0.9, 1_000, True),
        (0.6, 0.5, 10_000, False), (1.0, 0.5, 5, False), (0.0, 0.2, 2_000, True),
    ],
)  # fmt: skip
def test_near_chance_by_hand(correct, chance, images, is_near) -> None:
    assert TeacherScore({"accuracy": correct}, correct, chance, images).is_near_chance == is_near
