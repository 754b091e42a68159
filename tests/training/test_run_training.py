"""A run can be reproduced from its recipe; its directory is protected; settings override each other."""

from __future__ import annotations

import gc
import json
import warnings

import numpy as np
import pytest
import torch
from small_training import ARGUMENTS, SETTINGS, TEACHER, hash_weights, mosaic, train

from compress.config import load_yaml
from compress.data import register_dataset
from compress.errors import CompressError, UsageError
from compress.models import register_module
from compress.models.loading import load_model
from compress.training.launch import run_dir_lock
from compress.training.recipes import resolve_config
from compress.training.setup import RECIPE
from profiles.records import read_records


def test_recipe_reproduces_the_same_weights(finished_run, tmp_path):
    folder, result = finished_run
    again = train(tmp_path, recipe=folder / RECIPE)
    assert hash_weights(tmp_path) == hash_weights(folder)
    assert load_yaml(tmp_path / RECIPE).data == load_yaml(folder / RECIPE).data
    assert again.metrics == result.metrics


def test_other_seed_gives_other_weights(finished_run, tmp_path):
    folder, _ = finished_run
    train(tmp_path, recipe=folder / RECIPE, seed=1)
    assert hash_weights(tmp_path) != hash_weights(folder)


def test_result_is_recorded_in_the_run_directory(finished_run):
    folder, result = finished_run
    (record,) = read_records(folder)
    assert result.best == folder / "best"
    assert (record.macs, record.params, record.metrics) == (result.macs, result.params, result.metrics)
    assert (record.run["steps"], record.run["teacher"]) == (result.steps, "Teacher wrn16_2") == (2, "Teacher wrn16_2")
    card = json.loads((result.best / "config.json").read_text())
    assert card["provenance"]["teachers"][0]["model"] == TEACHER


def test_arguments_override_recipe_and_settings_override_both(tmp_path, photos):
    (tmp_path / "my.yaml").write_text(
        f"teachers:\n- model: {TEACHER}\nstudent: {{model: wrn16_1}}\ndata: {{unlabeled: {photos}, views: 1}}\n"
        "method: {name: mosaic, width_G: 8, width_D: 8, local: 0.5, align: 0.5}\n"
        "training: {steps: 9, seed: 5, batch_size: 8, precision: 32, log_every: 3}\n"
    )
    settings = {"training.steps": 1, "method.local": 2.0}
    config, method = resolve_config(tmp_path / "my.yaml", settings=settings, steps=3, seed=6, batch_size=4)
    schedule = config.training
    assert (schedule.steps, schedule.seed, schedule.batch_size, schedule.log_every) == (1, 6, 4, 3)
    values = vars(method)
    assert (values["local"], values["align"], values["adv"]) == (2.0, 0.5, 1.0)


def test_time_limit_replaces_the_steps_of_a_recipe(finished_run):
    config, _ = resolve_config(finished_run[0] / RECIPE, time_limit=1.0)
    assert (config.training.steps, config.training.time_limit) == (None, 1.0)


def test_run_of_another_recipe_is_refused(finished_run, photos, clothes):
    folder, _ = finished_run
    with pytest.raises(UsageError, match=r"training\.seed: 0 there, 3 here"):
        train(folder, **mosaic(photos, validation=str(clothes), seed=3))


def test_resume_without_a_run_is_refused(tmp_path, photos):
    with pytest.raises(UsageError, match="resume"):
        train(tmp_path / "run", options={"resume": True}, **mosaic(photos))
    assert not (tmp_path / "run").exists()


def test_locked_run_directory_is_refused(tmp_path):
    with run_dir_lock(tmp_path / "run"):
        with pytest.raises(UsageError, match=str(tmp_path / "run")), run_dir_lock(tmp_path / "run"):
            pass
        (tmp_path / "run" / "file").touch()
    with run_dir_lock(tmp_path / "run"):
        pass
    with run_dir_lock(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def test_method_without_data_or_teacher_is_refused(photos):
    for arguments, key in (
        ({"teacher": TEACHER, "method": "kd", "steps": 1}, "data.unlabeled"),
        ({"unlabeled": str(photos), "method": "kd", "steps": 1}, "teachers"),
        ({"teacher": TEACHER, "unlabeled": str(photos), "epochs": 1, "method": "dafl"}, "training.epochs"),
    ):
        with pytest.raises(UsageError, match=key):
            resolve_config(**arguments)


class Noise(torch.utils.data.Dataset):
    """Twelve images of noise."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.slow
def test_module_and_dataset_train_like_their_files(tmp_path):
    module, _ = load_model(TEACHER)
    objects = {"teacher": register_module(module), "unlabeled": register_dataset(Noise())}
    arguments = {**objects, **ARGUMENTS, "settings": SETTINGS}
    result = train(tmp_path, **arguments)
    assert result.steps == 2
    text = (tmp_path / RECIPE).read_text()
    assert objects["teacher"] in text
    assert "# module:HASH" in text
    with pytest.raises(CompressError, match=objects["teacher"].partition(":")[0]):
        train(tmp_path / "two", options={"devices": 2}, **arguments)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # torch.distributed.elastic leaves /dev/null open
