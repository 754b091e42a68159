"""From four kinds of own models through the Python API: distill, evaluate, export; files against the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.models import load_model

SIDE = 64
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
Network = Callable[[Tensor], Tensor]


def save_convnext(folder: Path) -> tuple[Path, Network]:
    model = timm.create_model("convnext_atto", num_classes=5).eval()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "convnext.pth.tar")
    return folder / "convnext.pth.tar", model


def save_unet(folder: Path) -> tuple[Path, Network]:
    model = smp.Unet("resnet18", encoder_weights=None, classes=1).eval()
    torch.save(model.state_dict(), folder / "unet.pt")
    return folder / "unet.pt", model


def save_segformer(folder: Path) -> tuple[Path, Network]:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        num_labels=4,
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(folder / "segformer")
    size = {"height": SIDE, "width": SIDE}
    transformers.SegformerImageProcessor(size=size).save_pretrained(folder / "segformer")
    return folder / "segformer", lambda x: F.interpolate(model(x).logits, x.shape[2:], mode="bilinear")


def save_lightning(folder: Path) -> tuple[Path, Network]:
    model = torchvision.models.resnet18(num_classes=6).eval()
    content = {
        "epoch": 3, "global_step": 99, "pytorch-lightning_version": "2.6.1", "loops": {}, "callbacks": {},
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt", model


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "options", "task", "student"),
    [
        (save_convnext, {"image_size": (SIDE, SIDE)}, "classification", "wrn10_1"),
        (save_unet, {"image_size": (SIDE, SIDE), "arch": "smp/unet:resnet18"}, "binary_segmentation", None),
        (save_segformer, {}, "segmentation", None),
        (save_lightning, {"image_size": (SIDE, SIDE)}, "classification", "wrn10_1"),
    ],
    ids=["timm", "smp", "transformers", "lightning"],
)
def test_own_model_through_the_api(tmp_path, pictures, save, options: dict[str, Any], task, student) -> None:
    torch.manual_seed(0)
    path, network = save(tmp_path)
    files = compress.export(path, tmp_path / "teacher.onnx", images=pictures, **options)
    session = onnxruntime.InferenceSession(files.artifacts[0].path)
    x = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = network((x - MEAN) / STD).numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    run = compress.distill(
        path, student=student, unlabeled=pictures, steps=2, batch_size=4, method="kd", device="cpu",
        output_dir=tmp_path / "run", **options,
    )  # fmt: skip
    model, card = load_model(run.best)
    assert (card.task, card.image_size, isinstance(model, nn.Module)) == (task, (SIDE, SIDE), True)
    assert model(x).shape == expected.shape
    (prediction,) = compress.predict(run.best, pictures / "0.png").predictions
    assert prediction.image == str(pictures / "0.png")
