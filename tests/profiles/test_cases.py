"""Benchmark cases: loading, example images, and the way into a child process."""

from __future__ import annotations

import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import exporters
import profiles
from compress.errors import CompressError, UsageError
from compress.resources import usable_cores
from exporters.onnx_export import export_onnx
from profiles.latency import cases
from profiles.latency.cases import BenchmarkCase, NetworkSource, benchmark, benchmark_cases, create_candidate
from profiles.latency.scenarios import ScenarioError, ScenarioSettings


def create_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """float32 [batch, 3, 8, 10] -> 4 logits."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    export_onnx(create_network(), torch.zeros(1, 3, 8, 10), path, exporter="torchscript")
    return path


def test_candidate_of_a_file(net: Path) -> None:
    one = create_candidate(net, None, 2, threads=1)
    assert one.example.shape == (2, 3, 8, 10)
    assert (one.batch_size, one.threads, one.runtime, one.device, one.precision) == (2, 1, "onnxruntime", "cpu", "fp32")
    assert one.load_ms is not None
    assert one.first_call_ms is not None
    assert one.gpu_stages is None


def test_candidate_of_a_network() -> None:
    with cases.preserve_threads():
        one = create_candidate(create_network(), (4, 6), 3)
    assert one.example.shape == (3, 3, 4, 6)
    assert (one.runtime, one.threads, one.load_ms) == ("torch", usable_cores(), None)


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({"input_size": (8, 10)}, None, (2, 3, 8, 10)),
        ({"channels": 1}, (4, 5), (2, 1, 4, 5)),
        ({"expects_uint8": True}, (4, 5), (2, 4, 5, 3)),
    ],
)
def test_random_images_fit_the_model(changes: dict[str, Any], size: Any, expected: tuple[int, ...]) -> None:
    model = {"input_size": None, "channels": 3, "batch_range": (1, None), "expects_uint8": False} | changes
    images = cases.random_images(SimpleNamespace(**model), 2, size, name="net")  # pyright: ignore[reportArgumentType]
    assert images.shape == expected
    assert images.dtype == ("uint8" if "expects_uint8" in changes else "float32")


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, None),
        ({"input_size": (8, 10)}, (4, 5)),
        ({"batch_range": (1, 1)}, (4, 5)),
        ({"batch_range": (4, 8)}, (4, 5)),
    ],
)
def test_unsuitable_images_are_a_usage_error(changes: dict[str, Any], size: Any) -> None:
    model = {"input_size": None, "channels": 3, "batch_range": (1, None), "expects_uint8": False} | changes
    with pytest.raises(UsageError, match="net"):
        cases.random_images(SimpleNamespace(**model), 2, size, name="net")  # pyright: ignore[reportArgumentType]


def test_runners_are_benchmarked_by_name(net: Path) -> None:
    with exporters.load(net, threads=1) as runner:
        latencies = benchmark({"a": runner, "b": runner}, batch_size=2, duration_s=0.02)
    assert [(name, one.batch_size) for name, one in latencies.items()] == [("a", 2), ("b", 2)]


def test_candidate_is_recreated_from_json(net: Path) -> None:
    for model, source in ((net, None), (create_network(), NetworkSource("test_cases:create_network"))):
        case = BenchmarkCase("net", model, (8, 10), 2, threads=1, network_source=source)
        arguments = json.loads(json.dumps(case.candidate_spec().arguments))
        with cases.preserve_threads():
            one = cases.recreate_candidate(**arguments)
        assert one.example.shape == (2, 3, 8, 10)
    with pytest.raises(UsageError):
        BenchmarkCase("net", create_network()).candidate_spec()


def test_failed_scenario_stops_no_other(net: Path, monkeypatch) -> None:
    def run_scenario(*_: Any, **__: Any) -> None:
        raise ScenarioError("it died.")

    monkeypatch.setattr(cases, "run_scenario", run_scenario)
    one = [BenchmarkCase("net", net, batch_size=2, threads=1)]
    scenarios = [ScenarioSettings("SingleStream"), ScenarioSettings("Offline")]
    timings = benchmark_cases(one, duration_s=0.02, scenarios=scenarios)
    assert [latency.scenario for _, latency in timings.latencies] == ["quick"]
    assert [failure.scenario for failure in timings.failures] == ["Offline"], "SingleStream is for one image"
    with pytest.raises(CompressError, match="it died"):
        benchmark_cases(one, duration_s=None, scenarios=scenarios)


def test_other_precision_is_an_error(net: Path) -> None:
    with pytest.raises(CompressError, match="fp32"):
        benchmark_cases([BenchmarkCase("net", net)], duration_s=0.02, precision="int8")


@pytest.mark.parametrize("name", sorted({profiles.PUBLIC[name] for name in profiles.__all__}))
def test_docstring_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_names_exist_and_are_lazy() -> None:
    assert all(getattr(profiles, name) for name in profiles.__all__)
    script = "import sys, profiles, profiles.latency; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
