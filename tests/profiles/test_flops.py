"""FLOP counts against formulas, publications and an independent counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models as torchvision

from compress.models.registry import build_model
from profiles.flops.counter import count_flops, count_products


def image(size: int = 32) -> tuple[torch.Tensor]:
    return (torch.zeros(1, 3, size, size),)


def wrn_macs(depth: int, width: int, classes: int) -> int:
    """Convolutions and classifier of a Wide ResNet on 32x32 images, written out from the paper's Table 1."""
    blocks, widths, side = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width], 32
    total = 3 * 16 * 9 * side * side
    for group in (1, 2, 3):
        into, out = widths[group - 1], widths[group]
        side = 32 // 2 ** (group - 1)
        total += into * out * 9 * side**2 + (blocks * 2 - 1) * out * out * 9 * side**2
        total += into * out * side**2 if into != out else 0
    return total + widths[3] * classes


@pytest.mark.parametrize(("name", "depth", "width", "giga"), [("wrn40_2", 40, 2, 0.329), ("wrn16_1", 16, 1, 0.027)])
def test_wide_resnets_match_the_formula(name: str, depth: int, width: int, giga: float) -> None:
    result = count_flops(build_model(name, classes=100), image())
    assert result.macs == pytest.approx(giga * 1e9, rel=0.01)
    assert result.macs_torch == wrn_macs(depth, width, 100)
    assert result.by_operator["conv"] + result.by_operator["linear"] == wrn_macs(depth, width, 100)
    assert result.unsupported == {}


def test_resnet50_matches_published_count() -> None:
    result = count_flops(torchvision.resnet50(weights=None), image(224))
    assert result.macs == pytest.approx(4.14e9, rel=0.01)
    assert result.flops == 2 * result.macs
    assert result.params == 25_557_032
    assert result.macs_torch == result.products == pytest.approx(result.macs, rel=0.01)
    assert result.unsupported == {}


def test_attention_is_counted_in_all_forms() -> None:
    heads, tokens, width = 4, 10, 32
    layer = nn.MultiheadAttention(width, heads, batch_first=True).eval()

    class Itself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, x, x, need_weights=False)[0]

    result = count_flops(Itself(), (torch.zeros(1, tokens, width),))
    by_hand = 4 * tokens * width * width + 2 * tokens * tokens * width
    assert result.macs == by_hand
    assert result.macs_torch == by_hand
    assert result.unsupported == {}


def test_products_unknown_to_fvcore_are_counted() -> None:
    class Products(nn.Module):
        def forward(self, x):
            return torch.baddbmm(x, x, x).sum() + torch.mv(x[0], x[0, 0]).sum()

    assert count_flops(Products(), (torch.zeros(2, 6, 6),)).macs == 2 * 6 * 6 * 6 + 6 * 6


def test_uncountable_operator_is_reported() -> None:
    class Solver(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x) @ x

    result = count_flops(Solver(), (torch.eye(4),))
    assert list(result.unsupported) == ["aten::linalg_inv"]
    assert result.macs == 64


def test_shared_parameters_are_counted_once() -> None:
    linear = nn.Linear(8, 8, bias=False)
    result = count_flops(nn.Sequential(linear, linear), (torch.zeros(1, 8),))
    assert (result.params, result.macs) == (64, 128)


def test_counting_restores_modes() -> None:
    norm = nn.BatchNorm2d(4).eval()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten())
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    count_flops(net, image(8))
    assert [part.training for part in net.modules()] == [True, True, False, True]
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_products_on_the_meta_device() -> None:
    with torch.device("meta"):
        net, example = build_model("wrn40_2", classes=100), image()
    assert count_products(net, example) == wrn_macs(40, 2, 100)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_untraceable_program_is_counted_by_torch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 5)).eval()
    script = torch.jit.trace(net, image(8))
    assert isinstance(script, nn.Module)
    result = count_flops(script, image(8))
    assert (result.counter, result.macs) == ("torch", 3 * 4 * 9 * 64 + 4 * 64 * 5)
    assert result.macs == result.macs_torch == count_flops(net, image(8)).macs
