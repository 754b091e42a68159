"""MACs of single operators against formulas and PyTorch's counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiles.flops.counter import count_flops
from profiles.flops.operators import contraction_macs, is_free


class Does(nn.Module):
    """A network that does one thing."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


X = torch.zeros(3, 4, 5)
IMAGE = torch.zeros(1, 4, 8, 8)
CONVOLUTIONS = {
    "padded to the same size": (nn.Conv2d(4, 6, 3, padding="same"), 4 * 6 * 9 * 64),
    "padded in a circle": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), 4 * 6 * 9 * 64),
    "in groups, with strides": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 2 * 6 * 9 * 16),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2), 4 * 6 * 9 * 16),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), 4 * 6 * 9 * 64),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), 2 * 6 * 9 * 64),
    "without a batch": (nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(4, 6, 3)), 4 * 6 * 9 * 36),
}
PRODUCTS = {
    "matrix by matrices": (lambda x: x[0] @ x.mT, 3 * 4 * 5 * 4),
    "matrices by matrix": (lambda x: x @ x[0].mT, 3 * 4 * 5 * 4),
    "matrices by matrices": (lambda x: x @ x.mT, 3 * 4 * 5 * 4),
    "matrices by vector": (lambda x: x @ x[0, 0], 3 * 4 * 5),
    "matrix by vector": (lambda x: torch.mv(x[0], x[0, 0]), 4 * 5),
    "vector by vector": (lambda x: x[0, 0] @ x[0, 0], 5),
    "vector plus matrix by vector": (lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 0]), 4 * 5),
    "matrix plus matrix by matrix": (lambda x: torch.addmm(x[0, :, :4], x[0], x[0].mT), 4 * 5 * 4),
    "matrices plus matrices by matrices": (lambda x: torch.baddbmm(x[:, :, :4], x, x.mT), 3 * 4 * 5 * 4),
    "tensordot": (lambda x: torch.tensordot(x, x, ((1, 2), (1, 2))), 3 * 3 * 4 * 5),  # pyright: ignore[reportArgumentType]
    "inner": (lambda x: torch.inner(x[0], x[0]), 4 * 4 * 5),
    "einsum of matrices": (lambda x: torch.einsum("bid,bjd->bij", x, x), 3 * 4 * 4 * 5),
    "einsum with an ellipsis": (lambda x: torch.einsum("...id,jd->...ij", x, x[0]), 3 * 4 * 4 * 5),
    "einsum that sums an index first": (lambda x: torch.einsum("ij,ik->k", x[0], x[0]), 4 * 5),
    "einsum that only multiplies": (lambda x: torch.einsum("ij,ij->ij", x[0], x[0]), 0),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 3 * 4 * 4 * (5 + 5)),
}
OTHERS = {
    "BatchNorm": (nn.BatchNorm2d(4), 2 * 256),
    "BatchNorm without weights": (nn.BatchNorm2d(4, affine=False), 256),
    "LayerNorm": (nn.LayerNorm(8), 5 * 256),
    "LayerNorm without weights": (nn.LayerNorm(8, elementwise_affine=False), 4 * 256),
    "GroupNorm": (nn.GroupNorm(2, 4), 5 * 256),
    "InstanceNorm": (nn.InstanceNorm2d(4, affine=True), 5 * 256),
    "RMSNorm": (nn.RMSNorm(8), 3 * 256),
    "pooling by averages": (nn.AvgPool2d(2), 256),
    "global pooling": (nn.AdaptiveAvgPool2d(1), 256),
    "pooling by the greatest": (nn.MaxPool2d(2), 0),
    "nearest neighbour": (nn.Upsample(scale_factor=2), 4 * 256),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), 4 * 4 * 256),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), 16 * 4 * 256),
    "element by element": (Does(lambda x: F.gelu(x * 2 + 1).softmax(1).round().mean()), 0),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_macs(name: str) -> None:
    net, macs = CONVOLUTIONS[name]
    result = count_flops(net, (IMAGE,))
    assert (result.macs, result.macs_torch, result.unsupported) == (macs, macs, {})


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_macs(name: str) -> None:
    call, macs = PRODUCTS[name]
    result = count_flops(Does(call), (X,))
    assert (result.macs, result.macs_torch, result.unsupported) == (macs, macs, {})


@pytest.mark.parametrize("name", OTHERS)
def test_operators_only_fvcore_counts(name: str) -> None:
    net, macs = OTHERS[name]
    result = count_flops(net, (IMAGE,))
    assert (result.macs, result.macs_torch, result.unsupported, result.products) == (macs, 0, {}, 0)


def test_deformable_convolution_macs() -> None:
    from torchvision.ops import DeformConv2d

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = DeformConv2d(4, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, torch.zeros(1, 18, 6, 6))

    result = count_flops(Deformed(), (IMAGE,))
    assert (result.macs, result.macs_torch) == (4 * 6 * 9 * 36, 0)


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_macs(layer: type, gates: int) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(5, 7, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    steps = 3 * 4
    result = count_flops(Read(), (X,))
    assert result.macs == steps * 2 * gates * ((5 * 7 + 7 * 7) + (14 * 7 + 7 * 7))
    assert (result.macs_torch, result.activations, result.unsupported) == (result.macs, steps * 14, {})


@pytest.mark.parametrize("path", [None, [0, 1, 0, 1], [1, 2, 0, 1]])
def test_einsum_follows_its_path(path: list[int] | None) -> None:
    i, j, k, m = 3, 7, 5, 2
    left_first, right_first = i * j * k + i * k * m, j * k * m + i * j * m
    result = contraction_macs("ij,jk,km->im", [[i, j], [j, k], [k, m]], [i, m], path)
    assert result == (right_first if path == [1, 2, 0, 1] else left_first)


def test_einsum_without_arrow() -> None:
    assert contraction_macs("ij,jk", [[3, 7], [7, 5]], [3, 5], None) == 3 * 7 * 5


def test_einsum_with_ellipsis_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="ellipsis among 3 operands"):
        contraction_macs("...ij,jk,kl->...il", [[3, 3], [3, 3], [3, 3]], [3, 3], None)


def test_autograd_function_is_reported() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ x.mT

    result = count_flops(Does(Own.apply), (X,))
    assert list(result.unsupported) == ["prim::PythonOp.Own"]
    assert (result.products, result.macs_torch) == (0, 3 * 4 * 5 * 4)


def test_in_place_operators_are_free() -> None:
    assert is_free("aten::add_")
    assert is_free("prim::Constant")
    assert not is_free("prim::PythonOp.Own")
    assert not is_free("aten::linalg_inv")
    assert not is_free("aten::convolution")
