"""Layer tables of shared, nested and called modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.models.registry import build_model
from profiles.flops.counter import count_flops
from profiles.flops.layers import Layer, limit_depth, select_subtree


class Shared(nn.Module):
    """A layer under three names, a part under two, a container that is never called, and work between the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.first = nn.Sequential(self.layer, nn.ReLU())
        self.list = nn.ModuleList([self.layer, nn.Linear(4, 4, bias=False)])
        self.again = self.first
        self.idle = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.first(x))
        x = self.layer(self.list[1](x))
        return x @ x.t()


def rows(net: nn.Module, x: Tensor) -> dict[str, Layer]:
    return {layer.path: layer for layer in count_flops(net, (x,)).layers}


def test_operations_belong_to_their_caller() -> None:
    result = rows(Shared(), torch.zeros(2, 4))
    assert {path: (row.macs, row.calls) for path, row in result.items()} == {
        "": (4 * 32 + 16, 1),
        "layer": (32, 1),
        "first": (64, 2),
        "first.0": (64, 2),
        "first.1": (0, 2),
        "list": (32, 0),
        "list.1": (32, 1),
        "idle": (0, 0),
    }
    assert (result[""].own_macs, result[""].own_activations) == (16, 4)


def test_shared_parameters_in_layer_table() -> None:
    result = rows(Shared(), torch.zeros(2, 4))
    assert {
        path: (row.params, row.shared_params) for path, row in result.items() if row.params + row.shared_params
    } == {
        "": (20 + 16 + 10, 0),
        "layer": (20, 0),
        "first": (0, 20),
        "first.0": (0, 20),
        "list": (16, 20),
        "list.1": (16, 0),
        "idle": (10, 0),
    }


def test_tied_weights_are_counted_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    result = rows(net, torch.zeros(1, 4))
    assert [(result[path].params, result[path].shared_params) for path in ("", "0", "1")] == [(16, 0), (16, 0), (0, 16)]
    assert result["1"].macs == 16


def test_parent_totals_include_children() -> None:
    result = rows(build_model("torchvision/mobilenet_v3_small", classes=10), torch.zeros(1, 3, 32, 32))
    for path, row in result.items():
        below = [other for name, other in result.items() if name and name.rpartition(".")[0] == path]
        assert row.macs == row.own_macs + sum(other.macs for other in below)
        assert row.params == row.own_params + sum(other.params for other in below)
        assert row.activations == row.own_activations + sum(other.activations for other in below)


def test_direct_forward_belongs_to_caller() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.one.forward(x), self.two.weight)

    result = rows(Around(), torch.zeros(1, 4))
    assert (result[""].own_macs, result["one"].calls, result["one"].macs, result["two"].macs) == (32, 0, 0, 0)


def test_foreign_layer_keeps_its_path() -> None:
    class Caller(nn.Module):
        def __init__(self, other: nn.Module) -> None:
            super().__init__()
            self.others = [other]  # not a child

        def forward(self, x: Tensor) -> Tensor:
            return self.others[0](x)

    layer = nn.Linear(4, 4)
    result = rows(nn.Sequential(Caller(layer), layer), torch.zeros(1, 4))
    assert {path: (row.macs, row.calls) for path, row in result.items()} == {"": (32, 1), "0": (0, 1), "1": (32, 2)}


def test_layer_table_limits() -> None:
    result = count_flops(build_model("wrn16_1", classes=10), (torch.zeros(1, 3, 32, 32),)).layers
    assert [layer.path for layer in limit_depth(result, 1) if layer.has_cost] == [
        "", "conv1", "block1", "block2", "block3", "bn", "fc",
    ]  # fmt: skip
    part = select_subtree(result, "block1")
    whole = next(layer for layer in result if layer.path == "block1")
    assert (part[0].path, part[0].depth, part[0].macs) == ("", 0, whole.macs)
    assert all(layer.path in ("", "0", "1") for layer in limit_depth(part, 1))


def test_untraceable_program_has_no_layers() -> None:
    script = torch.jit.trace(nn.Linear(4, 4).eval(), torch.zeros(1, 4))
    assert isinstance(script, nn.Module)
    result = count_flops(script, (torch.zeros(1, 4),))
    assert (result.layers, result.activations, result.products) == ((), None, 16)


def test_counting_removes_hooks() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight.requires_grad_(False)
    count_flops(net, (torch.zeros(1, 4),))
    assert [parameter.requires_grad for parameter in net.parameters()] == [False, True, True, True]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
