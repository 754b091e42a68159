"""When a machine is called busy."""

from __future__ import annotations

import pytest

from profiles.latency.machine import load_warning


def test_a_quiet_machine_is_not_called_busy() -> None:
    assert load_warning(before=0.1, after=1.9, cores=2, threads=2, p50=1.0, p90=1.1, rounds=[1.0, 1.05]) == ""
    assert load_warning() == ""


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ({"before": 1.5, "cores": 2}, "load 1.5 on 2 cores before"),
        ({"before": 0.1, "after": 1.9, "cores": 2, "threads": 1}, "load 1.9 on 2 cores after, 1 of it at most our own"),
        ({"p50": 1.0, "p90": 1.5}, "p90 is 1.50 times p50"),
        ({"rounds": [1.0, 1.3, 1.1]}, "the slowest round took 1.30 times the fastest"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_a_busy_machine_is_named_with_its_sign(signs, said: str) -> None:
    assert load_warning(**signs) == f"The machine was busy: {said}."


def test_our_own_threads_are_no_other_work() -> None:
    assert load_warning(before=0.0, after=2.0, cores=2, threads=None) == ""
    assert load_warning(before=0.0, after=16.0, cores=16, threads=64) == ""


def test_a_gpu_that_was_slowed_down_is_named() -> None:
    assert load_warning(slowed="its power limit") == "The GPU was slowed down by its power limit."
