"""FLOPs by input size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.models.registry import build_model
from profiles.flops import input_size
from profiles.flops.input_size import InputSizeCost, count_flops_by_size, describe_growth, scaling_exponent


class Attends(nn.Module):
    """Between all places of an image; and a head that costs the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.conv(x).flatten(2).mT
        return self.head(F.scaled_dot_product_attention(positions, positions, positions).mean(1))


def test_cost_by_size_matches_formula() -> None:
    result = count_flops_by_size(Attends(), [(4, 4), (8, 4), (16, 16)])
    assert [row.macs for row in result] == [12 * n + 8 * n * n + 16 for n in (16, 32, 256)]
    assert [row.flops for row in result] == [2 * (row.macs or 0) for row in result]
    assert [row.activations for row in result] == [4 * n + (n * n + 4 * n) + 4 for n in (16, 32, 256)]


def test_nonlinear_growth_is_described() -> None:
    base, large = count_flops_by_size(Attends(), [(4, 4), (16, 16)])
    assert describe_growth([large], base) == [
        "attention grows as pixels to the power of 2.00: 90.8% of the cost at 4x4, 99.4% at 16x16",
        "linear costs the same at every size: 0.7% of the cost at 4x4, 0.0% at 16x16",
    ]


def test_convolutions_are_proportional() -> None:
    base, large = count_flops_by_size(build_model("wrn16_1", classes=10), [(32, 32), (64, 32)])
    assert scaling_exponent(base.macs or 0, large.macs or 0, base.pixels, large.pixels) == pytest.approx(1, abs=1e-3)
    assert describe_growth([large], base) == []


def test_equal_pixels_have_no_exponent() -> None:
    assert scaling_exponent(5, 5, 16, 16) is None
    assert scaling_exponent(0, 5, 16, 32) is None
    assert (
        describe_growth([InputSizeCost((2, 8), 5, 10, 1, {"conv": 5})], InputSizeCost((4, 4), 5, 10, 1, {"conv": 5}))
        == []
    )


def test_refused_size_stops_no_other() -> None:
    class Choosy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2] == 8, "Expected 8 rows.\nAnd more."
            return x @ x.mT

    refused, counted = count_flops_by_size(Choosy(), [(4, 4), (8, 8)])
    assert (refused.macs, refused.error) == (None, "the network does not accept it: Expected 8 rows")
    assert (counted.macs, counted.error) == (3 * 8 * 8 * 8, "")


def test_error_without_message_has_its_type() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    assert count_flops_by_size(Silent(), [(4, 4)])[0].error == "the network does not accept it: ZeroDivisionError"


def test_too_large_kernel_is_an_error() -> None:
    assert "Kernel size" in count_flops_by_size(nn.Conv2d(3, 4, 5), [(4, 4)])[0].error


def test_too_large_size_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_size, "available_memory", lambda: 10**9)
    row = count_flops_by_size(Attends(), [(1000, 1000)], pixel_bytes=2048)[0]
    assert row.macs is None
    assert "1.0 GB free" in row.error
    assert count_flops_by_size(Attends(), [(4, 4)], pixel_bytes=2048)[0].macs
    monkeypatch.setattr(input_size, "available_memory", lambda: None)
    assert count_flops_by_size(Attends(), [(4, 4)], pixel_bytes=1e12)[0].macs


def test_untraceable_program_by_size() -> None:
    script = torch.jit.trace(nn.Conv2d(3, 4, 1).eval(), torch.zeros(1, 3, 4, 4))
    assert isinstance(script, nn.Module)
    (row,) = count_flops_by_size(script, [(4, 8)])
    assert (row.macs, row.activations, row.by_operator) == (12 * 32, None, {"products": 12 * 32})
