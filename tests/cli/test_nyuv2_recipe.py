"""The recipe of the paper's NYUv2 experiment, to its end on a NYUv2 in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from invoking import answer, refusal, run
from miniature import write_nyu
from PIL import Image

from compress import config
from compress.cli.options import find_recipe
from compress.models.card import Card
from compress.models.folder import save_model
from compress.models.loading import new_model
from compress.plan import read_plan

#: what makes it small; all else is the recipe's
SMALL = (
    "--student", "deeplab_wrn16_1", "--steps", "3", "--batch-size", "4", "--device", "cpu", "--precision", "32",
    "--set", "task.image_size=[32,32]", "--set", "method.width_G=8", "--set", "method.width_D=8",
    "--set", "data.views=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data root with NYUv2 and ImageNet's folders, a dozen pictures each."""
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
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    net, card = new_model("deeplab_wrn16_1", like=Card("", 13, (32, 32), task="segmentation"))
    save_model(folder, net, card)
    return folder


def test_it_runs_to_its_end(tmp_path, data, teacher):
    arguments = ("distill", "--recipe", "mosaic-nyuv2", "--teacher", teacher, "--data-root", data, *SMALL)
    answer(run(*arguments, "--out", tmp_path / "run", "--json"))
    card = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert (card["task"], card["classes"]) == ("segmentation", 13)
    assert 0 <= card["metrics"]["miou"] <= 1
    recipe = config.read_yaml(tmp_path / "run" / "recipe.yaml")
    shipped = config.read_yaml(find_recipe(Path("mosaic-nyuv2")))
    for key in ("method.local", "method.patch", "method.weight_decay", "method.moves", "data.validation"):
        assert recipe.get(key) == shipped.get(key)


def test_without_the_data_it_says_what_to_fetch(tmp_path, data, teacher):
    said = refusal(
        run("distill", "--recipe", "mosaic-nyuv2", "--teacher", teacher, *SMALL, "--ood", data / "imagenet",
            "--data-root", tmp_path, "--out", tmp_path / "run"), 1,
    )  # fmt: skip
    assert said.startswith("nyuv2: nyu_depth_v2_labeled.mat and splits.mat and classMapping40.mat not found")


def test_its_settings_are_the_papers():
    """The experiment of the paper's Table 2, with the schedule of the data-free run beside it (300 epochs of 50)."""
    plan, method = read_plan(
        config.read_yaml(find_recipe(Path("mosaic-nyuv2"))).merge({"teachers": [{"model": "x"}]}, where="")
    )
    assert (plan.task.classes, plan.task.image_size) == (13, (128, 128))
    assert plan.student.model == "deeplabv3_mobilenet_v2"
    assert (plan.data.unlabelled, plan.data.validation) == ("imagenet", "nyuv2")
    assert (plan.pace.steps, plan.pace.batch_size) == (300 * 50, 64)
    values = vars(method)
    assert {k: values[k] for k in ("local", "align", "adv")} == {"local": 1, "align": 1, "adv": 1}
    assert {k: values[k] for k in ("patch", "moves", "temperature", "ood_share")} == {
        "patch": 22, "moves": 5, "temperature": 1, "ood_share": 0.5,
    }  # fmt: skip
    assert {k: values[k] for k in ("lr", "weight_decay", "lr_G", "lr_D")} == {
        "lr": 0.1, "weight_decay": 5e-5, "lr_G": 1e-3, "lr_D": 1e-3,
    }  # fmt: skip
