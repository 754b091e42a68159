"""A run that an earlier release began is continued, whatever settings have come and gone since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.runs.make_runs import HERE, RUNS, STEPS

import compress
from compress.config import add_defaults, document_from_mapping, dump_yaml, load_yaml, to_plain
from compress.errors import UsageError
from compress.training import stored_recipes
from compress.training.config import TrainConfig
from compress.training.run_dir import validate_run_dir
from compress.training.setup import load_config
from compress.training.stored_recipes import config_differences, read_stored_recipe

RELEASES = sorted(path.name for path in HERE.iterdir() if (path / "photos").is_dir())


@pytest.fixture
def older(request, tmp_path, monkeypatch) -> Path:
    """A copy of what a release left behind, as working directory."""
    directory = tmp_path / request.param
    shutil.copytree(HERE / request.param, directory)
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(HERE))
    return directory


def edit_recipe(path: Path, change: Any) -> dict[str, Any]:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    data = load_yaml(path).data
    change(data)
    path.write_text("\n".join([*header, dump_yaml(data)]))
    return data


def keep_required(data: dict[str, Any]) -> None:
    """Remove every setting that has today's default, as if an older release had not known it."""
    bare = {name: {} for name in data if isinstance(data[name], dict)}
    default = add_defaults(TrainConfig, {**bare, "teachers": [{}], "method": {}})
    for name in bare:
        if name != "method":
            data[name] = {key: value for key, value in data[name].items() if default[name].get(key, data) != value}
    data["teachers"] = [{"model": one["model"]} for one in data["teachers"]]


@pytest.mark.parametrize("older", RELEASES, indirect=True)
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kd", lambda data: None), ("mosaic-segmentation", keep_required),
        pytest.param("kd", keep_required, marks=pytest.mark.slow),
        pytest.param("mosaic-segmentation", lambda data: None, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_run_of_each_release_is_continued(older: Path, name: str, change: Any):
    before = edit_recipe(older / name / "recipe.yaml", change)
    result = compress.distill(**RUNS[name], output_dir=name, resume=True)
    assert result.steps == STEPS
    lines = [json.loads(line) for line in (older / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert load_yaml(older / name / "recipe.yaml").data == before


@pytest.fixture
def stored(tmp_path) -> tuple[Path, TrainConfig]:
    """A run directory with a recipe, and its config."""
    data = {"teachers": [{"model": "x"}], "data": {"unlabeled": "y"}, "method": {"name": "kd"}}
    data["training"] = {"steps": 3}
    config, _ = load_config(document_from_mapping(data, ""))
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config))
    return tmp_path, config


@pytest.mark.parametrize(
    "remove",
    [
        lambda data: data["training"].pop("ema_decay"), lambda data: data["teachers"][0].pop("trust_pickle"),
        lambda data: data["method"].pop("lr"), lambda data: data.pop("task"), lambda data: data["data"].pop("views"),
    ],
)  # fmt: skip
def test_setting_with_its_default_is_no_difference(stored, remove: Any):
    directory, config = stored
    edit_recipe(directory / "recipe.yaml", remove)
    validate_run_dir(directory, config, resume=True)


def test_setting_with_another_value_is_a_difference(stored):
    directory, config = stored
    edit_recipe(directory / "recipe.yaml", lambda data: data["training"].pop("ema_decay"))
    config.training.ema_decay = 0.9
    config.teachers[0].grayscale = True
    found = config_differences(to_plain(config), read_stored_recipe(directory / "recipe.yaml", config))
    assert [text.partition(":")[0] for text in found] == ["teachers.0.grayscale", "training.ema_decay"]


def test_removed_setting_without_effect_is_no_difference(stored, monkeypatch):
    directory, config = stored
    data = edit_recipe(directory / "recipe.yaml", lambda data: data["training"].update(gone=5))
    with pytest.raises(UsageError):
        validate_run_dir(directory, config, resume=None)
    monkeypatch.setitem(stored_recipes.REMOVED, "training.gone", 5)
    validate_run_dir(directory, config, resume=None)
    assert load_config(document_from_mapping(data, ""))[0] == config
    monkeypatch.setitem(stored_recipes.REMOVED, "training.gone", 6)
    with pytest.raises(UsageError):
        validate_run_dir(directory, config, resume=None)
