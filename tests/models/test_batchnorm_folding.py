"""A folded network has the outputs of the original."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn

from compress.errors import UsageError
from compress.models.batchnorm_folding import find_foldable_pairs, fold_batchnorm
from compress.models.card import ModelCard

SIZE = (32, 32)


def trained(architecture: str) -> nn.Module:
    """Random weights, with BatchNorm scales and statistics that are not the initial ones."""
    net = tiny.random_network(1, ModelCard(architecture, 5, SIZE))
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


#: architecture -> BatchNorm layers before and after: WRN normalises before it convolves, so half of them stay
COUNTS = {
    "wrn16_2": (13, 6),
    "resnet18": (20, 0),
    "vgg11": (8, 0),
    "tiny:small": (2, 0),
    "deeplab_wrn16_1": (17, 7),
    "torchvision/mobilenet_v2": (52, 0),
}


@pytest.mark.parametrize("architecture", COUNTS)
def test_folding_keeps_outputs_and_original(architecture):
    net = trained(architecture)
    before = copy.deepcopy(net.state_dict())
    made = fold_batchnorm(net, SIZE)
    assert (norms(net), norms(made)) == COUNTS[architecture]
    assert tiny.state_differences(before, net.state_dict()) == []
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(made(x), net(x), rtol=1e-4, atol=1e-4 * float(net(x).abs().max()))
        exact = net.double()(x.double())
        off = (fold_batchnorm(net, SIZE)(x.double()) - exact).abs().max() / exact.abs().max()
    assert off < 1e-10


def test_folding_keeps_input_gradients():
    net = trained("wrn16_2").double()
    made = fold_batchnorm(net, SIZE)
    slopes = []
    for one in (net, made):
        x = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x.requires_grad_(True)
        one(x).square().sum().backward()
        assert x.grad is not None
        slopes.append(x.grad)
    assert (slopes[0] - slopes[1]).abs().max() < 1e-10 * slopes[0].abs().max()


class Awkward(nn.Module):
    """Four convolutions that must not be folded into, and `plain`, which may."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.shared, self.weighed, self.plain = (nn.Conv2d(3, 3, 3, 1, 1) for _ in range(4))
        self.hooked = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, 1, 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(6))
        for norm in self.norms:
            nn.init.uniform_(norm.running_var, 0.5, 2)  # pyright: ignore[reportArgumentType]

    def forward(self, x):
        once = self.read(x)
        x = once.relu() + self.norms[0](once)
        x = self.norms[2](self.shared(self.norms[1](self.shared(x))))
        x = self.norms[3](self.weighed(x)) * self.weighed.weight.mean()
        return self.norms[5](self.plain(self.norms[4](self.hooked(x))))


def test_shared_layers_are_not_folded():
    net = Awkward().eval().double()
    assert find_foldable_pairs(net, SIZE) == [("plain", "norms.5")]
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(fold_batchnorm(net, SIZE)(x), net(x), rtol=1e-10, atol=1e-12)


def test_batch_statistics_are_not_folded():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert find_foldable_pairs(net, SIZE) == []


def test_nothing_to_fold_is_refused():
    conv = nn.Conv2d(3, 3, 3)
    scripted = torch.jit.trace(nn.Sequential(conv, nn.BatchNorm2d(3)).eval(), torch.rand(1, 3, 8, 8))
    for net in (conv, scripted):
        with pytest.raises(UsageError, match=r"^teachers\.fold_batchnorm"):
            fold_batchnorm(net, SIZE)  # pyright: ignore[reportArgumentType]
