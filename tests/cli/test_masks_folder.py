"""A folder of pictures and masks, from training to the sentence about what is wrong in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from invoking import answer, refusal, run
from PIL import Image


def scene(folder: Path, i: int, part: str = "train") -> None:
    """A bright square of class 1 on dark ground of class 0, framed by what nobody judges."""
    at = np.random.default_rng(i).integers(2, 20, 2)
    mask = np.zeros((36, 48), dtype=np.uint8)
    mask[at[0] : at[0] + 12, at[1] : at[1] + 12] = 1
    picture = np.stack([200 * mask + 20] * 3, 2).astype(np.uint8)
    mask[[0, -1]] = 255
    for kind, image in (("images", Image.fromarray(picture)), ("masks", Image.fromarray(mask))):
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


def test_a_segmenter_is_trained_on_it_and_measured_class_by_class(folder):
    answer(train(folder, "--json"))
    card = json.loads((folder.parent / "run" / "best" / "config.json").read_text())
    assert (card["task"], card["classes"], card["class_names"]) == ("segmentation", 2, ["ground", "square"])
    assert {"miou", "pixel_accuracy", "iou/ground", "iou/square"} <= card["metrics"].keys()


def test_without_names_the_classes_are_counted(folder):
    (folder / "classes.txt").unlink()
    answer(train(folder, "--json"))
    card = json.loads((folder.parent / "run" / "best" / "config.json").read_text())
    assert (card["classes"], card["class_names"]) == (2, None)


def test_as_strange_images_only_its_pictures_are_read(folder):
    answer(train(folder, "--json"))
    for path in folder.rglob("masks/*"):
        path.write_text("no image")
    answer(
        run("distill", "--teacher", folder.parent / "run" / "best", "--ood", folder, "--student", "deeplab_wrn16_1",
            "--method", "kd", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--precision", "32",
            "--out", folder.parent / "kd", "--json")
    )  # fmt: skip


def lost(path: Path) -> None:
    path.unlink()


def alone(path: Path) -> None:
    (path.parent.parent / "images" / path.name).unlink()


def small(path: Path) -> None:
    Image.new("L", (48, 35)).save(path)


def coloured(path: Path) -> None:
    Image.new("RGB", (48, 36)).save(path)


def strange(path: Path) -> None:
    Image.new("L", (48, 36), 7).save(path)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lost, 2, "images/{}.png: has no mask; expected "),
        (alone, 2, "masks/{}.png: a mask without its image; expected one in "),
        (small, 1, "masks/{}.png: 48x35 pixels, but its image {}.png has 48x36; expected the same."),
        (coloured, 1, "masks/{}.png: found colours (mode RGB), expected one class number a pixel"),
        (strange, 1, "images/{}.png holds 7; expected classes 0 to 1, and 255"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_name_of_the_file(
    folder, part: str, spoil: Callable[[Path], None], code: int, said: str
):
    name = {"train": "3", "val": "6"}[part]
    spoil(folder / part / "masks" / f"{name}.png")
    sentence = refusal(train(folder), code)
    assert said.replace("{}", name) in sentence
    assert str(folder / part) in sentence
    assert not (folder.parent / "run" / "metrics.jsonl").exists()
