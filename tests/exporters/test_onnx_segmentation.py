"""Segmentation networks: logits or labels, any height and width, compared per pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exporters.errors import ExportError
from exporters.loading import load
from exporters.onnx_export import export_onnx
from exporters.parity import compare_outputs
from exporters.pre_post import WithPostprocessing

EXAMPLE = torch.zeros(1, 3, 16, 24)


class Strided(nn.Module):
    """Output stride 8, image pooling, logits resized to the input's size, as in DeepLab."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.down = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(3)])
        self.norm = nn.BatchNorm2d(8)
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x):
        deep = self.norm(self.down(x)).relu()
        whole = F.interpolate(self.whole(deep), size=deep.shape[2:], mode="bilinear", align_corners=False)
        small = self.head(torch.cat([deep, whole], 1))
        return F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


class Halving(nn.Module):
    """Adds a map to itself after halving and doubling, which needs even sizes."""

    def forward(self, x):
        return x + F.interpolate(F.max_pool2d(x, 8), scale_factor=8)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Strided().eval()


def answer(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"images": x.numpy()})
    return result


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_dynamic_size_outputs_match(tmp_path: Path, net, exporter) -> None:
    result = export_onnx(net, EXAMPLE, tmp_path / "a.onnx", exporter=exporter, dynamic_size=True)
    for shape in ((1, 16, 24), (2, 65, 97), (3, 33, 17), (1, 128, 40)):
        x = torch.rand(shape[0], 3, *shape[1:])
        with torch.no_grad():
            np.testing.assert_allclose(answer(tmp_path / "a.onnx", x), net(x).numpy(), rtol=1e-4, atol=1e-5)
    assert result.dynamic_size
    assert result.parity.miou == result.parity.top1_agreement == 1.0
    assert load(tmp_path / "a.onnx").input_size is None


@pytest.mark.parametrize("size", [(16, 24), (21, 30)])
def test_argmax_returns_uint8_labels(tmp_path: Path, net, size) -> None:
    example = torch.zeros(1, 3, *size)
    result = export_onnx(net, example, tmp_path / "a.onnx", exporter="torchscript", postprocess="argmax")
    x = torch.rand(4, 3, *size)
    labels = answer(tmp_path / "a.onnx", x)
    with torch.no_grad():
        assert (labels == net(x).argmax(1).numpy()).mean() > 0.999
    assert (labels.dtype, labels.shape) == (np.uint8, (4, *size))
    assert (result.postprocess, result.parity.max_abs, result.parity.max_rel) == ("argmax", None, None)
    assert result.parity.miou > 0.999
    runner = load(tmp_path / "a.onnx")
    assert (runner.returns_labels, runner.predicts_maps, runner.classes) == (True, True, None)
    assert [o.name for o in onnx.load(tmp_path / "a.onnx").graph.output] == ["labels"]


def test_different_labels_are_rejected(tmp_path: Path, net, monkeypatch) -> None:
    from exporters import torch_exporters as module

    right = module.export_torchscript

    def wrong(network, *arguments):
        other = Strided().eval()
        return right(WithPostprocessing(other, "argmax", 3), *arguments)

    monkeypatch.setitem(module.EXPORTERS, "torchscript", wrong)
    with pytest.raises(ExportError, match=r"100\.00%"):
        export_onnx(net, EXAMPLE, tmp_path / "a.onnx", exporter="torchscript", postprocess="argmax")
    assert list(tmp_path.iterdir()) == []


def test_even_sizes_only_raises(tmp_path: Path) -> None:
    export_onnx(Halving(), EXAMPLE, tmp_path / "a.onnx", exporter="torchscript")
    with pytest.raises(ExportError, match="17x37"):
        export_onnx(Halving(), EXAMPLE, tmp_path / "b.onnx", dynamic_size=True)


def test_argmax_with_too_many_classes(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="found 300 classes"):
        export_onnx(Strided(300), EXAMPLE, tmp_path / "a.onnx", postprocess="argmax")


def test_agreement_and_miou_of_maps() -> None:
    right = np.array([[[0, 0], [1, 1]]])
    message = np.array([[[0, 1], [1, 1]]], np.uint8)
    logits = np.eye(3)[right].transpose(0, 3, 1, 2) * 4
    batch = [np.zeros((1, 3, 2, 2), np.float32)]
    result = compare_outputs(lambda x: logits, lambda x: message, batch)
    assert (result.max_abs, result.max_rel, result.top1_agreement) == (None, None, 0.75)
    assert result.miou == pytest.approx((1 / 2 + 2 / 3) / 2)
    other = np.eye(3)[message].transpose(0, 3, 1, 2) * 4
    again = compare_outputs(lambda x: logits, lambda x: other, batch)
    assert (again.max_abs, again.max_rel, again.miou) == (4.0, 1.0, result.miou)
    with pytest.raises(ValueError, match="found label 9"):
        compare_outputs(lambda x: logits, lambda x: message + 8, batch)
