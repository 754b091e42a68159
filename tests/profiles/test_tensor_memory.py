"""Tensor memory against numbers by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from profiles.latency.tensor_memory import measure_memory, peak_memory_with_weights


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(100, 200, bias=False), nn.ReLU(), nn.Linear(200, 10, bias=False))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_peak_of_live_tensors(device: str) -> None:
    with torch.device(device):
        net, x = chain(), torch.zeros(50, 100)
    result = measure_memory(net, (x,))
    assert result.weight_bytes == 4 * (100 * 200 + 200 * 10)
    assert result.activation_peak_bytes == 4 * 50 * (200 + 200)
    assert result.peak_bytes == result.weight_bytes + 4 * 50 * 100 + result.activation_peak_bytes


def test_views_take_no_memory() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), nn.ReLU(inplace=True), nn.Unflatten(1, (8, 8)))
    assert measure_memory(net, (torch.zeros(2, 8, 8),)).activation_peak_bytes == 4 * 2 * 64


def test_shared_weights_are_counted_once() -> None:
    linear = nn.Linear(64, 64, bias=False)
    assert measure_memory(nn.Sequential(linear, linear), (torch.zeros(1, 64),)).weight_bytes == 4 * 64 * 64


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its high-water mark")
def test_repeated_peak_is_equal() -> None:
    script = (
        "import torch\nfrom profiles.latency.tensor_memory import peak_memory\n"
        "def small(): return len([torch.ones(1 << 18) for _ in range(100)])\n"
        "print([peak_memory(small, torch.device('cpu')) for _ in range(3)])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert result == "[None, None, None]" or all(9e7 < size < 2e8 for size in numbers(result))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.strip("[]").split(",")]


def test_peak_includes_existing_weights(monkeypatch) -> None:
    monkeypatch.setattr("profiles.latency.tensor_memory.peak_resident_memory", lambda call: call() or 1000)
    net, ran = chain(), []
    assert peak_memory_with_weights(lambda: ran.append(1), module=net, device="cpu") == 1000 + 4 * (
        100 * 200 + 200 * 10
    )
    assert ran == [1]
    monkeypatch.setattr("profiles.latency.tensor_memory.peak_resident_memory", lambda call: call())
    assert peak_memory_with_weights(lambda: None, module=net, device="cpu") is None


@pytest.mark.gpu
def test_gpu_peak_is_independent_of_placement() -> None:
    net, x = chain(), torch.zeros(50, 100)

    def run() -> None:
        net.to("cuda")(x.to("cuda")).cpu()

    first, second = (peak_memory_with_weights(run, module=net, device="cuda") for _ in range(2))
    assert first is not None
    assert first == second
    assert first >= 4 * (100 * 200 + 200 * 10 + 50 * 100)
