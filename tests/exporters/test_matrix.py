"""Every kind of network in every format and precision, at batch sizes 1, 2 and 5 and, for maps, at odd sizes too.

The networks are trained for a few steps on real images, because predictions of a random network are near ties that
flip at any rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.embedded import fashion_images, fashion_scene_images
from compress.models.overrides import ModelOverrides
from compress.predictor import untrained_predictor
from exporters.artifacts import SUFFIXES, ExportSettings, Int8Options, export_artifact
from exporters.onnx_export import ReferenceModel, create_reference, write_onnx
from exporters.tensorrt.options import ShapeRanges

ARTEFACTS = [
    (format, precision)
    for format in ("onnx", "tensorrt-rtx", "openvino")
    for precision in ("fp32", "fp16", "int8")
    if (format, precision) != ("openvino", "fp16")  # computes in fp32 on CPUs without fp16
]
IMAGES, COMPARED = 320, 24
#: of training; fewer leave networks that decide by a hair
STEPS = 80


@dataclass(frozen=True)
class Case:
    """A network of the matrix."""

    name: str
    size: int
    dense: bool = False


CASES = [
    Case("wrn16_1", 32),
    Case("torchvision/resnet18", 64),
    Case("torchvision/mobilenet_v3_small", 64),
    Case("timm/efficientnet_lite0", 64),
    Case("deeplabv3_mobilenet_v2", 64, dense=True),
    Case("torchvision/lraspp_mobilenet_v3_large", 64, dense=True),
]


def images_of(case: Case) -> tuple[Tensor, Tensor]:
    """Return real images [n, 3, h, w] in [0, 1] and their targets."""
    result = fashion_scene_images("train") if case.dense else fashion_images("train")
    chosen = range(IMAGES // 4 if case.dense else IMAGES)
    pixels = np.stack([np.asarray(result.read_image(i).resize((case.size, case.size))) for i in chosen])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if case.dense:
        masks = torch.from_numpy(np.stack([np.asarray(result.read_mask(i)) for i in chosen]).astype(np.int64))
        return images, F.interpolate(masks[:, None].float(), size=case.size, mode="nearest")[:, 0].long()
    assert result.labels is not None
    return images, torch.from_numpy(result.labels[: len(chosen)])


def trained(case: Case) -> tuple[nn.Module, Tensor]:
    """Return the network after STEPS training steps, and the images."""
    torch.manual_seed(0)
    images, right = images_of(case)
    classes = int(right.max()) + 1
    net = untrained_predictor(
        case.name, ModelOverrides(classes=classes, image_size=(case.size, case.size))
    ).network.train()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1  # some average over a hundred steps, more than are trained
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for step in range(STEPS):
        chosen = torch.randperm(len(images))[: 8 if case.dense else 32]
        loss = F.cross_entropy(net(images[chosen]), right[chosen])
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        message = net.eval()(images[-COMPARED:]).argmax(1)
    assert len(message.unique()) >= 3  # the prediction depends on the image
    assert (message == right[-COMPARED:]).float().mean() > 0.4
    return net, images


@cache
def calls(case: Case, folder: Path) -> tuple[ReferenceModel, Path]:
    net, images = trained(case)
    reference = create_reference(net, images[:1], images=images[-COMPARED:], dynamic_size=case.dense)
    base = folder / f"{case.name.replace('/', '-')}.onnx"
    write_onnx(reference, base, metadata={"precision": "fp32"})
    return reference, base


def calibration(case: Case) -> Callable[[], Iterator[np.ndarray]]:
    images, _ = images_of(case)
    return lambda: (part.numpy() for part in images[:40].split(8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("matrix")


def marked(case: Case) -> object:
    return pytest.param(case, id=case.name, marks=[] if case.name == "wrn16_1" else [pytest.mark.slow])


@pytest.mark.parametrize(("format", "precision"), ARTEFACTS, ids=[f"{f}-{p}" for f, p in ARTEFACTS])
@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_network_exports_and_verifies(case: Case, format, precision, folder: Path, tmp_path: Path) -> None:
    reference, base = calls(case, folder)
    assert {1, 2, 5} <= set(reference.batch_sizes)
    shapes = {batch.shape[2:] for batch in reference.batches}
    assert len(shapes) == (3 if case.dense else 1)
    sizes = ((32, 32), (case.size, case.size), (128, 128)) if case.dense else None
    settings = ExportSettings(
        int8=Int8Options(calibration(case), calibrator="minmax"), shapes=ShapeRanges((1, 1, 8), sizes)
    )
    result = export_artifact(reference, base, tmp_path / f"net{SUFFIXES[format]}", format, precision, settings)
    assert result.parity.images >= COMPARED
    assert result.parity.top1_agreement >= (1.0 if precision == "fp32" else 0.9)
    assert (result.unverified is None) == (format != "tensorrt-rtx" or torch.cuda.is_available())
