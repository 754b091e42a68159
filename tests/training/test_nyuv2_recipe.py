"""The recipe of the paper's NYUv2 experiment, run to its end on small NYUv2 files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nyu_files import write_nyu
from PIL import Image
from small_training import train

from compress.config import load_yaml
from compress.errors import CompressError
from compress.models import ModelCard, build_model_like
from compress.models.serialization import save_model
from compress.training.recipes import find_recipe, resolve_config
from compress.training.setup import RECIPE

SETTINGS = {"task.image_size": [32, 32], "method.width_G": 8, "method.width_D": 8, "data.views": 2}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """NYUv2 and the folders of ImageNet with a dozen images each."""
    root = tmp_path_factory.mktemp("root")
    write_nyu(root / "nyuv2", 12)
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(12):
            path = root / "imagenet" / split / f"n{i % 3:02}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> dict[str, object]:
    """The recipe with a teacher and a student of random weights, on a CPU."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    net, card = build_model_like("deeplab_wrn16_1", like=ModelCard("", 13, (32, 32), task="segmentation"))
    save_model(folder, net, card)
    return {
        "recipe": "mosaic-nyuv2", "teacher": str(folder), "student": "deeplab_wrn16_1", "steps": 3, "batch_size": 4,
        "device": "cpu", "precision": "32", "settings": SETTINGS,
    }  # fmt: skip


@pytest.mark.slow
def test_recipe_runs_to_its_end(tmp_path, data_root, arguments):
    result = train(tmp_path, **arguments, data_root=data_root)
    card = json.loads((result.best / "config.json").read_text())
    assert (card["task"], card["classes"]) == ("segmentation", 13)
    assert 0 <= card["metrics"]["miou"] <= 1
    recorded, shipped = load_yaml(tmp_path / RECIPE), load_yaml(find_recipe("mosaic-nyuv2"))
    for key in ("method.local", "method.patch_size", "method.weight_decay", "method.student_steps", "data.validation"):
        assert recorded.get(key) == shipped.get(key)


def test_missing_data_names_its_files(tmp_path, data_root, arguments):
    with pytest.raises(CompressError, match=r"nyu_depth_v2_labeled\.mat"):
        train(tmp_path / "run", **arguments, unlabeled=str(data_root / "imagenet"), data_root=tmp_path)


def test_settings_match_the_paper():
    """Table 2 of the paper, with the schedule of the data-free run beside it (300 epochs of 50)."""
    config, method = resolve_config("mosaic-nyuv2", teacher="x")
    assert (config.task.classes, config.task.image_size) == (13, (128, 128))
    assert config.student.model == "deeplabv3_mobilenet_v2"
    assert (config.data.unlabeled, config.data.validation) == ("imagenet", "nyuv2")
    assert (config.training.steps, config.training.batch_size) == (300 * 50, 64)
    expected = {
        "local": 1, "align": 1, "adv": 1, "patch_size": 22, "student_steps": 5, "temperature": 1, "ood_fraction": 0.5,
        "lr": 0.1, "weight_decay": 5e-5, "lr_G": 1e-3, "lr_D": 1e-3,
    }  # fmt: skip
    assert {name: vars(method)[name] for name in expected} == expected
