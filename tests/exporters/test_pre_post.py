"""Preprocessing and postprocessing in the file, against Pillow and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from compress.data.decoding import View
from compress.data.embedded import photo_images
from exporters.errors import ExportError
from exporters.onnx_export import export_onnx
from exporters.pre_post import Preprocessing, WithPreprocessing


def net(classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)
    ).eval()


class Seeing(nn.Module):
    """Returns its input pixels."""

    def forward(self, x):
        return x * 255


@pytest.mark.parametrize(
    ("size", "resize"), [((32, 32), None), ((24, 40), None), ((64, 64), 73), ((256, 200), None)], ids=str
)
def test_preprocessing_matches_training_data(size, resize) -> None:
    images = photo_images("train")
    for i in (0, 3, 6):
        picture = images.read_image(i)
        rows, _ = View(size, resize).make_rows(picture, 0, range(1))
        seen = WithPreprocessing(Seeing(), Preprocessing(size, resize))(torch.from_numpy(np.array(picture))[None])
        apart = np.abs(seen[0].permute(1, 2, 0).numpy() - rows[0].astype(float))
        assert apart.max() <= 2, images.name_of(i)  # Pillow rounds its weights as well
        assert (apart > 0).mean() < 0.1


def test_uint8_images_of_every_size(tmp_path: Path) -> None:
    network = net()
    images = torch.rand(20, 3, 32, 32)
    result = export_onnx(
        network,
        torch.zeros(1, 3, 32, 32),
        tmp_path / "a.onnx",
        images=images,
        preprocessing=Preprocessing((32, 32), 36),
    )
    assert (result.preprocess, result.parity.max_rel < 1e-3) == (True, True)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    assert [(one.type, one.shape) for one in session.get_inputs()] == [
        ("tensor(uint8)", ["batch", "height", "width", 3])
    ]
    rng = np.random.default_rng(0)
    for shape in [(1, 50, 70), (3, 33, 32), (2, 200, 90)]:
        pictures = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        rows = [View((32, 32), 36).make_rows(Image.fromarray(one), 0, range(1))[0][0] for one in pictures]
        with torch.no_grad():
            right = network(torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 255)
        (answer,) = session.run(None, {"images": pictures})
        np.testing.assert_allclose(answer, right.numpy(), atol=2e-3)


def test_softmax_and_topk_match_logits(tmp_path: Path) -> None:
    network, images = net(), torch.rand(9, 3, 32, 32)
    with torch.no_grad():
        logits = network(images).double().numpy()
    right = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    export_onnx(network, images[:1], tmp_path / "soft.onnx", postprocess="softmax", exporter="torchscript")
    (result,) = onnxruntime.InferenceSession(str(tmp_path / "soft.onnx")).run(
        ["probabilities"], {"images": images.numpy()}
    )
    np.testing.assert_allclose(result, right, atol=1e-5)
    record = export_onnx(network, images[:1], tmp_path / "top.onnx", postprocess="topk", exporter="torchscript")
    session = onnxruntime.InferenceSession(str(tmp_path / "top.onnx"))
    labels, best = session.run(["labels", "probabilities"], {"images": images.numpy()})
    np.testing.assert_array_equal(labels, np.argsort(-right, axis=1)[:, :5])
    np.testing.assert_allclose(best, -np.sort(-right, axis=1)[:, :5], atol=1e-5)
    assert record.parity.top1_agreement == 1.0
    assert record.parity.max_abs is not None


def test_topk_of_few_classes_and_maps(tmp_path: Path) -> None:
    export_onnx(net(3), torch.zeros(1, 3, 32, 32), tmp_path / "a.onnx", postprocess="topk", exporter="torchscript")
    labels, _ = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).run(
        None, {"images": np.zeros((2, 3, 32, 32), np.float32)}
    )
    assert labels.shape == (2, 3)
    with pytest.raises(ExportError, match="topk"):
        export_onnx(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8), tmp_path / "b.onnx", postprocess="topk")


def test_torchscript_with_preprocessing_raises(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="dynamo"):
        export_onnx(
            net(),
            torch.zeros(1, 3, 32, 32),
            tmp_path / "a.onnx",
            preprocessing=Preprocessing((32, 32)),
            exporter="torchscript",
        )
    assert not list(tmp_path.iterdir())


def test_preprocessing_excludes_dynamic_size(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="dynamic_size and preprocessing"):
        export_onnx(
            net(),
            torch.zeros(1, 3, 32, 32),
            tmp_path / "a.onnx",
            preprocessing=Preprocessing((32, 32)),
            dynamic_size=True,
        )
