"""LoadGen scenarios over calls of known length."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from profiles.latency import scenarios
from profiles.latency.loadgen import invalid_reason, latency_fields, parse_log
from profiles.latency.machine import system_load
from profiles.latency.scenarios import SCENARIOS, CandidateSpec, Scenario, ScenarioError, ScenarioSettings, run_scenario
from profiles.latency.warmup import WarmupResult


@pytest.fixture(autouse=True)
def found_by_the_child(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def nap(**settings: Any) -> CandidateSpec:
    return CandidateSpec("for_loadgen:nap", settings)


def lines(entries: dict[str, Any]) -> str:
    return "\n".join(f":::MLLOG {json.dumps({'key': key, 'value': value})}" for key, value in entries.items())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_numbers_are_loadgens(scenario: Scenario) -> None:
    rules = ScenarioSettings(scenario, duration_s=0.3, latency_bound_ms=1000 if scenario == "Server" else None)
    result = run_scenario(nap(batch=1 if scenario == "SingleStream" else 4), rules, load_before=0.25)
    assert (result.scenario, result.runtime, result.submission_length) == (scenario, "nap", False)
    assert result.valid is (not result.invalid_reason)
    assert result.latency_ms_p50 <= result.latency_ms_p90 <= result.latency_ms_p99
    # a nap is never shorter than asked for; a query of eight takes two of four images
    assert result.latency_ms_p50 >= {"MultiStream": 4.0}.get(scenario, 2.0)
    assert result.throughput_ips > 0
    assert (result.load_before, result.latency_bound_ms) == (0.25, 1000 if scenario == "Server" else None)
    assert (result.target_qps is not None) is (scenario == "Server")
    assert result.runs == 1 if scenario == "Offline" else result.runs > 1


def test_server_misses_an_impossible_bound() -> None:
    result = run_scenario(nap(ms=5), ScenarioSettings("Server", duration_s=0.3, target_qps=40, latency_bound_ms=1))
    assert (result.target_qps, result.latency_bound_ms, result.valid) == (40, 1, False)
    assert "exceeded the latency bound" in result.invalid_reason


def test_too_few_queries_are_invalid() -> None:
    result = run_scenario(nap(ms=10), ScenarioSettings("MultiStream", duration_s=0.2))
    assert result.valid is False
    assert "at least 662 queries" in result.invalid_reason


def test_failing_model_is_an_error() -> None:
    for scenario in SCENARIOS:
        with pytest.raises(ScenarioError) as caught:
            run_scenario(nap(fails_at=200, ms=1), ScenarioSettings(scenario, duration_s=0.3))
        text = f"{scenario}: the model failed (ValueError: the images are of no use)."
        assert str(caught.value) == text


def test_crashing_or_hanging_model_is_an_error() -> None:
    with pytest.raises(ScenarioError, match=r"SingleStream: the process .* ended by SIGKILL"):
        run_scenario(nap(fails_at=3, how="dies"), ScenarioSettings("SingleStream", duration_s=0.3))
    with pytest.raises(ScenarioError, match="completed no query for 2 s"):
        run_scenario(nap(fails_at=3, how="hangs"), ScenarioSettings("SingleStream", duration_s=0.3), timeout_s=2)


def test_loading_error_keeps_its_message() -> None:
    with pytest.raises(ScenarioError, match=r"^Offline: the file is not there\.$"):
        run_scenario(CandidateSpec("for_loadgen:refused"), ScenarioSettings("Offline"))
    with pytest.raises(ScenarioError, match="AttributeError"):
        run_scenario(CandidateSpec("for_loadgen:gone"), ScenarioSettings("Offline"))
    with pytest.raises(ScenarioError, match="found a batch of 4"):
        run_scenario(nap(batch=4), ScenarioSettings("SingleStream"))


def test_missing_loadgen_is_named(monkeypatch) -> None:
    monkeypatch.setattr(scenarios.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ScenarioError, match="mlcommons-loadgen"):
        run_scenario(nap(), ScenarioSettings("Offline"))


def test_child_exits_with_parent(monkeypatch) -> None:
    from profiles.latency import loadgen

    ended: list[int] = []
    parents = iter([7, 7, 1])
    monkeypatch.setattr(loadgen.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(loadgen.os, "_exit", ended.append)
    monkeypatch.setattr(loadgen.time, "sleep", lambda _: None)
    loadgen.exit_with_parent(7)
    assert ended == [1]


class Asked:
    """MLPerf's settings as LoadGen keeps them."""

    def __init__(self, rules: ScenarioSettings, folder: Path) -> None:
        import mlperf_loadgen

        from profiles.latency.loadgen import create_settings

        result = create_settings(mlperf_loadgen, rules, 4, WarmupResult(10, True, 0.004), folder)
        self.seconds, self.queries = result.min_duration_ms / 1e3, result.min_query_count
        self.server_qps, self.offline_qps = result.server_target_qps, result.offline_expected_qps
        self.bound_ms, self.samples = result.server_target_latency_ns / 1e6, result.multi_stream_samples_per_query


def test_settings_follow_the_warmup(tmp_path: Path) -> None:
    shorter = Asked(ScenarioSettings("Offline", duration_s=2.5), tmp_path)
    assert (shorter.seconds, shorter.queries, shorter.samples) == (2.5, 1, 8)
    assert shorter.offline_qps == pytest.approx(1.3 * 1000)
    assert shorter.server_qps == pytest.approx(0.5 * 1000)
    assert Asked(ScenarioSettings("Server", target_qps=7, latency_bound_ms=20), tmp_path).bound_ms == 20


CONFIGURED = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
from test_scenarios import Asked
from profiles.latency.scenarios import ScenarioSettings
found = Asked(ScenarioSettings({scenario!r}, mlperf=True), Path({folder!r}))
print(found.seconds, found.queries, found.bound_ms)
"""


@pytest.mark.parametrize(
    ("scenario", "queries"), [("SingleStream", 100), ("MultiStream", 662), ("Offline", 24576), ("Server", 100)]
)
def test_submission_uses_mlperf_settings(scenario: str, queries: int, tmp_path: Path) -> None:
    import subprocess
    import sys

    # in a process of its own: LoadGen reads its settings once in its life
    code = CONFIGURED.format(path=[str(Path(__file__).parent), *sys.path], scenario=scenario, folder=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(result[0]) == 600
    assert int(result[1]) == queries
    assert scenario != "Server" or float(result[2]) == 15


def test_log_ignores_broken_lines(tmp_path: Path) -> None:
    entries = {"result_validity": "INVALID", "result_min_duration_met": False, "early_stopping_met": True}
    (tmp_path / "mlperf_log_detail.txt").write_text(f"{lines(entries)}\n:::MLLOG {{broken\nnoise\n")
    assert parse_log(tmp_path, "Offline") == entries
    assert invalid_reason(entries) == "it ended before its minimum duration"


def test_log_without_verdict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"Offline \(its log has no verdict\)"):
        parse_log(tmp_path, "Offline")
    (tmp_path / "mlperf_log_detail.txt").write_text(lines({"error_invalid_config": "no such file"}))
    with pytest.raises(ScenarioError, match=r"no result for Offline \(no such file\)"):
        parse_log(tmp_path, "Offline")


def test_multi_stream_latency_is_per_query() -> None:
    keys = {f"result_{p}.00_percentile_per_query_latency_ns": 8e6 + p for p in (50, 90, 99)}
    images = {f"result_{p}.00_percentile_latency_ns": 1e6 for p in (50, 90, 99)}
    rest = {"result_mean_query_latency_ns": 10e6, "result_query_count": 5, "result_validity": "VALID"}
    result = latency_fields(keys | images | rest, "MultiStream")
    assert result["latency_ms_p90"] == pytest.approx(8.00009)
    assert result["throughput_ips"] == pytest.approx(800)
    assert (result["runs"], result["valid"], result["invalid_reason"]) == (5, True, "")


def test_scenario_leaves_no_files(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_scenario(nap(), ScenarioSettings("SingleStream", duration_s=0.1), load_before=system_load())
    assert os.listdir(tmp_path) == []
    assert not Path("mlperf_log_detail.txt").exists()
