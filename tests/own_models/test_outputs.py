"""Teachers whose output is no plain tensor of logits, compared with the same network in PyTorch."""

from __future__ import annotations

import json
import sys
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import compress
from compress.cli import main
from compress.errors import CompressError, UsageError
from compress.models import ModelOverrides, load_model
from compress.models.outputs import is_detector_class, is_detector_state

SIZE, CLASSES, FEATURES = 16, 5, 32
GIVEN = ModelOverrides(image_size=(SIZE, SIZE), trust_pickle=True)
Pair = namedtuple("Pair", ["features", "scores"])


class Body(nn.Module):
    """A classifier with large logits, so that probabilities underflow in float32."""

    def __init__(self, classes: int = CLASSES, scale: float = 400.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(3, FEATURES, 3), nn.BatchNorm2d(FEATURES), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.head = nn.Linear(FEATURES, classes)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.features(x))


class Ending(Body):
    """The same network with another end."""

    def __init__(self, end: str, classes: int = CLASSES, scale: float = 400.0) -> None:
        super().__init__(classes, scale)
        self.end = end

    def forward(self, x: Tensor):
        logits = super().forward(x)
        features = self.features(x)
        if self.end == "softmax":
            return F.softmax(logits, 1)
        if self.end == "log_softmax":
            return logits.log_softmax(1)
        if self.end == "sigmoid":
            return torch.sigmoid(logits)
        if self.end == "tuple":
            return features, logits
        if self.end == "named":
            return Pair(features, logits.softmax(1))
        if self.end == "dict":
            return {"features": features, "logits": logits}
        if self.end == "normalized":  # no softmax that could be found
            exponent = (logits - logits.amax(1, keepdim=True)).exp()
            return exponent / exponent.sum(1, keepdim=True)
        if self.end == "batch":
            return logits.softmax(0)
        return logits


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def write(net: nn.Module, kind: str, folder: Path) -> Any:
    """The network as a module, a program, a TorchScript file, an ONNX file or a trusted pickle."""
    net, example, batch = net.eval(), torch.rand(2, 3, SIZE, SIZE), torch.export.Dim("batch")
    path = folder / {"program": "t.pt2", "onnx": "t.onnx"}.get(kind, "t.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "program":
            torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: batch},)), path)
        elif kind == "script":
            torch.jit.save(torch.jit.trace(net, example, strict=False), str(path))
        elif kind == "onnx":
            torch.onnx.export(net, (example,), str(path), dynamo=False, dynamic_axes={"x": [0]}, input_names=["x"])
        elif kind == "pickle":
            torch.save(net, path)
        else:
            return net
    return path


def kd_loss(student: Tensor, teacher: Tensor, T: float = 4.0) -> Tensor:
    return F.kl_div((student / T).log_softmax(1), (teacher / T).softmax(1), reduction="batchmean") * T * T


def same_up_to_constant(found: Tensor, expected: Tensor) -> None:
    found, expected = (value - value.mean(1, keepdim=True) for value in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-4)  # logits of a hundred
    student = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    for T in (1.0, 4.0, 20.0):
        torch.testing.assert_close(kd_loss(student, found, T), kd_loss(student, expected, T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["module", "program", "script", "onnx", "pickle"])
@pytest.mark.parametrize("end", ["softmax", "log_softmax"])
def test_activation_is_undone(tmp_path, kind, end) -> None:
    """The probabilities of this network underflow, so their logarithm would not do."""
    model, card = load_model(write(Ending(end), kind, tmp_path), GIVEN)
    with torch.no_grad():
        expected = Body().eval()(images())
        assert float(F.softmax(expected, 1).min()) == 0
        found = model(images())
    same_up_to_constant(found, expected)
    assert (card.classes, card.task) == (CLASSES, "classification")
    assert card.provenance["output"]["activation"] == end


def test_scripted_softmax_is_undone(tmp_path) -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(self.body(x), dim=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Scripted().eval()), str(tmp_path / "t.pt"))
    model, _ = load_model(tmp_path / "t.pt", GIVEN)
    with torch.no_grad():
        same_up_to_constant(model(images()), Body().eval()(images()))


def test_probabilities_without_a_softmax() -> None:
    """Nothing can be cut off: the logarithm is taken, or refused where probabilities are 0."""
    model, card = load_model(Ending("normalized", scale=3.0), GIVEN)
    with torch.no_grad():
        same_up_to_constant(model(images()), Body(scale=3.0).eval()(images()))
    assert card.provenance["output"] == {"index": None, "name": None, "activation": "softmax", "is_cut": False}
    with pytest.raises(CompressError):
        load_model(Ending("normalized"), GIVEN)


def test_softmax_over_batch_is_refused() -> None:
    with pytest.raises(CompressError):
        load_model(Ending("batch", scale=1.0), GIVEN)


def test_factory_with_softmax(tmp_path, monkeypatch, photos) -> None:
    """Its gradients are those of the logits, too, which methods without data need."""
    (tmp_path / "own_softmax.py").write_text(
        "from own_outputs import Ending\ndef net(classes=5):\n    return Ending('softmax', classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "own_outputs", sys.modules[__name__])
    model, _ = load_model("own_softmax:net", ModelOverrides(image_size=(SIZE, SIZE), classes=CLASSES))
    torch.save(Ending("softmax").state_dict(), tmp_path / "weights.pt")
    given = ModelOverrides(architecture="own_softmax:net", image_size=(SIZE, SIZE), classes=CLASSES)
    from_file, _ = load_model(tmp_path / "weights.pt", given)
    torch.testing.assert_close(from_file.body(images()), Body().eval()(images()), rtol=1e-5, atol=2e-4)
    x, y = images().requires_grad_(True), images().requires_grad_(True)
    model(x).square().sum().backward()
    Body().eval()(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    with pytest.raises(UsageError):  # as a student
        compress.distill(
            "embedded/fashion_wrn16_2", student="own_softmax:net", unlabeled=photos, method="kd", steps=1,
            output_dir=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["module", "program", "script", "onnx"])
def test_tuple_is_not_guessed(tmp_path, kind) -> None:
    """(features, logits): 32 features are no classes."""
    source = write(Ending("tuple"), kind, tmp_path)
    with pytest.raises(UsageError, match=r"32.*5"):
        load_model(source, GIVEN)
    expected = Body().eval()(images())
    choices: list[dict[str, Any]] = [{"output": 1}, {"classes": CLASSES}, {"class_names": list("abcde")}]
    for more in choices:
        model, card = load_model(source, ModelOverrides(image_size=(SIZE, SIZE), trust_pickle=True, **more))
        torch.testing.assert_close(model(images()).detach(), expected.detach(), rtol=1e-5, atol=2e-4)
        assert (card.classes, card.provenance["output"]["index"]) == (CLASSES, 1)
    with pytest.raises(UsageError):
        load_model(source, ModelOverrides(image_size=(SIZE, SIZE), trust_pickle=True, output=7))


@pytest.mark.parametrize("kind", ["module", "program", "script"])
def test_logits_in_dictionary(tmp_path, kind) -> None:
    source = write(Ending("dict"), kind, tmp_path)
    model, card = load_model(source, GIVEN)
    torch.testing.assert_close(model(images()).detach(), Body().eval()(images()).detach(), rtol=1e-5, atol=2e-4)
    assert card.classes == CLASSES
    _, card = load_model(source, ModelOverrides(image_size=(SIZE, SIZE), trust_pickle=True, output="features"))
    assert card.classes == FEATURES  # the user says so


def test_named_output_with_softmax() -> None:
    model, card = load_model(Ending("named"), ModelOverrides(image_size=(SIZE, SIZE), output="scores"))
    with torch.no_grad():
        same_up_to_constant(model(images()), Body().eval()(images()))
    assert card.provenance["output"] == {"index": 1, "name": "scores", "activation": "softmax", "is_cut": True}


def test_huggingface_output_object() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_labels=CLASSES, embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic"
    )
    net = transformers.ResNetForImageClassification(config).eval()
    model, card = load_model(net, ModelOverrides(image_size=(32, 32)))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x).logits, rtol=1e-5, atol=1e-5)
    assert card.classes == CLASSES


class Dense(nn.Module):
    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 4, 3, padding=1, stride=2), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.conv(x))


@pytest.mark.parametrize("kind", ["module", "onnx"])
def test_segmentation_with_softmax(tmp_path, kind) -> None:
    """The maps are enlarged after the softmax is undone."""
    net = Dense(nn.Softmax2d()).eval()
    model, card = load_model(write(net, kind, tmp_path), GIVEN)
    with torch.no_grad():
        expected = F.interpolate(net.conv(images()), (SIZE, SIZE), mode="bilinear")
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5)
    assert (card.task, card.classes) == ("segmentation", 4)


@pytest.mark.parametrize("kind", ["module", "program", "script", "onnx"])
@pytest.mark.parametrize("classes", [1, CLASSES])
def test_sigmoid_is_undone(tmp_path, kind, classes) -> None:
    """One output for two classes, or several labels: the probabilities are rounded to 0 and 1, the logits are not."""
    model, card = load_model(write(Ending("sigmoid", classes), kind, tmp_path), GIVEN)
    with torch.no_grad():
        expected = Body(classes).eval()(images())
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=2e-4)
    assert (card.classes, card.task) == (classes, "multilabel_classification")


def test_sigmoid_without_class_axis() -> None:
    class Squeezed(Body):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(x)).squeeze(1)

    model, card = load_model(Squeezed(1), GIVEN)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), Body(1).eval()(images()), rtol=1e-5, atol=2e-4)
    assert (card.classes, card.task) == (1, "multilabel_classification")


def test_binary_segmentation_with_sigmoid() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.Sigmoid()).eval()
    model, card = load_model(net, GIVEN)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), net[0](images()), rtol=1e-5, atol=1e-5)
    assert (card.classes, card.task) == (1, "binary_segmentation")


def test_logits_of_positive_networks_stay() -> None:
    """Outputs in [0, 1] for images, but not for other inputs, are logits."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model, card = load_model(net, GIVEN)
    assert torch.equal(model(images()), net(images()))
    assert "output" not in card.provenance


def test_numbers_in_unit_interval_are_refused() -> None:
    with pytest.raises(CompressError):
        load_model(nn.Sequential(Body(scale=1.0), nn.Hardsigmoid()), GIVEN)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(8), nn.Dropout(0.5)])
def test_program_in_training_mode_is_refused(tmp_path, layer) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, images(), check_trace=False), str(tmp_path / "t.pt"))
    with pytest.raises(CompressError, match=r"eval\(\)"):
        load_model(tmp_path / "t.pt", GIVEN)
    torch.export.save(
        torch.export.export(net, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},)), tmp_path / "t.pt2"
    )
    with pytest.raises(CompressError, match=r"eval\(\)"):
        load_model(tmp_path / "t.pt2", GIVEN)


def test_random_module_is_refused() -> None:
    class Random(Body):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.3)

    with pytest.raises(CompressError, match=r"eval\(\)"):
        load_model(Random(), GIVEN)


def test_kd_loss_of_run_is_that_of_logits(tmp_path, photos) -> None:
    """The loss of a run with the softmax is that of a run without it, to 1e-5."""
    losses = {}
    for end in ("none", "softmax", "log_softmax"):
        run = compress.distill(
            Ending(end, scale=10.0).eval(), student="wrn16_1", unlabeled=photos, method="kd", steps=2,
            batch_size=8, device="cpu", image_size=(SIZE, SIZE), output_dir=tmp_path / end,
            settings={"data.views": 1, "training.precision": "32"},
        )  # fmt: skip
        lines = (Path(run.best).parent / "metrics.jsonl").read_text().splitlines()
        losses[end] = [line["S"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert losses["none"][0] > 0.1
    assert losses["softmax"] == pytest.approx(losses["none"], rel=1e-5)
    assert losses["log_softmax"] == pytest.approx(losses["none"], rel=1e-5)


def test_onnx_weights_beside_the_file(tmp_path) -> None:
    path = write(Ending("softmax"), "onnx", tmp_path)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    teacher, _ = load_model(path, GIVEN)
    with torch.no_grad():
        same_up_to_constant(teacher(images()), Body().eval()(images()))


def test_inspect_says_what_was_done(tmp_path) -> None:
    write(Ending("tuple"), "onnx", tmp_path)
    error = CliRunner().invoke(main, ["inspect", str(tmp_path / "t.onnx")])
    assert error.exit_code == 2
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "t.onnx"), "--output", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["card"]["provenance"]["output"]["index"] == 1


@pytest.mark.parametrize("kind", ["boxes", "suppression", "module"])
def test_detector_is_refused(tmp_path, kind) -> None:
    class Detector(nn.Module):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"boxes": image[0, :, :4], "labels": image[0, 0]} for image in x]

    source: Any = Detector() if kind == "module" else write(Body(), "onnx", tmp_path)
    if kind != "module":
        model = onnx.load(source)
        if kind == "boxes":
            model.graph.output[0].name = model.graph.node[-1].output[0] = "boxes"
        else:
            model.graph.node.append(onnx.helper.make_node("NonMaxSuppression", [model.graph.output[0].name] * 2, ["x"]))
        onnx.save(model, source)
    with pytest.raises(CompressError, match="detector"):
        load_model(source, GIVEN)


def test_state_dict_of_detector_is_refused(tmp_path) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "t.pth")
    with pytest.raises(CompressError, match="detector"):
        load_model(tmp_path / "t.pth")


@pytest.mark.parametrize("trust", [False, True])
def test_pickled_detector_is_refused(tmp_path, trust) -> None:
    """As Ultralytics saves its models: the module under a key, pickled with its class."""
    with torch.device("meta"):
        net = torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    torch.save({"epoch": -1, "model": net}, tmp_path / "yolo.pt")
    with pytest.raises(CompressError, match="detector"):
        load_model(tmp_path / "yolo.pt", ModelOverrides(trust_pickle=trust))


def test_names_of_detectors() -> None:
    names = ["ultralytics.nn.tasks.DetectionModel", "models.yolo.Model", "<class 'mmdet.models.FasterRCNN'>"]
    assert all(map(is_detector_class, names))
    others = ["ultralytics.nn.tasks.ClassificationModel", "fake_detection.nets.Classifier", "timm.models.resnet.ResNet"]
    assert not any(map(is_detector_class, others))
    for name in ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "ssd300_vgg16"):
        with torch.device("meta"):
            net = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        assert is_detector_state(net.state_dict())
    assert is_detector_state(["model.22.cv2.0.0.conv.weight", "model.22.dfl.conv.weight"])
    assert not is_detector_state(torchvision.models.resnet18().state_dict())


def test_onnx_file_is_predicted_by_its_logits(tmp_path) -> None:
    """Probabilities are those of the network, not of another softmax over them, nor of the features."""

    class Both(Body):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.features(x), super().forward(x).softmax(1)

    net = Both(scale=20.0)
    path = write(net, "onnx", tmp_path)
    pixels = (images(1)[0].permute(1, 2, 0) * 255).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "picture.png")
    arguments = ["predict", str(path), str(tmp_path / "picture.png"), "--json"]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    result = CliRunner().invoke(main, [*arguments, "--output", "1"])
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["predictions"]
    with torch.no_grad():
        expected = net(pixels.permute(2, 0, 1)[None] / 255)[1][0]
    assert [one["index"] for one in found["classes"]] == expected.argsort(descending=True).tolist()
    assert [one["probability"] for one in found["classes"]] == pytest.approx(
        expected.sort(descending=True).values.tolist(), abs=1e-5
    )
