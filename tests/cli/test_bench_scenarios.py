"""`compress bench`: interleaved ratios, start-up, LoadGen's scenarios and the printed tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from invoking import read_error, read_result, run

from compress.benchmarking import BenchmarkResult, BenchmarkRow, LatencyRatioRow, warn_of_load
from compress.cli.latency_tables import benchmark
from profiles.latency import cases
from profiles.latency.benchmark import Latency
from profiles.latency.scenarios import ScenarioError

BRIEF = ("--duration", "0.1s", "--threads", 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A small network as ONNX."""
    import torch

    from compress.models.card import ModelCard
    from compress.models.metadata import card_to_metadata
    from compress.models.registry import build_network
    from exporters.onnx_export import export_onnx

    torch.manual_seed(0)
    card = ModelCard("wrn16_1", 4, (16, 16))
    path = tmp_path_factory.mktemp("bench") / "net.onnx"
    export_onnx(build_network(card), torch.zeros(1, 3, 16, 16), path, metadata=card_to_metadata(card))
    return path


def latency(p50: float = 1.0, kind: Any = Latency, **more: Any) -> Any:
    settings = {"runtime": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 1}
    times = {"latency_ms_p90": 1.1 * p50, "latency_ms_p99": 1.2 * p50, "latency_ms_mean": p50, "latency_ms_std": 0.0}
    loads = {"load_before": 0.0, "load_after": 0.0, "throughput_ips": 1e3 / p50, "runs": 10}
    return kind(latency_ms_p50=p50, **(settings | times | loads | more))


def row(p50: float = 1.0, **more: Any) -> BenchmarkRow:
    return latency(p50, BenchmarkRow, **{"name": "a", **more})


@pytest.mark.slow
def test_ratios_compare_same_batch_sizes(file: Path) -> None:
    result = read_result(run("bench", file, file, file, "--batch-size", "1,2", *BRIEF, "--json"))
    sizes = [one["batch_size"] for one in result["results"]]
    pairs = [(one["result"], one["against"]) for one in result["ratios"]]
    assert len(pairs) == 2 * 3
    assert all(sizes[ours] == sizes[theirs] and theirs < ours for ours, theirs in pairs)
    assert all(0 < one["low"] <= one["p50"] <= one["high"] and one["rounds"] == 5 for one in result["ratios"])
    assert result["failed"] == []


def test_rows_contain_startup_and_machine() -> None:
    arguments = ["bench", "wrn16_1", "--runtimes", "torch,onnxruntime", *BRIEF, "--json"]
    network, onnx = read_result(run(*arguments))["results"]
    assert network["load_ms"] is None
    assert onnx["load_ms"] > 0
    for one in (network, onnx):
        assert one["first_call_ms"] > 0
        assert one["warmup_runs"] >= 1
        assert one["peak_bytes"] is None or one["peak_bytes"] > 0
        assert "core" in one["machine"]
        assert (one["scenario"], one["valid"], one["copy_in_ms"], one["compute_ms"]) == ("quick", None, None, None)
        assert (one["energy_mj"] is None) == (one["energy_source"] == "")


def test_scenarios_have_verdicts(file: Path) -> None:
    result = read_result(run("bench", file, "--scenario", "quick,server", "--target-qps", 50, *BRIEF, "--json"))
    quick, server = result["results"]
    assert (quick["scenario"], quick["valid"]) == ("quick", None)
    assert (server["scenario"], server["latency_bound_ms"], server["submission_length"]) == ("Server", 15, False)
    assert server["valid"] in (True, False)


@pytest.mark.slow
def test_network_runs_scenario_with_overrides() -> None:
    overrides = ["--input-size", "16x16", "--classes", 3]
    arguments = ["--runtimes", "torch", "--batch-size", 2, "--scenario", "MultiStream", *overrides, *BRIEF, "--json"]
    (one,) = read_result(run("bench", "wrn16_1", *arguments))["results"]
    assert (one["scenario"], one["runtime"], one["batch_size"]) == ("MultiStream", "torch", 2)
    assert one["valid"] is False
    assert "662" in one["invalid_reason"]


def test_single_stream_uses_batch_one(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(cases, "run_scenario", lambda spec, settings, **_: latency(scenario=settings.scenario))
    arguments = ["--batch-size", "1,2", "--scenario", "single-stream", *BRIEF, "--json"]
    assert [one["batch_size"] for one in read_result(run("bench", file, *arguments))["results"]] == [1]
    error = read_error(run("bench", file, "--batch-size", "2", "--scenario", "single-stream"), 2)
    assert "--batch-size" in error


@pytest.mark.parametrize(
    ("arguments", "datum"),
    [
        (["--mlperf"], "--mlperf"),
        (["--target-qps", 5], "server"),
        (["--latency-bound", "5ms"], "server"),
        (["--scenario", "server", "--latency-bound", "5 min"], "15ms"),
        (["--scenario", "ofline"], "'offline'"),
    ],
)
def test_option_without_scenario_is_refused(file: Path, arguments: list, datum: str) -> None:
    assert datum in read_error(run("bench", file, *arguments), 2)


@pytest.mark.parametrize("scenario", ["quick", "offline"])
def test_missing_provider_is_an_error(file: Path, scenario: str) -> None:
    assert "CUDA" in read_error(run("bench", file, "--provider", "cuda", "--scenario", scenario, *BRIEF, "--json"), 1)


def test_failed_scenario_keeps_other_rows(file: Path, monkeypatch) -> None:
    def run_scenario(spec: Any, settings: Any, **_: Any) -> Latency:
        if spec.arguments["batch_size"] == 2:
            raise ScenarioError("Offline: it failed.")
        return latency(scenario="Offline", valid=True)

    monkeypatch.setattr(cases, "run_scenario", run_scenario)
    result = run("bench", file, "--batch-size", "2,1", "--scenario", "offline", *BRIEF, "--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert len(printed["results"]) == len(printed["failed"]) == 1
    assert "Traceback" not in result.stderr


# Tables.


def test_table_omits_unknown_columns() -> None:
    plain = benchmark(BenchmarkResult([row()], {}, [], [], {}))
    full = benchmark(
        BenchmarkResult(
            [row(energy_mj=2.5, compute_ms=0.5, load_ms=3.0, warmup_stable=False, peak_bytes=5_000_000)],
            {},
            [],
            [],
            {},
        )
    )
    for word in ("mJ/image", "2.50", "compute ms", "0.500", "load ms", "3.0", "peak MB", "5.0"):
        assert word in full
        assert word not in plain or word == "5.0"


def test_offline_latency_is_not_shown() -> None:
    one = row(98765.0, scenario="Offline", valid=True, throughput_ips=77.7)
    text = benchmark(BenchmarkResult([one], {}, [], [], {}))
    assert "98765" not in text
    assert "77.7" in text


def test_ratio_table_uses_first_row() -> None:
    rows = [row(2.0), row(9.0, batch_size=8), row(1.0, name="b"), row(4.0, name="c")]
    ratios = [LatencyRatioRow(2, 0, 0.525, 0.5, 0.55, 2), LatencyRatioRow(3, 0, 2.0, 2.0, 2.0, 2),
              LatencyRatioRow(3, 2, 3.8, 3.6, 4.0, 2)]  # fmt: skip
    table = benchmark(BenchmarkResult(rows, {}, ratios, [], {})).split("\n\n")[-1].splitlines()
    assert [line.split() for line in table[2:]] == [
        ["b", "in", "onnxruntime", "1", "0.525", "a", "in", "onnxruntime", "0.500", "to", "0.550"],
        ["c", "in", "onnxruntime", "1", "2.000", "a", "in", "onnxruntime", "2.000", "to", "2.000"],
    ]


def test_system_load_is_reported_once() -> None:
    messages: list[str] = []
    warn_of_load([row(), row()], messages.append)
    assert messages == []
    warn_of_load([row(load_warning="The machine was busy."), row(load_warning="Busy, too."), row()], messages.append)
    assert len(messages) == 1
    assert "2 of 3" in messages[0]


@pytest.mark.slow
def test_honesty_benchmark_compares_file_with_itself(monkeypatch, capsys, tmp_path: Path) -> None:
    from benchmarks import honesty

    monkeypatch.setattr(honesty, "RESULTS", tmp_path)
    words = ["honesty", "--repetitions", "1", "--duration", "0.1s", "--runtimes", "onnxruntime", "--write"]
    monkeypatch.setattr("sys.argv", words)
    honesty.main()
    assert "| onnxruntime | 8 |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "honesty.json").read_text())["rows"]
    assert [one["batch_size"] for one in rows] == [1, 8]
    assert all(one["ratio"] == pytest.approx(one["second_ms"] / one["first_ms"]) for one in rows)
