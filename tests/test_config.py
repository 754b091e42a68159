# ruff: noqa: E501 - whole sentences, as the user sees them
"""Settings: what a recipe may say, what is said of a bad one, and that what is written reads back equal."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pytest
import yaml
from pydantic import Field

from compress.config import dump, expected, field_help, parse, parse_set, paths, plain, read_yaml, settings, validate
from compress.errors import UsageError


@dataclass
class Teacher:
    model: str
    weights: Path | None = None


@dataclass
class Pace:
    steps: Annotated[int, annotated_types.Gt(0)] | None = None  #: iterations
    precision: Literal["auto", "32", "bf16"] = "auto"
    #: height and
    #: width
    size: tuple[int, int] = (32, 32)
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1  #: of learning
    names: tuple[str, ...] = ()
    echo: bool = False


@dataclass(frozen=True)
class Plan:
    teachers: list[Teacher]
    pace: Pace = field(default_factory=Pace)
    method: dict[str, Any] = field(default_factory=dict)


def complaint(text: str, cls: type = Plan, **where: Any) -> str:
    with pytest.raises(UsageError) as caught:
        validate(cls, parse(text, "recipe.yaml"), **where)
    return str(caught.value)


def test_a_recipe_becomes_plain_dataclasses():
    plan = validate(
        Plan, parse("teachers: [{model: wrn, weights: runs/a}]\npace: {steps: 10, size: [8, 9], rate: 1e-3}")
    )
    assert plan == Plan([Teacher("wrn", Path("runs/a"))], Pace(steps=10, size=(8, 9), rate=0.001))
    assert type(plan.pace) is Pace
    assert not hasattr(Pace, "__pydantic_validator__")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("teachers: []\npace:\n  stps: 1", "recipe.yaml:3: pace.stps: no such setting of Pace; did you mean 'steps'?"),
        ("teachers: []\npaces: 1", "recipe.yaml:2: paces: no such setting; did you mean 'pace'?"),
        ("teachers: [{modl: a, model: b}]", "recipe.yaml:1: teachers.0.modl: no such setting of Teacher; did you mean 'model'?"),
        ("teachers: []\npace:\n  steps: ten", "recipe.yaml:3: pace.steps: found 'ten', expected a whole number > 0 or null."),
        ("teachers: []\npace: {steps: 0}", "recipe.yaml:2: pace.steps: found 0, expected a whole number > 0 or null."),
        ("teachers: []\npace: {steps: '10'}", "recipe.yaml:2: pace.steps: found '10', expected a whole number > 0 or null."),
        ("teachers: []\npace: {steps: true}", "recipe.yaml:2: pace.steps: found true, expected a whole number > 0 or null."),
        ("teachers: []\npace: {rate: 2}", "recipe.yaml:2: pace.rate: found 2, expected a number > 0 and <= 1."),
        ("teachers: []\npace: {rate: .nan}", "recipe.yaml:2: pace.rate: found NaN, expected a number > 0 and <= 1."),
        ("teachers: []\npace: {echo: no}", "recipe.yaml:2: pace.echo: found 'no', expected true or false."),
        ("teachers: []\npace: {size: [3, x]}", "recipe.yaml:2: pace.size.1: found 'x', expected a whole number."),
        ("teachers: []\npace: {precision: bf17}", "recipe.yaml:2: pace.precision: found 'bf17', expected one of auto, 32, bf16; did you mean 'bf16'?"),
        ("teachers: []\npace: 3", "recipe.yaml:2: pace: found 3, expected a mapping with steps, precision, size, rate, names, echo."),
        ("pace: {}", "recipe.yaml: teachers: missing; expected a list, each a mapping with model, weights."),
        ("teachers: [{}]", "recipe.yaml:1: teachers.0.model: missing; expected text."),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_line_and_what_would_be_right(text: str, said: str):
    assert complaint(text) == said


def test_every_wrong_setting_has_its_line():
    lines = complaint("teachers: [{modl: 1}]\npace:\n  steps: -1\n  echo: 1").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["teachers.0.model", "teachers.0.modl", "pace.steps", "pace.echo"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "recipe.yaml:3: a: given twice, first in line 1; remove one."),
        ("a: {b: 1,\n b: 2}", "recipe.yaml:2: a.b: given twice, first in line 1; remove one."),
        ("a: 1\nb: [", "recipe.yaml:2: not valid YAML"),
        ("- 1", "recipe.yaml: found a list, expected a mapping of `key: value` lines."),
        ("", "recipe.yaml: found nothing, expected a mapping"),
        ("a: 1\n---\nb: 2", "recipe.yaml:2: not valid YAML"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", "recipe.yaml:2: not valid YAML"),
        ("a: [1]\nb: *x", "recipe.yaml:2: not valid YAML (anchors and tags are not supported"),
        ("a: 1\nb: \0", "recipe.yaml:2: not valid YAML (a control character)."),
        ("? [1]\n: 2", "recipe.yaml:1: a key must be a word"),
        ("a: " + "9" * 5000, "recipe.yaml:1: a: not a number that can be read."),
        ("a: " + "[" * 5000, "recipe.yaml: nested too deep"),
    ],
)
def test_what_is_not_a_mapping_in_safe_yaml_is_refused_with_its_line(text: str, said: str):
    with pytest.raises(UsageError) as caught:
        parse(text, "recipe.yaml")
    assert str(caught.value).startswith(said)


def test_no_tag_runs_code(tmp_path: Path):
    with pytest.raises(UsageError, match="not valid YAML"):
        parse(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']", "r")
    assert not list(tmp_path.iterdir())


def test_a_missing_a_binary_and_a_huge_file_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"no\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "no.yaml")
    (tmp_path / "binary").write_bytes(b"a: 1\nb: \xff\xfe")
    with pytest.raises(UsageError, match="binary:2: not UTF-8 text"):
        read_yaml(tmp_path / "binary")
    (tmp_path / "huge").write_bytes(b"#" * 2_000_000)
    with pytest.raises(UsageError, match="larger than"):
        read_yaml(tmp_path / "huge")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(tmp_path / "marked").data == {"a": 1, "b": 2}


def test_scalars_mean_what_yaml_1_2_says():
    text = "a: 1e-3\nb: no\nc: 2024-01-01\nd: 12:30\ne: 010\nf: ~\ng: -.inf\nh: 1_000\ni: +7\nj: 1.\nk: on\nl: TRUE\nm:"
    assert parse(text).data == {
        "a": 0.001, "b": "no", "c": "2024-01-01", "d": "12:30", "e": "010", "f": None, "g": -math.inf, "h": "1_000",
        "i": 7, "j": 1.0, "k": "on", "l": True, "m": None,
    }  # fmt: skip


def test_a_number_where_text_is_expected_is_taken_as_it_was_written():
    plan = validate(Plan, parse("teachers: [{model: 1.10}]\npace: {precision: 32, names: [007, 8, true]}"))
    assert (plan.teachers[0].model, plan.pace.precision, plan.pace.names) == ("1.10", "32", ("007", "8", "true"))
    assert validate(Plan, {"teachers": [], "pace": {"precision": 32}}).pace.precision == "32"
    assert complaint("teachers: []\npace: {precision: 33}").startswith(
        "recipe.yaml:2: pace.precision: found 33, expected one"
    )


def test_a_section_is_validated_by_itself_without_the_keys_of_others():
    document = parse("pace:\n  name: x\n  steps: 3\nempty:", "recipe.yaml")
    assert validate(Pace, document, path="pace", ignore=["name"]) == Pace(steps=3)
    assert validate(Pace, document, path="nowhere") == validate(Pace, document, path="empty") == Pace()
    assert complaint("pace:\n  stps: 3", Pace, path="pace").startswith(
        "recipe.yaml:2: pace.stps: no such setting of Pace"
    )


def test_set_overrides_the_recipe_and_is_named_in_errors():
    recipe = parse("teachers: [{model: a, weights: w}]\npace: {steps: 1, size: [1, 2]}", "recipe.yaml")
    merged = recipe.merge(parse_set(["teachers.0.model=b", "pace.steps=5", "pace.size=[3, 4]"]))
    assert validate(Plan, merged) == Plan([Teacher("b", Path("w"))], Pace(steps=5, size=(3, 4)))
    assert recipe.data["pace"] == {"steps": 1, "size": [1, 2]}
    with pytest.raises(UsageError, match=r"^--set: pace\.steps: found 'x'"):
        validate(Plan, recipe.merge(parse_set(["pace.steps=x"])))
    with pytest.raises(UsageError, match=r"^recipe\.yaml:2: pace\.steps: found 0"):
        validate(Plan, parse("teachers: []\npace: {steps: 0}", "recipe.yaml").merge({"pace": {"echo": True}}))
    with pytest.raises(UsageError, match="found number 3 of a list of 1"):
        recipe.merge(parse_set(["teachers.3.model=b"]))
    assert str(merged.error("pace.steps", "too many.")) == "--set: pace.steps: too many."
    assert merged.get("teachers.0.weights") == "w"
    assert merged.get("teachers.1.weights", 7) == 7


def test_set_reads_scalars_lists_and_mappings():
    items = ["a.b=1", "a.c=[1, x]", "d={e: 2.5}", "a.f=", "a.g=x=y", "a.h='3'", "a.b=2"]
    assert parse_set(items) == {"a": {"b": 2, "c": [1, "x"], "f": None, "g": "x=y", "h": "3"}, "d": {"e": 2.5}}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("steps=1", "--set steps=1: expected the full path, section.setting=value; did you mean 'pace.steps'?"),
        ("steps", "--set steps: expected section.setting=value"),
        ("=1", "--set =1: expected section.setting=value"),
        ("pace..x=1", "--set pace..x=1: expected section.setting=value"),
        ("pace.x=[1", "--set pace.x=[1: the value is not valid YAML; put it in quotes."),
    ],
)
def test_a_wrong_set_is_refused(item: str, said: str):
    with pytest.raises(UsageError) as caught:
        parse_set([item], paths(Plan))
    assert str(caught.value).startswith(said)


def test_paths_of_all_settings():
    assert paths(Teacher, "teacher.") == ["teacher.model", "teacher.weights"]
    assert paths(Plan)[:4] == ["teachers", "pace", "pace.steps", "pace.precision"]


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A random value of every kind that can be written, biased to what looks like something else."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, -1, 10**30, rng.randrange(-1000, 1000)])
    if kind == 2:
        return rng.choice([rng.gauss(0, 1) * 10 ** rng.randrange(-300, 300), 0.1 + 0.2, -0.0, 1e22, 5e-324, math.inf])
    if kind <= 5:
        odd = ["", " ", "~", "null", "1e3", "1.", "0x1F", "no", "y", "on", "010", "1_0", "12:30", "2024-01-01", "a: b", "# x",
               "- x", "&a", "*a", "!t", "%", "@", "`", "<<", "=", "a\nb\n", "\t", "é漢😀", "\x07", "\x85", "'", '"', "{", "-.inf"]  # fmt: skip
        return rng.choice(odd) if kind < 5 else "".join(rng.choice(odd) for _ in range(3))
    if kind == 6:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {str(anything(rng, 9)): anything(rng, depth + 1) for _ in range(rng.randrange(4))}


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_written_reads_back_equal(seed: int):
    rng = random.Random(seed)
    for _ in range(10):
        value = {f"k{i}": anything(rng) for i in range(4)} | {str(anything(rng, 9)): anything(rng)}
        assert repr(parse(dump(value)).data) == repr(value)


def test_other_readers_read_our_numbers_and_text_alike():
    value = {"a": 1e-3, "b": "no", "c": "1e-3", "d": [1, 2.5], "e": None, "f": {"g": True}, "h": 1e22}
    read = yaml.safe_load(dump(value))
    assert {key: read[key] for key in "adefh"} == {key: value[key] for key in "adefh"}


def test_a_dataclass_written_and_validated_again_is_the_same():
    plan = Plan(
        [Teacher("a", Path("x y/z")), Teacher("b")], Pace(steps=3, size=(1, 2), rate=0.1 + 0.2, names=("no", "1"))
    )
    assert validate(Plan, parse(dump(plan))) == plan
    assert plain(plan)["teachers"][0] == {"model": "a", "weights": "x y/z"}
    with pytest.raises(TypeError, match="cannot be written"):
        dump({"a": object()})


def test_help_is_read_from_the_comments_behind_and_above():
    assert field_help(Pace) == {"steps": "iterations", "size": "height and width", "rate": "of learning"}

    @dataclass
    class Slow(Pace):
        steps: int = 3  #: few
        extra: int = 0  # not for users

    assert field_help(Slow)["steps"] == "few"
    assert field_help(Slow)["rate"] == "of learning"
    assert "extra" not in field_help(Slow)


def test_types_in_words():
    assert expected(settings(Pace)["size"]) == "a list of 2 (a whole number, a whole number)"
    assert expected(tuple[str, ...]) == "a list, each text"
    assert (
        expected(Annotated[list[int], Field(min_length=1)] | None)
        == "a list, each a whole number at least 1 long or null"
    )
    assert expected(Annotated[float, annotated_types.Interval(ge=0, lt=1)]) == "a number >= 0 and < 1"
    assert expected(dict[str, int]) == "a mapping"
