"""`compress bench`: ratios in turns, beginnings, MLPerf's scenarios, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from invoking import read_error, read_result, run

from compress.cli.latencies import describe_rows, ratios_of, warn_of_others
from profiles.latency.benchmark import Latency

BRIEF = ("--duration", "0.1s", "--threads", 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A small network as ONNX."""
    import torch

    from compress.models.registry import build_network
    from compress.models.card import ModelCard
    from compress.models.metadata import card_to_metadata
    from exporters import onnx_export

    torch.manual_seed(0)
    card = ModelCard("wrn16_1", 4, (16, 16))
    path = tmp_path_factory.mktemp("bench") / "net.onnx"
    onnx_export.export_onnx(build_network(card), torch.zeros(1, 3, 16, 16), path, metadata=card_to_metadata(card))
    return path


def test_files_are_held_against_each_other_in_the_same_rounds(file: Path) -> None:
    found = read_result(run("bench", file, file, file, "--batch-size", "1,2", *BRIEF, "--json"))
    sizes = [row["batch_size"] for row in found["results"]]
    pairs = [(one["result"], one["against"]) for one in found["ratios"]]
    assert len(pairs) == 2 * 3
    assert all(sizes[ours] == sizes[theirs] and theirs < ours for ours, theirs in pairs)
    assert all(0 < one["low"] <= one["p50"] <= one["high"] and one["rounds"] == 5 for one in found["ratios"])
    assert found["failed"] == []


def test_a_row_knows_its_beginning_its_warm_up_and_its_machine(file: Path) -> None:
    torch, onnx_export = read_result(run("bench", "wrn16_1", "--runtimes", "torch,onnxruntime", *BRIEF, "--json"))["results"]
    assert torch["load_ms"] is None
    assert onnx_export["load_ms"] > 0
    for row in (torch, onnx_export):
        assert row["first_ms"] > 0
        assert row["warmup_runs"] >= 1
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0
        assert "core" in row["machine"]
        assert (row["scenario"], row["valid"], row["copy_in_ms"], row["compute_ms"]) == ("quick", None, None, None)
        assert (row["energy_mj"] is None) == (row["energy_source"] == "")


def test_scenarios_have_their_names_and_a_verdict_and_quick_is_called_quick(file: Path) -> None:
    result = run("bench", file, "--scenario", "quick,server", "--target-qps", 50, *BRIEF)
    assert result.exit_code == 0, result.stderr
    table = result.stdout.split("\n\n")[0].splitlines()
    column = table[0].split().index("scenario")
    assert [line.split()[column] for line in table[2:]] == ["quick", "Server"]
    assert "valid" in table[0].split()
    assert "not of submission length" in result.stdout
    assert "99 % are to come within 15 ms" in result.stdout


def test_a_network_is_played_in_a_process_of_its_own_with_the_wishes_of_its_user(file: Path) -> None:
    wishes = ["--input-size", "16x16", "--classes", 3]
    arguments = ["--runtimes", "torch", "--batch-size", 2, "--scenario", "MultiStream", *wishes, *BRIEF, "--json"]
    (row,) = read_result(run("bench", "wrn16_1", *arguments))["results"]
    assert (row["scenario"], row["runtime"], row["batch_size"]) == ("MultiStream", "torch", 2)
    assert row["valid"] is False
    assert "662" in row["invalid_because"]


def test_single_stream_is_of_one_image_and_of_no_other_batch(file: Path, monkeypatch) -> None:
    from profiles.latency import scenarios

    monkeypatch.setattr(scenarios, "play", lambda opening, rules, **_: latency(scenario=rules.scenario))
    arguments = ["--batch-size", "1,2", "--scenario", "single-stream", *BRIEF, "--json"]
    assert [row["batch_size"] for row in read_result(run("bench", file, *arguments))["results"]] == [1]
    text = read_error(run("bench", file, "--batch-size", "2", "--scenario", "single-stream"), 2)
    assert "--batch-size 1 among others" in text


def test_options_that_go_with_nothing_asked_for_are_refused(file: Path) -> None:
    assert "--mlperf goes with --scenario multi-stream or" in read_error(run("bench", file, "--mlperf"), 2)
    assert "goes with --scenario server" in read_error(run("bench", file, "--target-qps", 5), 2)
    assert "goes with --scenario server" in read_error(run("bench", file, "--latency-bound", "5ms"), 2)
    assert "such as 15ms" in read_error(run("bench", file, "--scenario", "server", "--latency-bound", "5 min"), 2)
    assert "did you mean 'offline'" in read_error(run("bench", file, "--scenario", "ofline"), 2)


@pytest.mark.parametrize("scenario", ["quick", "offline"])
def test_another_provider_than_the_one_asked_for_is_never_taken(file: Path, scenario: str) -> None:
    result = run("bench", file, "--provider", "cuda", "--scenario", scenario, *BRIEF, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "CUDAExecutionProvider" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_of_several_rows_one_that_fails_stops_none_and_the_exit_code_is_one(file: Path, monkeypatch) -> None:
    from profiles.latency import scenarios

    def play(opening: Any, rules: Any, **_: Any) -> Latency:
        if opening.settings["batch_size"] == 2:
            raise scenarios.ScenarioError("Offline: it fell over.")
        return latency(scenario="Offline", valid=True)

    monkeypatch.setattr(scenarios, "play", play)
    result = run("bench", file, "--batch-size", "2,1", "--scenario", "offline", *BRIEF)
    assert result.exit_code == 1
    assert len(result.stdout.split("\n\n")[0].splitlines()) == 3
    assert result.stderr.splitlines()[-1].endswith("batch 2: Offline: it fell over.")


# what people see


def latency(p50: float = 1.0, **more: Any) -> Latency:
    settings = {"runtime": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 1}
    times = {"latency_ms_p90": 1.1 * p50, "latency_ms_p99": 1.2 * p50, "latency_ms_mean": p50, "latency_ms_std": 0.0}
    loads = {"load_before": 0.0, "load_after": 0.0, "throughput_ips": 1e3 / p50, "runs": 10}
    return Latency(latency_ms_p50=p50, **(settings | times | loads | more))  # pyright: ignore[reportArgumentType]


def test_a_column_is_there_only_where_something_is_known() -> None:
    plain = describe_rows([("a", latency())], [])
    assert not {"mJ/image", "compute ms", "valid", "busy", "load ms", "settled"} & set(
        plain.replace("  ", "\n").split("\n")
    )
    full = describe_rows(
        [("a", latency(energy_mj=2.5, compute_ms=0.5, load_ms=3.0, warmup_stable=False, peak_bytes=5_000_000))], []
    )
    for word in ("mJ/image", "2.50", "compute ms", "0.500", "load ms", "3.0", "settled", "NO", "peak MB", "5.0"):
        assert word in full


def test_latencies_of_offline_are_not_shown_for_they_are_of_the_whole_run() -> None:
    text = describe_rows([("a", latency(p50=98765.0, scenario="Offline", valid=True, throughput_ips=77.7))], [])
    assert "98765" not in text
    assert "77.7" in text


def test_ratios_are_shown_against_the_first_row_of_a_batch_size() -> None:
    rows = [("a", latency(2.0)), ("a", latency(9.0, batch_size=8)), ("b", latency(1.0)), ("c", latency(4.0))]
    ratios = ratios_of([(1, [2.0, 2.0]), (8, [9.0, 9.0]), (1, [1.0, 1.1]), (1, [4.0, 4.0])])
    assert [(one["result"], one["against"]) for one in ratios] == [(2, 0), (3, 0), (3, 2)]
    below = describe_rows(rows, ratios).split("\n\n")[-1].splitlines()
    assert [line.split() for line in below[2:]] == [
        ["b", "in", "onnxruntime", "1", "0.525", "a", "in", "onnxruntime", "0.500", "to", "0.550"],
        ["c", "in", "onnxruntime", "1", "2.000", "a", "in", "onnxruntime", "2.000", "to", "2.000"],
    ]


def test_a_busy_machine_is_named_once(capsys) -> None:
    warn_of_others([latency(), latency()])
    assert capsys.readouterr().err == ""
    warn_of_others([latency(busy="The machine was busy: load 2.0 on 2 cores before."), latency()])
    assert capsys.readouterr().err == (
        "The machine was busy: load 2.0 on 2 cores before. (1 of 2 rows.) Compare within this table, not with others.\n"
    )


@pytest.mark.slow
def test_the_benchmark_of_honesty_holds_a_file_against_itself(monkeypatch, capsys, tmp_path: Path) -> None:
    import json

    from benchmarks import honesty

    monkeypatch.setattr(honesty, "RESULTS", tmp_path)
    words = ["honesty", "--repetitions", "1", "--duration", "0.1s", "--runtimes", "onnxruntime", "--write"]
    monkeypatch.setattr("sys.argv", words)
    honesty.main()
    assert "| onnxruntime | 8 |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "honesty.json").read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1, 8]
    assert all(row["ratio"] == pytest.approx(row["second_ms"] / row["first_ms"]) for row in rows)
    assert (tmp_path / "honesty.md").read_text().startswith("# The same file against itself")
