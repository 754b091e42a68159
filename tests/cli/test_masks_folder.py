"""A directory of images and masks: training on it, and errors that name its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from invoking import read_error, read_result, run
from PIL import Image


def scene(folder: Path, i: int, part: str = "train") -> None:
    """A bright square of class 1 on dark ground of class 0, inside a border that is ignored."""
    at = np.random.default_rng(i).integers(2, 20, 2)
    mask = np.zeros((36, 48), dtype=np.uint8)
    mask[at[0] : at[0] + 12, at[1] : at[1] + 12] = 1
    image_array = np.stack([200 * mask + 20] * 3, 2).astype(np.uint8)
    mask[[0, -1]] = 255
    for kind, image in (("images", Image.fromarray(image_array)), ("masks", Image.fromarray(mask))):
        (folder / part / kind).mkdir(parents=True, exist_ok=True)
        image.save(folder / part / kind / f"{i}.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(8):
        scene(tmp_path / "squares", i, "train" if i < 6 else "val")
    (tmp_path / "squares" / "classes.txt").write_text("ground\nsquare\n")
    return tmp_path / "squares"


def train(folder: Path, *arguments: object) -> Result:
    return run(
        "train", "--data", folder, "--val", folder, "--student", "deeplab_wrn16_1", "--image-size", "32x32",
        "--steps", "2", "--batch-size", "4", "--device", "cpu", "--precision", "32", "--set", "data.views=2",
        "--out", folder.parent / "run", *arguments,
    )  # fmt: skip


def test_masks_train_and_score_segmenter(folder):
    read_result(train(folder, "--json"))
    card = json.loads((folder.parent / "run" / "best" / "config.json").read_text())
    assert (card["task"], card["classes"], card["class_names"]) == ("segmentation", 2, ["ground", "square"])
    assert {"miou", "pixel_accuracy", "iou/ground", "iou/square"} <= card["metrics"].keys()


def test_classes_without_names_are_counted(folder):
    (folder / "classes.txt").unlink()
    read_result(train(folder, "--json"))
    card = json.loads((folder.parent / "run" / "best" / "config.json").read_text())
    assert (card["classes"], card["class_names"]) == (2, None)


def test_unlabeled_use_reads_no_masks(folder):
    read_result(train(folder, "--json"))
    for path in folder.rglob("masks/*"):
        path.write_text("no image")
    read_result(
        run("distill", "--teacher", folder.parent / "run" / "best", "--ood", folder, "--student", "deeplab_wrn16_1",
            "--method", "kd", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--precision", "32",
            "--out", folder.parent / "kd", "--json")
    )  # fmt: skip


def remove_mask(path: Path) -> None:
    path.unlink()


def remove_image(path: Path) -> None:
    (path.parent.parent / "images" / path.name).unlink()


def resize_mask(path: Path) -> None:
    Image.new("L", (48, 35)).save(path)


def color_mask(path: Path) -> None:
    Image.new("RGB", (48, 36)).save(path)


def add_unknown_class(path: Path) -> None:
    Image.new("L", (48, 36), 7).save(path)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    ("spoil", "code", "datum"),
    [
        (remove_mask, 2, "images/{}.png"),
        (remove_image, 2, "masks/{}.png"),
        (resize_mask, 1, "48x35"),
        (color_mask, 1, "masks/{}.png"),
        (add_unknown_class, 1, "7"),
    ],
)
def test_mask_error_names_file(folder, part: str, spoil: Callable[[Path], None], code: int, datum: str):
    name = {"train": "3", "val": "6"}[part]
    spoil(folder / part / "masks" / f"{name}.png")
    sentence = read_error(train(folder), code)
    assert datum.replace("{}", name) in sentence
    assert str(folder / part) in sentence
    assert not (folder.parent / "run" / "metrics.jsonl").exists()
