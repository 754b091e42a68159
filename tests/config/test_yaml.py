"""Recipe files: parsing with locations, overrides, and a writer that reads back equal."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.config import dump_yaml, load_yaml, parse_overrides, parse_yaml, to_plain
from compress.errors import UsageError


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("a: 1\nb: 2\na: 3", "recipe.yaml:3: a:"),
        ("a: {b: 1,\n b: 2}", "recipe.yaml:2: a.b:"),
        ("a: 1\nb: [", "recipe.yaml:2:"),
        ("- 1", "recipe.yaml:"),
        ("", "recipe.yaml:"),
        ("a: 1\n---\nb: 2", "recipe.yaml:2:"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", "recipe.yaml:2:"),
        ("a: [1]\nb: *x", "recipe.yaml:2:"),
        ("a: 1\nb: \0", "recipe.yaml:2:"),
        ("? [1]\n: 2", "recipe.yaml:1:"),
        ("a: " + "9" * 5000, "recipe.yaml:1: a:"),
        ("a: " + "[" * 5000, "recipe.yaml:"),
    ],
)
def test_invalid_yaml_names_its_line(text: str, location: str):
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "recipe.yaml")
    assert str(caught.value).startswith(location)


def test_yaml_tags_run_no_code(tmp_path: Path):
    with pytest.raises(UsageError):
        parse_yaml(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']", "r")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"a: 1\nb: \xff\xfe", b"#" * 2_000_000])
def test_unreadable_recipe_file_is_refused(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=str(tmp_path / "recipe.yaml")):
        load_yaml(tmp_path / "recipe.yaml")


def test_byte_order_mark_and_crlf_are_accepted(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert load_yaml(tmp_path / "recipe.yaml").data == {"a": 1, "b": 2}


def test_scalars_follow_yaml_1_2():
    text = "a: 1e-3\nb: no\nc: 2024-01-01\nd: 12:30\ne: 010\nf: ~\ng: -.inf\nh: 1_000\ni: +7\nj: 1.\nk: on\nl: TRUE\nm:"
    assert parse_yaml(text).data == {
        "a": 0.001, "b": "no", "c": "2024-01-01", "d": "12:30", "e": "010", "f": None, "g": -math.inf, "h": "1_000",
        "i": 7, "j": 1.0, "k": "on", "l": True, "m": None,
    }  # fmt: skip


def test_merge_replaces_values_and_keeps_locations():
    recipe = parse_yaml("teachers: [{model: a, weights: w}]\ntraining: {steps: 1, size: [1, 2]}", "recipe.yaml")
    merged = recipe.merge(parse_overrides(["teachers.0.model=b", "training.size=[3, 4]"]))
    assert merged.data == {"teachers": [{"model": "b", "weights": "w"}], "training": {"steps": 1, "size": [3, 4]}}
    assert recipe.data["training"]["size"] == [1, 2]
    assert str(merged.error("training.size", "x")) == "--set: training.size: x"
    assert str(merged.error("training.steps", "x")) == "recipe.yaml:2: training.steps: x"
    assert merged.get("teachers.0.weights") == "w"
    assert merged.get("teachers.1.weights", 7) == 7
    with pytest.raises(UsageError, match=r"teachers\.3"):
        recipe.merge(parse_overrides(["teachers.3.model=b"]))


def test_overrides_hold_scalars_lists_and_mappings():
    items = ["a.b=1", "a.c=[1, x]", "d={e: 2.5}", "a.f=", "a.g=x=y", "a.h='3'", "a.b=2"]
    expected = {"a": {"b": 2, "c": [1, "x"], "f": None, "g": "x=y", "h": "3"}, "d": {"e": 2.5}}
    assert parse_overrides(items) == expected


@pytest.mark.parametrize("item", ["steps=1", "steps", "=1", "training..x=1", "training.x=[1"])
def test_invalid_override_is_named(item: str):
    with pytest.raises(UsageError) as caught:
        parse_overrides([item], ["training", "training.steps"])
    assert str(caught.value).startswith(f"--set {item}: ")
    assert item != "steps=1" or "'training.steps'" in str(caught.value)


ODD_TEXT = [
    "", " ", "~", "null", "1e3", "1.", "0x1F", "no", "y", "on", "010", "1_0", "12:30", "2024-01-01", "a: b", "# x",
    "- x", "&a", "*a", "!t", "%", "@", "`", "<<", "=", "a\nb\n", "\t", "é漢😀", "\x07", "\x85", "'", '"', "{", "-.inf",
]  # fmt: skip


def random_value(rng: random.Random, depth: int = 0) -> Any:
    """Return a value of any writable kind, biased to text that looks like something else."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.choice([0, -1, 10**30, rng.randrange(-1000, 1000)])
    if kind == 2:
        return rng.choice([rng.gauss(0, 1) * 10 ** rng.randrange(-300, 300), 0.1 + 0.2, -0.0, 1e22, 5e-324, math.inf])
    if kind <= 5:
        return rng.choice(ODD_TEXT) if kind < 5 else "".join(rng.choice(ODD_TEXT) for _ in range(3))
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {str(random_value(rng, 9)): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}


@pytest.mark.parametrize("seed", range(4))
def test_dumped_yaml_reads_back_equal(seed: int):
    rng = random.Random(seed)
    for _ in range(100):
        value = {f"k{i}": random_value(rng) for i in range(4)} | {str(random_value(rng, 9)): random_value(rng)}
        assert repr(parse_yaml(dump_yaml(value)).data) == repr(value)


def test_other_parsers_read_dumped_values():
    value = {"a": 1e-3, "b": "no", "c": "1e-3", "d": [1, 2.5], "e": None, "f": {"g": True}, "h": 1e22}
    read = yaml.safe_load(dump_yaml(value))
    assert {key: read[key] for key in "adefh"} == {key: value[key] for key in "adefh"}


def test_plain_values_hold_no_paths_or_dataclasses():
    @dataclass
    class Weights:
        path: Path
        shape: tuple[int, int]

    assert to_plain({"w": [Weights(Path("x y/z"), (1, 2))]}) == {"w": [{"path": "x y/z", "shape": [1, 2]}]}
    with pytest.raises(TypeError):
        dump_yaml({"a": object()})
