"""A file runs no code and trusts no pickle unless the command line says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from invoking import read_error, run

from compress.config import load_yaml, setting_paths
from compress.config.validation import _types_at as types_at
from compress.experiments.config import SweepConfig
from compress.training.config import TeacherConfig, TrainConfig
from compress.training.trust import (
    ARCHITECTURE_SETTINGS,
    METHOD_SETTINGS,
    MODEL_SETTINGS,
    consent_options,
    require_consent,
)

RECIPE = """\
teachers:
- model: embedded/fashion_wrn16_2
student:
  model: wrn16_1
data:
  unlabeled: embedded/photos
method:
  name: kd
training: {steps: 1}
"""
SWEEP = """\
teachers:
- model: embedded/fashion_wrn16_2
students:
- wrn16_1
methods:
- kd
data: {unlabeled: embedded/photos, validation: embedded/fashion}
training: {steps: 1}
"""
#: text in a recipe -> text that names code, and the line of it
CODE = {
    "model: embedded/fashion_wrn16_2": ("model: stranger:Thing", 2),
    "- model: embedded/fashion_wrn16_2": ("- architecture: stranger:Thing\n  model: embedded/fashion_wrn16_2", 2),
    "model: wrn16_1": ("model: stranger:Thing", 4),
    "  model: wrn16_1": ("  weights: stranger:Thing", 4),
    "name: kd": ("name: stranger:Thing", 8),
}
CODE_IN_SWEEP = {
    "model: embedded/fashion_wrn16_2": ("model: stranger:Thing", 2),
    "- wrn16_1": ("- stranger:Thing", 4),
    "- kd": ("- stranger:Thing", 6),
    "methods:\n- kd": ("methods:\n  kd:\n  stranger:Thing:", 7),
}


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A file that exists if code of the working directory ran, which holds the module `stranger`."""
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "ran"
    sys.modules.pop("stranger", None)


def write_recipe(text: str, old: str, new: str) -> Path:
    assert old in text
    path = Path("recipe.yaml")
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("old", CODE)
@pytest.mark.parametrize("command", ["distill", "synthesize"])
def test_recipe_cannot_import_code(ran, old: str, command: str):
    new, line = CODE[old]
    arguments = [command, "--recipe", write_recipe(RECIPE, old, new)]
    error = read_error(run(*arguments, *(["--dry-run"] if command == "distill" else [])), 2)
    assert error.startswith(f"recipe.yaml:{line}: ")
    assert "--allow-code" in error
    assert not ran.exists()


def test_consent_lets_recipe_import_code(ran):
    path = write_recipe(RECIPE, "name: kd", "name: stranger:Thing")
    read_error(run("distill", "--recipe", path, "--dry-run", "--allow-code"), 2)  # it has no Thing
    assert ran.exists()


@pytest.mark.parametrize("arguments", [["--method", "stranger:Thing"], ["--set", "method.name=stranger:Thing"]])
def test_command_line_needs_no_consent(ran, arguments: list[str]):
    Path("recipe.yaml").write_text(RECIPE)
    read_error(run("distill", "--recipe", "recipe.yaml", "--dry-run", *arguments), 2)
    assert ran.exists()


@pytest.mark.parametrize("old", CODE_IN_SWEEP)
def test_sweep_cannot_import_code(ran, old: str):
    new, line = CODE_IN_SWEEP[old]
    error = read_error(run("sweep", write_recipe(SWEEP, old, new), "--dry-run"), 2)
    assert error.startswith(f"recipe.yaml:{line}: ")
    assert not ran.exists()


def test_sweep_directory_cannot_import_code(ran):
    Path("sweep.yaml").write_text(SWEEP.replace("- kd", "- stranger:Thing"))
    assert read_error(run("sweep", "--out", ".", "--dry-run"), 2).startswith("sweep.yaml:6: ")
    assert not ran.exists()


@pytest.mark.parametrize(
    "recipe", [RECIPE.replace("name: kd", "name: stranger:Thing"), "teachers: [{model: 'stranger:Thing'}]"]
)
def test_run_directory_cannot_import_code(ran, recipe: str):
    Path("recipe.yaml").write_text(recipe)
    assert read_error(run("synthesize", "--run", ".", "--count", "1", "--out", "images"), 2).startswith("recipe.yaml:")
    calibration = ["--precision", "int8", "--calibration", ".", "--out", "files"]
    assert read_error(run("export", "embedded/fashion_wrn16_2", *calibration), 2).startswith("recipe.yaml:")
    assert not ran.exists()


def test_recipe_cannot_trust_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = "- model: embedded/fashion_wrn16_2"
    for text, command in ((RECIPE, ["distill", "--recipe"]), (SWEEP, ["sweep"])):
        path = write_recipe(text, old, f"{old}\n  trust_pickle: true")
        error = read_error(run(*command, path, "--dry-run"), 2)
        assert error.startswith("recipe.yaml:3: teachers.0.trust_pickle: ")
    document = load_yaml(write_recipe(RECIPE, old, f"{old}\n  trust_pickle: true"))
    require_consent(document, trust_pickle=True)
    require_consent(document.merge({"teachers": {"0": {"trust_pickle": True}}}))


def test_children_receive_consent_for_what_they_run():
    config = TrainConfig()
    assert consent_options(config) == []
    config.method = {"name": "stranger:Thing"}
    assert consent_options(config) == ["--allow-code"]


def test_every_text_setting_is_known_to_name_code_or_not():
    """A new setting of text must be added here, or to the settings that may name code."""
    harmless = {"task.name", "training.device", "data.unlabeled", "data.labeled", "data.validation", "calibration"}
    harmless |= {"teachers.*.output", "teachers.*.class_names.*"}
    known = {*harmless, *METHOD_SETTINGS, *ARCHITECTURE_SETTINGS, *MODEL_SETTINGS}
    found = {f"teachers.*.{path}" for path in text_settings(TeacherConfig)}
    assert {*found, *text_settings(TrainConfig), *text_settings(SweepConfig)} <= known


def text_settings(kind: type) -> set[str]:
    """Find the settings that accept any text, or a list or mapping of texts."""
    paths = setting_paths(kind)
    of_one = {path for path in paths if str in types_at(kind, tuple(path.split(".")))}
    return of_one | {f"{path}.*" for path in paths if str in types_at(kind, (*path.split("."), 0))}
