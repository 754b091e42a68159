"""Data of the page and the CSV file."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from dataclasses import replace
from statistics import stdev
from typing import Any

import pytest

from profiles.formatting import format_csv
from profiles.latency.benchmark import Latency
from profiles.record_sets import average_seeds
from profiles.records import Record
from profiles.report.comparison import Comparison
from profiles.report.recommendation import Limits, recommend
from profiles.report.rows import build_page_data, rows_to_csv


def timed(p50: float, machine: str = "one", **more: Any) -> Latency:
    shape = (1, 10, 2, "onnxruntime", "cpu", "fp32", None, None)
    return Latency(p50, 2 * p50, 3 * p50, p50, 0.1, 1000 / p50, *shape, machine, **more)


TEACHER = Record("T", "teacher", metrics={"accuracy": 0.9}, macs=8, flops=16, latencies=[timed(8.0)])
HISTORY = [{"step": 1, "seconds": 1.0, "accuracy": 0.2}, {"step": 2, "seconds": 2.0, "accuracy": 0.8}]
STUDENT = Record(
    "S", "student", "KD", "wrn16_1", metrics={"accuracy": 0.8, "f1": 0.7}, macs=2, flops=4, params=5, size_bytes=6,
    latencies=[timed(2.0, energy_mj=3.0), timed(9.0, "two")], run={"seed": 0, "history": HISTORY, "command": "=evil()"},
    export={"verified_in": "onnxruntime", "parity": {"images": 64, "max_abs": 1e-6, "top1_agreement": 1.0}},
)  # fmt: skip
AGAIN = replace(STUDENT, metrics={"accuracy": 0.6}, run=STUDENT.run | {"seed": 1})


def data_of(*runs: Record) -> dict[str, Any]:
    comparison = Comparison(average_seeds(runs))
    return build_page_data(comparison, runs, recommend(comparison), Limits(), title="t")


def test_rows_are_models_best_first():
    data = data_of(TEACHER, STUDENT, AGAIN)
    teacher, student = data["rows"]
    assert (teacher["name"], teacher["teacher"], student["teacher"]) == ("T", None, 0)
    assert student["score"] == pytest.approx(0.7)
    assert student["spread"] == pytest.approx(stdev([0.8, 0.6]))
    assert (student["seeds"], student["scores"], data["pick"]) == (2, [0.8, 0.6], 1)
    assert student["retained"] == pytest.approx(0.7 / 0.9)
    assert student["verified"] == {
        "images": 64, "max_abs": 1e-6, "top1_agreement": 1.0, "in": "onnxruntime", "not_run": None
    }  # fmt: skip


def test_latencies_are_by_setting():
    quick = replace(STUDENT, format="onnx", precision="int8", latencies=[replace(timed(1.0), precision="int8")])
    data = data_of(TEACHER, STUDENT, quick)
    assert [one["machine"] for one in data["settings"]] == ["one", "two"]
    assert data["settings"][0]["label"] == "one, ONNX Runtime, CPU, 2 threads, batch 1"
    by = {(row["name"], row["precision"]): row["times"] for row in data["rows"]}
    assert by["S", "int8"]["0"]["p50"] == 1.0
    listed = {"p50": 2.0, "p90": 4.0, "p99": 6.0, "mean": 2.0, "std": 0.1, "ips": 500.0, "energy_mj": 3.0, "runs": 10}
    assert by["S", "fp32"] == {"0": listed, "1": by["S", "fp32"]["1"]}
    assert set(by["T", "fp32"]) == {"0"}


def test_curves_are_of_runs():
    data = data_of(TEACHER, STUDENT, AGAIN, replace(STUDENT, format="onnx"))
    assert [curve["name"] for curve in data["curves"]] == ["S, seed 0", "S, seed 1"]
    assert data["curves"][0]["seconds"] == [1.0, 2.0]
    assert data["curves_in_all"] == 2


def test_page_data_is_small_json():
    many = [replace(STUDENT, name=f"model {i}", run={"seed": 0}) for i in range(100)]
    assert len(json.dumps(data_of(TEACHER, *many), allow_nan=False, separators=(",", ":"))) < 100 * 1000


def test_csv_has_no_formulas():
    lines = list(csv.DictReader(io.StringIO(rows_to_csv(data_of(TEACHER, STUDENT)))))
    assert [(line["name"], line["machine"]) for line in lines] == [("T", "one"), ("S", "one"), ("S", "two")]
    assert float(lines[1]["latency_ms_p50"]) == 2.0
    assert lines[1]["command"] == "'=evil()"
    assert lines[0]["params"] == ""


@pytest.mark.parametrize(
    "text",
    ["=1+1", " =1", "\t=1", "\r=1", "\n=1", "\ufeff=1", "\u200b@x", "\u3000+1", "＝1", "－1", "＠x", "\x00-1",
     "\u202e=1", "a\r=1", 'a";=1', "a;=1", "a\t=1", 'a;"=1', "a; ＝1"],
)  # fmt: skip
def test_no_cell_is_a_formula(text: str):
    """A spreadsheet may separate at semicolons or tabs, and drops spaces and marks before a formula."""
    written = rows_to_csv(data_of(replace(STUDENT, name=text, method=text, run={"command": text})))
    assert "\r" not in written
    for separator in ",;\t":
        for line in csv.reader(io.StringIO(written), delimiter=separator):
            for cell in line:
                assert unicodedata.normalize("NFKC", cell).lstrip()[:1] not in set("=+-@")


def test_numbers_stay_numbers():
    assert format_csv([[-1.5, 2, True, None, "-1", "a"]]) == '"-1.5","2","True","","\'-1","a"\n'
