"""Whatever a recipe or an override says, it is loaded or refused in a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.config import dump_yaml, load_yaml, parse_yaml
from compress.errors import UsageError
from compress.experiments.config import load_sweep_config, resolve_sweep_config
from compress.training.recipes import find_recipe, list_setting_paths, resolve_config
from compress.training.setup import load_config

FAST = settings(
    max_examples=20, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)  # fmt: skip
LONG = settings(FAST, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "2000")), derandomize=False)

#: settings of which each alone makes a request wrong
WRONG = (
    "training.seed=18446744073709551616", "training.seed=-1", "training.batch_size=1000000000",
    "task.image_size=[0, 0]", "task.image_size=[-1, 32]", "task.image_size=[1000000, 32]", "task.classes=2000000000",
    "method.lr=.inf", "method.lr=.nan", "method.lr=1e400", "training.ema_decay=.nan", "training.steps=1" + "0" * 30,
    "training.steps=1" + "0" * 100_000, "training.time_limit=.inf", "training.time_limit=1e400",
    "training.time_limit=" + "9" * 400 + "s", "training.epochs=1e300", "task.resize=1000000",
    "teachers.0.mean=[" + "1, " * 2000 + "1]", "method={a: {b: .nan}}", 'student.model="a\\0b"',
    'student.model="\\u001b[2J"', 'student.model="\\ud800"', '"a\\0"=1', "training.²=1",
    "training." + "9" * 5000 + "=1", "teachers.99999999999999999999=1", "a." * 5000 + "a=1",
    "student=" + "[" * 100_000, "student.model=" + "x" * 70_000,
)  # fmt: skip
HOSTILE_FILES = (
    "a: " + "[" * 100_000, "- " * 100_000, "a: " + "{a: " * 50_000, "a: [" + "1," * 100_000 + "]",
    "\n".join(f"k{i}: 1" for i in range(50_000)), "a: " + "9" * 100_000, "a: 1\na: 2", "? [1]\n: 2", "1: 2", "~: 2",
    "? ''\n: 1", "a: \0", "methods: [[a]]", "methods: 3", "methods: [{a: b}]", "teachers: 3", "data: [1]",
    "training: {steps: .inf}", "\ud800: 1",
)  # fmt: skip


@pytest.mark.parametrize("item", WRONG, ids=lambda item: item[:30].replace("\0", ""))
def test_hostile_override_is_refused(item: str):
    with pytest.raises(UsageError):
        resolve_config(None, [item], teacher="embedded/fashion_wrn16_2", method="kd", unlabeled="embedded/photos")


@pytest.mark.parametrize("text", HOSTILE_FILES, ids=lambda text: ascii(text[:20]))
@pytest.mark.parametrize("load", [load_config, load_sweep_config])
def test_hostile_file_is_refused(text: str, load: Callable[..., Any]):
    with pytest.raises(UsageError):
        load(parse_yaml(text, "recipe.yaml"))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_recipe_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / "recipe.yaml")
    with pytest.raises(UsageError):
        load_yaml(tmp_path / "recipe.yaml")


SHIPPED = [path.read_text() for path in sorted(find_recipe("demo-kd").parent.glob("*.yaml"))]
PATHS = [
    *list_setting_paths(),
    "teachers.0.model",
    "teachers.0.mean",
    "teachers.0",
    "methods.kd.lr",
    "methods",
    "seeds",
]
WORDS = st.sampled_from(
    ["auto", "null", "[]", "{}", "~", "-1", "0", "1", "2", "true", ".nan", "-.inf", "1e400", "1" * 25, "1" * 5000,
     "!!x", "*a", "&a b", "''", '"\\0"', '"\\ud800"', "[1, 2]", "[[1]]", "{a: 1}", "kd", "wrn16_1", "smp/x", "1:2",
     "timm/x", "torchvision/x", "module:ab", "embedded/x", "a..b", "::", ".a", "10m", "9" * 400 + "h", "3 kB", "é", "²"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner), max_leaves=9
)
OVERRIDES = st.builds(
    "{}={}".format, st.sampled_from(PATHS) | st.text(max_size=20), WORDS | VALUES.map(str) | st.text()
)
SECTIONS = st.sampled_from([path.split(".")[0] for path in PATHS]) | st.text(max_size=9)
DOCUMENTS = st.builds(
    lambda text, start, length, new: text[: start % len(text)] + new + text[start % len(text) + length :],
    st.sampled_from(SHIPPED), st.integers(0, 5000), st.integers(0, 40), WORDS | st.text(max_size=40),
) | st.dictionaries(SECTIONS, VALUES).map(dump_yaml)  # fmt: skip


def load_overrides(items: list[str], recipe: str | None) -> None:
    """Load a training recipe or a sweep recipe with overrides."""
    if recipe == "sweep-fashion":
        resolve_sweep_config(recipe, settings=items)
    else:
        resolve_config(recipe, items, teacher="embedded/fashion_wrn16_2", unlabeled="embedded/photos")


def load_document(text: str) -> None:
    """Load a text as every kind of recipe."""
    for load in (load_config, load_sweep_config):
        with suppress(UsageError):
            load(parse_yaml(text, "recipe.yaml"))


RECIPES = st.sampled_from([None, "demo-kd", "demo-mosaic", "sweep-fashion"])


@FAST
@given(items=st.lists(OVERRIDES, min_size=1, max_size=3), recipe=RECIPES)
def test_any_override_loads_or_is_refused(items: list[str], recipe: str | None):
    with suppress(UsageError):
        load_overrides(items, recipe)


@FAST
@given(text=DOCUMENTS)
def test_any_document_loads_or_is_refused(text: str):
    load_document(text)


@pytest.mark.slow
@LONG
@given(items=st.lists(OVERRIDES, min_size=1, max_size=3), recipe=RECIPES, text=DOCUMENTS)
def test_many_recipes_load_or_are_refused(items: list[str], recipe: str | None, text: str):
    with suppress(UsageError):
        load_overrides(items, recipe)
    load_document(text)
