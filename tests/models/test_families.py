"""The built-in classifiers: parameters and feature shapes, C = 100."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.models.card import ModelCard
from compress.models.registry import MODELS, build_model, build_network, infer_task

#: parameters in millions, BatchNorm layers, BatchNorm channels
TABLE = {
    "wrn40_2": (2.255, 37, 2704),
    "wrn40_4": (8.972, 37, 5392),
    "wrn28_10": (36.537, 25, 8976),
    "wrn28_2": (1.479, 25, 1808),
    "wrn40_1": (0.570, 37, 1360),
    "wrn16_2": (0.703, 13, 912),
    "wrn16_1": (0.181, 13, 464),
    "wrn10_1": (0.0837, 7, 240),
    "wrn10_2": (0.3153, 7, 464),
    "resnet18": (11.22, 20, 4800),
    "resnet34": (21.33, 36, 8512),
    "vgg11": (9.28, 8, 2752),
}
#: shapes of the stages' outputs at 32x32
STAGES = {
    "wrn40_2": {"block1": (32, 32, 32), "block2": (64, 16, 16), "block3": (128, 8, 8)},
    "wrn16_1": {"block1": (16, 32, 32), "block2": (32, 16, 16), "block3": (64, 8, 8)},
    "resnet18": {"layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8), "layer4": (512, 4, 4)},
    "vgg11": {"groups.1": (128, 16, 16), "groups.2": (256, 8, 8), "groups.3": (512, 4, 4), "groups.4": (512, 4, 4)},
}


def test_families_are_all_in_the_table():
    assert {name for name in MODELS if infer_task(name) == "classification"} == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_family_parameters_match_paper(name):
    with torch.device("meta"):
        net = build_model(name, classes=100)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    result = (sum(p.numel() for p in net.parameters()) / 1e6, len(norms), sum(m.num_features for m in norms))
    millions, layers, channels = TABLE[name]
    assert result[0] == pytest.approx(millions, rel=2e-3, abs=5e-4)
    assert result[1:] == (layers, channels)


@pytest.mark.parametrize("name", STAGES)
def test_family_stages_match_paper(name):
    net = build_model(name, classes=10).eval()
    result = {}
    for stage in STAGES[name]:
        layer = net.get_submodule(stage)
        layer.register_forward_hook(lambda _, __, y, stage=stage: result.update({stage: tuple(y.shape[1:])}))
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert result == STAGES[name]


@pytest.mark.parametrize("name", ["wrn16_1", "resnet18", "vgg11"])
@pytest.mark.parametrize("size", [28, 32, 64])
def test_families_read_all_input_kinds(name, size):
    for gray in (False, True):
        mean = (0.5,) if gray else (0.5,) * 3
        card = ModelCard(name, classes=3, image_size=(size, size), mean=mean, std=mean, grayscale=gray)
        assert build_network(card).eval()(torch.rand(1, 3, size, size)).shape == (1, 3)


def test_network_normalizes_images():
    card = ModelCard("wrn16_1", classes=3, image_size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    net, x = build_network(card).eval(), torch.rand(2, 3, 32, 32)
    by_hand = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(net(x), net.body(by_hand), atol=1e-6)
    assert not any("normalise" in key for key in net.state_dict())
    gray = build_network(
        ModelCard("wrn16_1", classes=3, image_size=(32, 32), mean=(0.3,), std=(0.4,), grayscale=True)
    ).eval()
    luma = (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:] - 0.3) / 0.4
    assert torch.allclose(gray(x), gray.body(luma), atol=1e-6)
