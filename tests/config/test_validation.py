"""Validation of settings: dataclasses from documents, and errors that name file, line, key and nearest key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pytest
from pydantic import Field

from compress.config import (
    dump_yaml,
    field_descriptions,
    json_schema,
    parse_overrides,
    parse_yaml,
    setting,
    setting_paths,
    validate,
)
from compress.errors import UsageError


@dataclass
class Teacher:
    model: str
    weights: Path | None = None


@dataclass
class Training:
    steps: Annotated[int, annotated_types.Gt(0)] | None = setting(None, "Number of iterations.")
    precision: Literal["auto", "32", "bf16"] = "auto"
    size: tuple[int, int] = (32, 32)
    rate: Annotated[float, Field(gt=0, le=1)] = setting(0.1, "Learning rate.")
    names: tuple[str, ...] = setting(factory=tuple, description="Names.")
    seeds: Annotated[int, Field(gt=0)] | list[int] = 1
    verbose: bool = False


@dataclass(frozen=True)
class Config:
    teachers: list[Teacher]
    training: Training = field(default_factory=Training)
    method: dict[str, Any] = field(default_factory=dict)


def error_of(text: str, cls: type = Config, **where: Any) -> str:
    with pytest.raises(UsageError) as caught:
        validate(cls, parse_yaml(text, "recipe.yaml"), **where)
    return str(caught.value)


def test_document_becomes_plain_dataclasses():
    text = "teachers: [{model: wrn, weights: runs/a}]\ntraining: {steps: 10, size: [8, 9], rate: 1e-3}"
    config = validate(Config, parse_yaml(text))
    assert config == Config([Teacher("wrn", Path("runs/a"))], Training(steps=10, size=(8, 9), rate=0.001))
    assert type(config.training) is Training
    assert validate(Config, parse_yaml(dump_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "location", "data"),
    [
        ("teachers: []\ntraining:\n  stps: 1", "recipe.yaml:3: training.stps:", ["'steps'"]),
        ("teachers: []\ntrainings: 1", "recipe.yaml:2: trainings:", ["'training'"]),
        ("teachers: [{modl: a, model: b}]", "recipe.yaml:1: teachers.0.modl:", ["'model'"]),
        ("teachers: []\ntraining:\n  steps: ten", "recipe.yaml:3: training.steps:", ["'ten'", "integer"]),
        ("teachers: []\ntraining: {steps: 0}", "recipe.yaml:2: training.steps:", ["found 0", "greater than 0"]),
        ("teachers: []\ntraining: {steps: '10'}", "recipe.yaml:2: training.steps:", ["'10'", "integer"]),
        ("teachers: []\ntraining: {steps: true}", "recipe.yaml:2: training.steps:", ["true", "integer"]),
        ("teachers: []\ntraining: {rate: .nan}", "recipe.yaml:2: training.rate:", ["NaN"]),
        ("teachers: []\ntraining: {verbose: no}", "recipe.yaml:2: training.verbose:", ["'no'", "boolean"]),
        ("teachers: []\ntraining: {size: [3, x]}", "recipe.yaml:2: training.size.1:", ["'x'", "integer"]),
        ("teachers: []\ntraining: {seeds: x}", "recipe.yaml:2: training.seeds:", ["'x'", "integer", "list"]),
        ("teachers: []\ntraining: {precision: bf17}", "recipe.yaml:2: training.precision:", ["mean 'bf16'?"]),
        ("teachers: []\ntraining: 3", "recipe.yaml:2: training:", ["found 3", "mapping"]),
        ("training: {}", "recipe.yaml: teachers:", ["missing"]),
        ("teachers: [{}]", "recipe.yaml:1: teachers.0.model:", ["missing"]),
    ],
)  # fmt: skip
def test_invalid_setting_names_location_and_expectation(text: str, location: str, data: list[str]):
    message = error_of(text)
    assert message.startswith(location + " ")
    assert all(part in message for part in data), message
    assert len(message.splitlines()) == 1


def test_golden_message_of_an_unknown_setting():
    expected = "recipe.yaml:3: training.stps: no such setting; did you mean 'steps'?"
    assert error_of("teachers: []\ntraining:\n  stps: 1") == expected


def test_every_invalid_setting_has_a_line():
    lines = error_of("teachers: [{modl: 1}]\ntraining:\n  steps: -1\n  verbose: 1").splitlines()
    keys = {line.split(": ")[1] for line in lines}
    assert keys == {"teachers.0.model", "teachers.0.modl", "training.steps", "training.verbose"}


def test_section_is_validated_without_ignored_keys():
    document = parse_yaml("training:\n  name: x\n  steps: 3\nempty:", "recipe.yaml")
    assert validate(Training, document, path="training", ignore=["name"]) == Training(steps=3)
    assert validate(Training, document, path="nowhere") == validate(Training, document, path="empty") == Training()
    assert error_of("training:\n  stps: 3", Training, path="training").startswith("recipe.yaml:2: training.stps:")


def test_override_is_named_in_errors():
    recipe = parse_yaml("teachers: []\ntraining: {steps: 1}", "recipe.yaml")
    with pytest.raises(UsageError, match=r"^--set: training\.steps: "):
        validate(Config, recipe.merge(parse_overrides(["training.steps=x"])))


def test_paths_list_sections_before_contents():
    assert setting_paths(Teacher, "teacher.") == ["teacher.model", "teacher.weights"]
    assert setting_paths(Config)[:4] == ["teachers", "training", "training.steps", "training.precision"]


def test_descriptions_reach_the_json_schema():
    assert field_descriptions(Training)["rate"] == "Learning rate."
    properties = json_schema(Config)["$defs"]["Training"]["properties"]
    assert properties["steps"]["description"] == "Number of iterations."
    assert properties["rate"]["maximum"] == 1
