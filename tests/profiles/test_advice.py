"""Which model to ship: by hand on a few records, by brute force on many, and in words that say why."""

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
    found = recommend(Comparison(records), budget).record
    return None if found is None else f"{found.name} {found.precision}"


def test_without_a_budget_the_best_student_and_never_the_teacher():
    assert best([TEACHER, LARGE, SMALL]) == "L fp32"
    assert best([TEACHER]) == "T fp32", "there is nothing else"


def test_what_is_within_a_point_of_the_best_and_faster_is_better():
    assert best([TEACHER, LARGE, QUICK, SMALL]) == "L int8"
    assert best([TEACHER, LARGE, replace(QUICK, metrics={"accuracy": 0.889}), SMALL]) == "L fp32"


def test_a_model_that_has_files_is_shipped_as_one_of_them():
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
def test_a_budget_is_held_by_measured_costs_only(budget: Limits, expected: str | None):
    assert best([TEACHER, LARGE, QUICK, SMALL], budget) == expected


def test_the_words_say_what_was_chosen_and_what_was_over_the_budget():
    records = [TEACHER, LARGE, QUICK, SMALL]
    said = recommend(Comparison(records), Limits(latency_ms=1.5)).sentence
    assert said.startswith("Deploy S: 80.0 % accuracy, 87.0 % of its teacher's 92.0 %, with 8× fewer MACs"), said
    assert "It is the only one within 1.50 ms." in said
    assert "3 of 4 are over the budget, the best of them T: 92.0 %, latency 8.00 ms." in said
    said = recommend(Comparison(records)).sentence
    assert said.startswith("Deploy L onnx int8: 89.5 %")
    assert (
        "Of 3 models L onnx fp32 is the best (90.0 %); this one is 0.5 points behind it, at most one, and costs less."
        in said
    )
    said = recommend(Comparison(records), Limits(latency_ms=0.5, energy=3)).sentence
    assert (
        said == "No model holds the budget (0.500 ms and 3.00 mJ): T, the best of 4, does not by its latency 8.00 ms."
    )
    assert violated_limit(Comparison(records), SMALL, Limits(energy_mj=3)) == "energy not measured"


@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_holds_the_budget_is_a_point_better_or_as_good_and_faster(seed: int):
    rng = random.Random(seed)
    records = [
        model(str(i), rng.random(), rng.uniform(1, 9), size_bytes=rng.randrange(1, 9) * 10**6) for i in range(30)
    ]
    most, largest = rng.uniform(2, 9), rng.uniform(2, 9)
    chosen = recommend(Comparison(records), Limits(latency_ms=most, size=largest)).record
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
