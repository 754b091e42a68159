"""Recommended models, against brute force."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from profiles.latency.benchmark import Latency
from profiles.records import Record
from profiles.report.comparison import Comparison
from profiles.report.recommendation import SCORE_TOLERANCE, Limits, recommend, violated_limit


def timed(ms: float) -> list[Latency]:
    return [Latency(ms, ms, ms, ms, 0.0, 1000 / ms, 1, 10, 1, "onnxruntime", "cpu", "fp32", None, None)]


def model(name: str, score: float, ms: float, **more: Any) -> Record:
    return Record(name, "student", metrics={"accuracy": score}, latencies=timed(ms), **more)


LARGE = model("L", 0.90, 4.0, format="onnx", macs=2_000_000_000, flops=4_000_000_000, size_bytes=4_000_000)
TEACHER = Record(
    "T", "teacher", metrics={"accuracy": 0.92}, latencies=timed(8.0), macs=4_000_000_000, flops=8_000_000_000,
    size_bytes=8_000_000,
)  # fmt: skip
SMALL = model("S", 0.80, 1.0, macs=500_000_000, flops=1_000_000_000, size_bytes=1_000_000)
QUICK = replace(LARGE, precision="int8", metrics={"accuracy": 0.895}, latencies=timed(2.0))


def best(records: list[Record], budget: Limits | None = None) -> str | None:
    result = recommend(Comparison(records), budget).record
    return None if result is None else f"{result.name} {result.precision}"


def test_best_student_without_limits():
    assert best([TEACHER, LARGE, SMALL]) == "L fp32"
    assert best([TEACHER]) == "T fp32", "there is nothing else"


def test_faster_model_within_tolerance_wins():
    assert best([TEACHER, LARGE, QUICK, SMALL]) == "L int8"
    assert best([TEACHER, LARGE, replace(QUICK, metrics={"accuracy": 0.889}), SMALL]) == "L fp32"


def test_exported_file_replaces_its_network():
    network = replace(QUICK, format="", precision="fp32", latencies=[], metrics={"accuracy": 0.9})
    assert best([TEACHER, network, SMALL]) == "L fp32"
    assert best([TEACHER, network, QUICK, SMALL]) == "L int8"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Limits(latency_ms=10), "T fp32"), (Limits(latency_ms=5), "L int8"), (Limits(latency_ms=1.5), "S fp32"),
        (Limits(gflop=1.0), "S fp32"), (Limits(size_mb=3), "S fp32"), (Limits(latency_ms=0.5), None),
        (Limits(energy_mj=1), None), (Limits(latency_ms=5, size_mb=2), "S fp32"),
    ],
)  # fmt: skip
def test_limits_need_measured_costs(budget: Limits, expected: str | None):
    assert best([TEACHER, LARGE, QUICK, SMALL], budget) == expected


def test_reason_names_choice_and_excess():
    comparison = Comparison([TEACHER, LARGE, QUICK, SMALL])
    reason = recommend(comparison, Limits(latency_ms=1.5)).reason
    for datum in (
        "S: 80.0 % accuracy",
        "87.0 % of its teacher's 92.0 %",
        "8× fewer MACs",
        "3 of 4",
        "T: 92.0 %",
        "8.00 ms",
    ):
        assert datum in reason
    reason = recommend(comparison).reason
    assert "L onnx int8: 89.5 %" in reason
    assert "L onnx fp32 (90.0 %); this one is 0.5 points behind" in reason
    reason = recommend(comparison, Limits(latency_ms=0.5, energy_mj=3)).reason
    assert "(0.500 ms and 3.00 mJ)" in reason
    assert violated_limit(comparison, SMALL, Limits(energy_mj=3)) == "energy not measured"


@pytest.mark.parametrize("seed", range(20))
def test_recommendation_matches_brute_force(seed: int):
    rng = random.Random(seed)
    records = [
        model(str(i), rng.random(), rng.uniform(1, 9), size_bytes=rng.randrange(1, 9) * 10**6) for i in range(30)
    ]
    most, largest = rng.uniform(2, 9), rng.uniform(2, 9)
    chosen = recommend(Comparison(records), Limits(latency_ms=most, size_mb=largest)).record
    held = [
        record for record in records
        if record.latencies[0].latency_ms_p50 <= most and (record.size_bytes or 0) <= 1e6 * largest
    ]  # fmt: skip
    if not held:
        assert chosen is None
        return
    assert chosen is not None
    assert chosen in held
    top = max(record.metrics["accuracy"] for record in held)
    as_good = [record for record in held if record.metrics["accuracy"] >= top - SCORE_TOLERANCE]
    assert chosen in as_good
    assert chosen.latencies[0].latency_ms_p50 == min(record.latencies[0].latency_ms_p50 for record in as_good)
