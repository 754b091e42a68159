"""Warnings about other load."""

from __future__ import annotations

import pytest

from profiles.latency.machine import load_warning


def test_idle_machine_has_no_warning() -> None:
    assert load_warning(before=0.1, after=1.9, cores=2, threads=2, p50=1.0, p90=1.1, rounds=[1.0, 1.05]) == ""
    assert load_warning() == ""


@pytest.mark.parametrize(
    ("signs", "datum"),
    [
        ({"before": 1.5, "cores": 2}, "load 1.5 on 2 cores before"),
        ({"before": 0.1, "after": 1.9, "cores": 2, "threads": 1}, "load 1.9 on 2 cores after, 1"),
        ({"p50": 1.0, "p90": 1.5}, "p90 is 1.50 times p50"),
        ({"rounds": [1.0, 1.3, 1.1]}, "the slowest round took 1.30 times the fastest"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_load_warning_names_the_sign(signs, datum: str) -> None:
    assert datum in load_warning(**signs)


def test_own_threads_are_not_other_load() -> None:
    assert load_warning(before=0.0, after=2.0, cores=2, threads=None) == ""
    assert load_warning(before=0.0, after=16.0, cores=16, threads=64) == ""


def test_load_warning_names_throttling() -> None:
    assert load_warning(throttle_reason="its power limit").count("its power limit") == 1
