"""`--patch-size auto` becomes a number before a run begins, and stays the same when the run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.analysis.patch_size import DEFAULT_PATCH_SIZE, PatchSizeChoice
from compress.config import document_from_mapping, load_yaml
from compress.errors import UsageError
from compress.training import resolution
from compress.training.resolution import choose_patch_size
from compress.training.setup import RECIPE, TrainingSetup, create_run, load_config, prepare_training

TEACHER = "embedded/fashion_wrn16_2"


def create_setup(data: dict[str, Any] | None = None, **method: object) -> TrainingSetup:
    recipe = {
        "teachers": [{"model": TEACHER}],
        "data": {"unlabeled": "embedded/photos", "views": 2, **(data or {})},
        "method": {"name": "mosaic", "width_G": 8, "width_D": 8, "patch_size": "auto", **method},
        "training": {"steps": 1, "batch_size": 8, "device": "cpu"},
    }
    return prepare_training(*load_config(document_from_mapping(recipe)))


def choose(setup: TrainingSetup, run_dir: Path, resume: bool | None = None) -> PatchSizeChoice | None:
    return choose_patch_size(setup, run_dir, resume=resume, progress=lambda _: None)


def test_auto_becomes_a_number_in_the_recipe(tmp_path):
    setup = create_setup()
    choice = choose(setup, tmp_path / "run")
    assert choice is not None
    assert setup.config.method["patch_size"] == choice.patch_size
    create_run(setup, tmp_path / "run", quiet=True).close()
    recipe = load_yaml(tmp_path / "run" / RECIPE)
    assert recipe.get("method.patch_size") == choice.patch_size
    assert choose(prepare_training(*load_config(recipe)), tmp_path / "run") is None


def test_resumed_run_keeps_its_patch_size(tmp_path):
    (tmp_path / RECIPE).write_text("method: {name: mosaic, patch_size: 22}\n")
    setup = create_setup()
    choose(setup, tmp_path)
    assert setup.config.method["patch_size"] == 22
    fresh = create_setup()
    choose(fresh, tmp_path, resume=False)
    assert fresh.config.method["patch_size"] != 22


def test_without_discriminator_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(resolution, "measure_patch_size", None)
    setup = create_setup(local=0.0)
    choose(setup, tmp_path)
    assert setup.config.method["patch_size"] == DEFAULT_PATCH_SIZE


def test_shift_is_measured_on_the_subset(monkeypatch):
    counts: list[int] = []
    monkeypatch.setattr(resolution, "measure_shift", lambda net, cache, max_images: counts.append(len(cache)))
    choose(create_setup({"subset": 5}), Path("none"))
    assert counts == [5]


def test_unresolved_auto_is_refused(tmp_path):
    setup = create_setup()
    run = create_run(setup, tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match=r"method\.patch_size"):
        setup.method.setup(run)
    run.close()
