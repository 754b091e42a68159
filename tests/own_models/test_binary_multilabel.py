"""Own models with one logit per pixel or image, or several labels per image: against counts by hand and the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

import compress
from compress.cli import main
from compress.errors import UsageError
from compress.models.loading import load_model
from compress.models.overrides import ModelOverrides
from exporters.errors import RejectedError
from exporters.parity import TOLERANCES, check_tolerance, compare_outputs

SIDE = 16
SIZE = (SIDE, SIDE)
LABELS = ["cat", "dog", "owl"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments])


class Pixels(nn.Module):
    """A logit per pixel: 8 (red - 0.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([8.0, 0.0, 0.0]).view(1, 3, 1, 1))
            self.layer.bias.fill_(-4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Labels(nn.Module):
    """A logit per image for each of the first channels: 40 (mean - 0.5)."""

    def __init__(self, labels: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(3, labels)
        with torch.no_grad():
            self.layer.weight.copy_(40 * torch.eye(3)[:labels])
            self.layer.bias.fill_(-20.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean((2, 3)))


class Sigmoid(nn.Module):
    """Labels with a sigmoid at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Labels()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).sigmoid()


def save_images(folder: Path, count: int, seed: int = 0) -> np.ndarray:
    """Save noise of different mean colors; return it as uint8 [n, h, w, 3]."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    means = rng.integers(90, 166, (count, 1, 1, 3))
    pixels = np.clip(means + rng.integers(-80, 80, (count, *SIZE, 3)), 0, 255).astype(np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i:03d}.png")
    return pixels


def save_masks(folder: Path, masks: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"{i:03d}.png")


def images_and_masks(folder: Path, foreground: int, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Images, and masks where green exceeds 110, written with `foreground`; return pixels and masks of 0 and 1."""
    pixels = save_images(folder / "images", count)
    masks = (pixels[..., 1] > 110).astype(int)
    save_masks(folder / "masks", foreground * masks)
    return pixels, masks


def labeled_images(folder: Path, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Images with labels.csv, whose columns are in another order than LABELS; return pixels and labels [n, 3]."""
    pixels = save_images(folder, count)
    truth = np.random.default_rng(1).integers(0, 2, (count, 3))
    lines = ["file,owl,cat,dog", *(f"{i:03d}.png,{row[2]},{row[0]},{row[1]}" for i, row in enumerate(truth))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return pixels, truth


def to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def mask_scores(yes: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    both, wrong = (yes & (truth == 1)).sum(), (yes != (truth == 1)).sum()
    return {
        "iou": both / (both + wrong), "dice": 2 * both / (2 * both + wrong), "pixel_accuracy": 1 - wrong / truth.size,
    }  # fmt: skip


def label_scores(z: np.ndarray, truth: np.ndarray, cut: float = 0.0) -> dict[str, float]:
    yes, f1, precisions = z > cut, [], []
    for c in range(truth.shape[1]):
        hits = (yes[:, c] & (truth[:, c] == 1)).sum()
        f1.append(2 * hits / (yes[:, c].sum() + truth[:, c].sum()))
        ranked = truth[np.argsort(-z[:, c]), c]
        precisions.append((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked == 1].mean())
    return {"f1": np.mean(f1), "map": np.mean(precisions), "label_accuracy": (yes == (truth == 1)).mean()}


@pytest.mark.parametrize("foreground", [1, 255])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_binary_segmentation_is_scored_by_pixels(tmp_path: Path, foreground: int, threshold: float):
    pixels, masks = images_and_masks(tmp_path, foreground)
    result = compress.evaluate(Pixels(), tmp_path, image_size=SIZE, threshold=threshold)
    with torch.no_grad():
        yes = Pixels()(to_tensor(pixels))[:, 0].sigmoid().numpy() > threshold
    assert result.task == "binary_segmentation"
    assert result.metrics == pytest.approx(mask_scores(yes, masks), abs=1e-6)


def test_255_is_ignored_beside_1_and_other_values_are_refused(tmp_path: Path):
    pixels, masks = images_and_masks(tmp_path, 1)
    ignored = np.zeros_like(masks)
    ignored[:, :4] = 1
    save_masks(tmp_path / "masks", np.where(ignored == 1, 255, masks))
    result = compress.evaluate(Pixels(), tmp_path, image_size=SIZE)
    with torch.no_grad():
        yes = Pixels()(to_tensor(pixels))[:, 0].numpy() > 0
    assert result.metrics == pytest.approx(mask_scores(yes[:, 4:], masks[:, 4:]), abs=1e-6)
    save_masks(tmp_path / "masks", 2 * masks + 1)
    with pytest.raises(compress.CompressError):
        compress.evaluate(Pixels(), tmp_path, image_size=SIZE)


def test_a_smp_unet_with_one_class_is_loaded_as_it_is(tmp_path: Path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    net = smp.Unet("mobilenet_v2", encoder_weights=None, classes=1).eval()
    torch.save(net.state_dict(), tmp_path / "unet.pth")
    overrides = ModelOverrides(mean=[0.0], std=[1.0])
    loaded, card = load_model(tmp_path / "unet.pth", overrides)
    x = torch.rand(2, 3, 32, 32)
    assert (card.task, card.classes, card.threshold) == ("binary_segmentation", 1, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net(x), atol=1e-5, rtol=0)


def test_a_binary_segmenter_is_distilled_exported_and_scored(tmp_path: Path):
    pixels, _ = images_and_masks(tmp_path / "data", 255, count=8)
    with torch.no_grad():
        z = Pixels()(to_tensor(pixels))
    save_masks(tmp_path / "data" / "masks", 255 * (z[:, 0] > 0).numpy())
    result = compress.distill(
        Pixels(), student="deeplab_wrn16_1", unlabeled=tmp_path / "data" / "images", validation=tmp_path / "data",
        method="kd", steps=2, batch_size=4, image_size=SIZE, output_dir=tmp_path / "run",
        settings={"data.views": 1, "training.evaluate_every": 1},
    )  # fmt: skip
    student, card = load_model(tmp_path / "run")
    assert card.task == "binary_segmentation"
    assert set(result.metrics) == {"iou", "dice", "pixel_accuracy"}
    assert result.teacher_metrics is not None
    assert result.teacher_metrics["iou"] == 1

    summary = compress.export(
        tmp_path / "run", tmp_path / "mask.onnx", images=tmp_path / "data" / "images", postprocess="threshold",
        static_batch=True,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(tmp_path / "mask.onnx"))
    with torch.no_grad():
        expected = student(to_tensor(pixels[:1]))[:, 0].numpy() > 0
    (mask,) = session.run(None, {session.get_inputs()[0].name: to_tensor(pixels[:1]).numpy()})
    assert mask.dtype == np.uint8
    assert (mask != expected).mean() < 0.01
    assert summary.artifacts[0].parity.top1_agreement > 0.99
    scores = compress.evaluate(tmp_path / "mask.onnx", tmp_path / "data").metrics
    assert scores == pytest.approx(compress.evaluate(tmp_path / "run", tmp_path / "data").metrics, abs=0.01)


def test_agreement_of_one_logit_counts_decisions():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 1, 20, 20)) - 1
    wrong = np.where(rng.random(z.shape) < 0.05, -z, z)
    parity = compare_outputs(lambda x: x, lambda _: wrong, [z], cut=0.0)
    yes, other = z > 0, wrong > 0
    assert parity.top1_agreement == (yes == other).mean()
    assert parity.positive_agreement == 2 * (yes & other).sum() / (yes.sum() + other.sum())

    silent = compare_outputs(lambda x: x, lambda x: np.full_like(x, -1), [np.where(z > 1.5, z, -1)], cut=0.0)
    assert silent.top1_agreement > 0.9  # of one class per pixel it would be 1
    empty = compare_outputs(lambda x: x, lambda x: np.zeros(x[:, 0].shape, np.uint8), [z], cut=0.0)
    assert empty.positive_agreement == 0
    with pytest.raises(RejectedError):
        check_tolerance(empty, TOLERANCES["int8"])


def test_labels_are_scored_by_image_and_label(tmp_path: Path):
    pixels, truth = labeled_images(tmp_path)
    options: dict[str, Any] = {"image_size": SIZE, "task": "multilabel_classification", "class_names": LABELS}
    with torch.no_grad():
        z = Labels()(to_tensor(pixels)).numpy()
    expected = label_scores(z, truth)
    scores = compress.evaluate(Labels(), tmp_path, **options).metrics
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    expected = label_scores(z, truth, cut=np.log(0.9 / 0.1))
    scores = compress.evaluate(Labels(), tmp_path, threshold=0.9, **options).metrics
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_sigmoid_at_the_end_means_labels(tmp_path: Path):
    pixels, truth = labeled_images(tmp_path)
    network, card = load_model(Sigmoid(), ModelOverrides(image_size=SIZE, class_names=LABELS))
    assert card.task == "multilabel_classification"
    with torch.no_grad():
        z = Labels()(to_tensor(pixels))
        torch.testing.assert_close(network(to_tensor(pixels)), z, atol=1e-5, rtol=0)
    scores = compress.evaluate(Sigmoid(), tmp_path, image_size=SIZE, class_names=LABELS).metrics
    expected = label_scores(z.numpy(), truth)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_one_logit_per_image_is_scored_on_two_folders(tmp_path: Path):
    pixels = [save_images(tmp_path / name, 10, seed) for seed, name in enumerate(("healthy", "ill"))]
    truth = np.repeat([[0], [1]], 10, axis=0)
    with torch.no_grad():
        z = Labels(1)(to_tensor(np.concatenate(pixels))).numpy()
    scores = compress.evaluate(Labels(1), tmp_path, image_size=SIZE).metrics
    assert scores == pytest.approx(label_scores(z, truth), abs=1e-6)
    scores = compress.evaluate(Labels(1), tmp_path, image_size=SIZE, class_names=["healthy"]).metrics
    assert scores == pytest.approx(label_scores(z, 1 - truth), abs=1e-6)


@pytest.mark.parametrize("postprocess", ["none", "sigmoid", "threshold"])
def test_files_with_labels_score_like_the_network(tmp_path: Path, postprocess: Any):
    pixels, truth = labeled_images(tmp_path / "data")
    path = tmp_path / "labels.onnx"
    compress.export(
        Labels(), path, image_size=SIZE, task="multilabel_classification", class_names=LABELS, threshold=0.7,
        postprocess=postprocess, images=tmp_path / "data",
    )  # fmt: skip
    with torch.no_grad():
        z = Labels()(to_tensor(pixels)).numpy()
    cut = np.log(0.7 / 0.3)
    session = onnxruntime.InferenceSession(str(path))
    (output,) = session.run(None, {session.get_inputs()[0].name: to_tensor(pixels).numpy()})
    expected = {"none": z, "sigmoid": 1 / (1 + np.exp(-z)), "threshold": z > cut}[postprocess]
    np.testing.assert_allclose(output.astype(float), expected, atol=1e-5)
    scores = compress.evaluate(path, tmp_path / "data").metrics
    counted = label_scores(z, truth, cut)
    if postprocess == "threshold":
        del counted["map"]
    assert {name: scores[name] for name in counted} == pytest.approx(counted, abs=1e-6)
    prediction = compress.predict(path, tmp_path / "data" / "000.png").predictions[0]
    assert {one.name for one in prediction.classes} == {LABELS[c] for c in range(3) if z[0, c] > cut}


def test_training_on_labels_and_masks_makes_such_models(tmp_path: Path):
    labeled_images(tmp_path / "labels", count=8)
    images_and_masks(tmp_path / "masks", 255, count=8)
    for name, task, metric in (("labels", "multilabel_classification", "f1"), ("masks", "binary_segmentation", "iou")):
        student = "wrn16_1" if name == "labels" else "deeplab_wrn16_1"
        result = compress.train(
            student, labeled=tmp_path / name, validation=tmp_path / name, steps=1, batch_size=4, image_size=SIZE,
            output_dir=tmp_path / f"run {name}",
        )  # fmt: skip
        card = json.loads((tmp_path / f"run {name}" / "best" / "config.json").read_text())
        assert (card["task"], next(iter(result.metrics))) == (task, metric)


def test_what_cannot_be_right_is_refused_in_one_sentence(tmp_path: Path):
    labeled_images(tmp_path / "data", count=4)
    torch.save(Labels(1).state_dict(), tmp_path / "own.pth")
    options: dict[str, Any] = {"image_size": SIZE, "task": "multilabel_classification"}
    with pytest.raises(UsageError):  # several labels for one class per image
        compress.evaluate(Labels(), tmp_path / "data", image_size=SIZE)
    with pytest.raises(UsageError):  # a threshold for a softmax
        compress.evaluate(Labels(), tmp_path / "data", image_size=SIZE, threshold=0.3)
    with pytest.raises(UsageError):  # a softmax over one class
        compress.evaluate(Labels(1), tmp_path / "data", image_size=SIZE, task="classification")
    with pytest.raises(UsageError):  # a method whose generator needs one class per image
        compress.distill(Labels(), student="wrn16_1", method="dafl", steps=1, output_dir=tmp_path / "run", **options)
    with pytest.raises(compress.CompressError):  # a softmax behind independent logits
        compress.export(Labels(), tmp_path / "a.onnx", postprocess="softmax", **options)
    with pytest.raises(compress.CompressError):  # a sigmoid behind classes that exclude each other
        compress.export(Labels(), tmp_path / "a.onnx", postprocess="sigmoid", image_size=SIZE)
    (tmp_path / "data" / "labels.csv").write_text("file,cat,dog,owl\n000.png,1,0,2\n")
    with pytest.raises(UsageError):
        compress.evaluate(Labels(), tmp_path / "data", **options)
