"""The recipe of a sweep: what it may say, and how it is told that it is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest

from compress import config
from compress.errors import UsageError
from compress.sweep import BudgetPlan, LimitsPlan, PrunePlan, SweepPlan, read_sweep

RECIPE = """
teacher: embedded/fashion_wrn16_2
val: embedded/fashion
students: [wrn16_1, wrn16_2]
methods:
  kd:
  mosaic: {bn: 10}
budget: {time_limit: 1.5m}
precisions: [fp32, int8]
"""


def plan(more: str = "", *, without: str = "") -> SweepPlan:
    text = re.sub(f"^{without}:.*\n", "", RECIPE, flags=re.M) if without else RECIPE
    return read_sweep(config.parse(text + more, "mine.yaml"))


def refused(more: str, *, without: str = "") -> str:
    with pytest.raises(UsageError) as caught:
        plan(more, without=without)
    return str(caught.value)


def test_a_recipe_is_read_and_written_back_equal() -> None:
    read = plan("seeds: [3, 1]\nlimits: {max_size: 1.5MB}\nduration: 2s\n")
    assert read.budget.time_limit == 90
    assert read.limits.max_size == 1_500_000
    assert read.duration == 2
    assert read.chosen_seeds == [3, 1]
    assert read.settings == {"kd": {}, "mosaic": {"bn": 10}}
    assert read.files == [("onnx", "fp32"), ("onnx", "int8")]
    assert read_sweep(config.parse(config.dump(read))) == read


def test_methods_may_be_a_list_and_seeds_a_number() -> None:
    text = RECIPE.replace("methods:\n  kd:\n  mosaic: {bn: 10}", "methods: [kd, mosaic, kd]")
    read = read_sweep(config.parse(text + "seeds: 2\n"))
    assert read.settings == {"kd": {}, "mosaic": {}}
    assert read.chosen_seeds == [0, 1]


@pytest.mark.parametrize(
    ("more", "without", "expected"),
    [
        ("", "teacher", "mine.yaml: teacher: missing; expected text."),
        ("stundents: [wrn16_1]\n", "", "mine.yaml:10: stundents: no such setting; did you mean 'students'?"),
        ("students: [wrn16_1, wrn16_l]\n", "students", "mine.yaml:9: students.1: wrn16_l: no such model"),
        ("students: []\n", "students", "mine.yaml:9: students: found [], expected a list, each text at least 1 long"),
        ("precisions: [int4]\n", "precisions", "found 'int4', expected one of fp32, fp16, bf16, int8"),
        ("formats: [onxx]\n", "", "mine.yaml:10: formats.0: found 'onxx', expected one of onnx"),
        ("formats: []\n", "", "mine.yaml:10: formats: found nothing, expected at least one."),
        ("seeds: 0\n", "", "mine.yaml:10: seeds: found 0, expected a whole number > 0 or a list"),
        ("budget: {time_limit: 90x}\n", "budget", "budget.time_limit: found '90x', expected a duration such as 90s"),
        ("budget: {steps: 5, time_limit: 90s}\n", "budget", "mine.yaml:9: budget: found both of steps and time_limit"),
        ("budget: {}\n", "budget", "mine.yaml:9: budget: found none of steps and time_limit"),
        ("budget: {step: 5}\n", "budget", "budget.step: no such setting of BudgetPlan; did you mean 'steps'?"),
        ("prune: {kind: medan}\n", "", "prune.kind: found 'medan', expected one of none, median, asha; did you mean"),
        ("limits: {max_size: 1 apple}\n", "", "limits.max_size: found '1 apple', expected bytes, as 500kB"),
    ],
    ids=lambda value: value.strip().partition(":")[0] if isinstance(value, str) else None,
)
def test_what_is_wrong_is_named_with_its_line_and_the_nearest_right(more: str, without: str, expected: str) -> None:
    assert expected in refused(more, without=without)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "mosaic: {bn",
            "mosiac: {bn",
            "mine.yaml:7: methods: no such method 'mosiac'; did you mean 'mosaic'?",
        ),
        ("{bn: 10}", "{bm: 10}", "mine.yaml:7: methods.mosaic.bm: no such setting of MosaicKD; did you mean 'bn'?"),
        ("{bn: 10}", "{bn: -1}", "mine.yaml:7: methods.mosaic.bn: found -1"),
    ],
)
def test_a_wrong_method_is_named_with_its_line(old: str, new: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_sweep(config.parse(RECIPE.replace(old, new), "mine.yaml"))
    assert expected in str(caught.value)


def test_every_setting_has_its_help() -> None:
    def missing(kind: Any) -> set[str]:
        return set(config.settings(kind)) - set(config.field_help(kind)) - {"prune", "limits"}

    for kind in (SweepPlan, BudgetPlan, PrunePlan, LimitsPlan):
        assert not missing(kind)
