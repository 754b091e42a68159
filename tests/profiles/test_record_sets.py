"""Records of many runs as one set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from profiles.latency.benchmark import Latency
from profiles.record_sets import average_seeds, collect_records, find_run_dirs
from profiles.records import Record, append_records


def latency(p50: float, **more: Any) -> Latency:
    return Latency(
        p50, 2 * p50, 4 * p50, p50, 0.1, 1000 / p50, 1, 10, 1, "onnxruntime", "cpu", "fp32", None, None, **more
    )


TEACHER = Record("T", "teacher", metrics={"accuracy": 0.9}, macs=9)
STUDENT = Record("S", "student", "KD", metrics={"accuracy": 0.8}, run={"seed": 0, "ood": "x", "budget_s": 9.0})


def test_record_set_merges_the_teacher(tmp_path: Path):
    pictured = replace(STUDENT, images={"mosaics": "grid.png"})
    other = replace(pictured, run={"seed": 0, "ood": "y"}, metrics={"accuracy": 0.7})
    append_records(tmp_path / "one", [TEACHER, pictured])
    append_records(tmp_path / "two", [replace(TEACHER, latencies=[latency(1.0)]), other])
    joined = collect_records([tmp_path / "one", tmp_path / "two", tmp_path / "one"])
    assert [record.name for record in joined.records] == ["T", "S (one)", "S (two)"]
    assert joined.records[0].latencies == [latency(1.0)]
    assert joined.images == {"mosaics": tmp_path / "one" / "grid.png", "mosaics (two)": tmp_path / "two" / "grid.png"}
    assert collect_records([tmp_path]).records == joined.records, "a folder of runs stands for the runs in it"


def test_seeds_are_one_model(tmp_path: Path):
    scores = [0.8, 0.7, 0.9]
    for seed, score in enumerate(scores):
        one = replace(STUDENT, metrics={"accuracy": score}, run=STUDENT.run | {"seed": seed, "steps": 100 + seed})
        quick = replace(one, format="onnx", precision="int8", latencies=[latency(1.0 + seed)], size_bytes=100)
        append_records(tmp_path / str(seed), [one, quick])
    joined = collect_records([tmp_path])
    assert {record.name for record in joined.records} == {"S"}
    network, quick = joined.models
    assert network.metrics == {"accuracy": pytest.approx(fmean(scores))}
    assert (network.run["seeds"], network.run["scores"]) == ([0, 1, 2], {"accuracy": scores})
    assert [one.latency_ms_p50 for one in quick.latencies] == [2.0]
    assert (quick.size_bytes, quick.precision) == (100, "int8")


def test_other_settings_are_another_model():
    other = replace(STUDENT, run=STUDENT.run | {"seed": 1, "settings": {"bn": 1.0}})
    longer = replace(STUDENT, run={"seed": 2, "ood": "x", "steps": 5})
    assert len(average_seeds([STUDENT, other, longer])) == 3
    assert len(average_seeds([TEACHER, TEACHER])) == 2, "what has no seed is nothing's repetition"


def test_average_needs_every_seed():
    far = replace(STUDENT, run=STUDENT.run | {"seed": 1}, metrics={"accuracy": 0.6, "f1": 0.5},
                  export={"parity": {"max_abs": 1e-3}})  # fmt: skip
    near = replace(STUDENT, export={"parity": {"max_abs": 1e-6}})
    (result,) = average_seeds([near, far])
    assert result.metrics == {"accuracy": pytest.approx(0.7)}
    assert result.export == far.export


def test_directory_of_runs_is_searched(tmp_path: Path):
    append_records(tmp_path / "b", [STUDENT])
    append_records(tmp_path / "a", [STUDENT])
    assert find_run_dirs(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    append_records(tmp_path, [TEACHER])
    assert find_run_dirs(tmp_path) == [tmp_path]
