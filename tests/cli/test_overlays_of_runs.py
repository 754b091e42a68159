"""The overlays of a run: which images are shown, and that it is the run's own models that answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from invoking import answer, run
from PIL import Image

from compress.cli.overlays import answered, spread_choice
from compress.cli.reporting import grid_caption
from compress.cli.results import of_all, summary
from compress.data import open_images
from compress.data.cache import build_cache
from compress.models.card import Card
from profiles.overlays import ARRAYS, PICTURE, load
from profiles.record import read_records


def masks_with(*classes: tuple[int, ...]) -> np.ndarray:
    """One mask for each tuple, with a broad line of each of its classes and 255 elsewhere."""
    masks = np.full((len(classes), 16, 16), 255, dtype=np.int64)
    for i, present in enumerate(classes):
        for row, c in enumerate(present):
            masks[i, row] = c
    return masks


def test_one_image_of_each_stretch_is_shown():
    chosen = spread_choice(masks_with(*[(0,)] * 50), 1)
    assert [i // 10 for i in chosen] == [0, 1, 2, 3, 4]
    assert all(3 <= i % 10 <= 6 for i in chosen[1:])


def test_every_class_is_shown_where_that_can_be_had():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sets: list[tuple[int, ...]] = [(0,)] * 40
        for stretch, rare in enumerate(rng.permutation(np.arange(1, 11)).reshape(5, 2)):
            sets[8 * stretch + int(rng.integers(8))] = (0, *map(int, rare))
        masks = masks_with(*sets)
        chosen = spread_choice(masks, 11)
        assert set(np.unique(masks[chosen])) == {*range(11), 255}
        assert chosen == spread_choice(masks, 11)


def test_a_speck_is_not_enough_for_a_class_to_be_shown():
    masks = np.zeros((2, 64, 64), dtype=np.int64)
    masks[0, 0, 0] = 1
    masks[1, :4] = 1
    assert spread_choice(masks, 2, rows=1) == [1]


def test_few_images_are_all_shown():
    assert spread_choice(masks_with((0,), (255,), (1,)), 2) == [0, 1, 2]


def test_the_scenes_of_the_demo_show_all_their_garments(tmp_path: Path):
    images = open_images("embedded/fashion-scenes", split="val", labelled=True).spread(60)
    cached = build_cache(images, image_size=(64, 64), folder=tmp_path)
    card = Card("deeplab_wrn16_1", 11, (64, 64), task="segmentation", class_names=images.class_names)

    class Brightest(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x[:, :1].repeat(1, 8, 1, 1) - 1], 1)

    shown = answered(cached, {"brightest": Brightest()}, card)
    assert {c for c in range(11) if (shown.truth == c).any()} == set(range(11))
    assert np.array_equal(shown.answers["brightest"], shown.images.argmax(-1))
    assert shown.class_names == images.class_names


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """Six bright squares of class 1 on dark ground of class 0, framed by what nobody judges."""
    folder = tmp_path_factory.mktemp("squares")
    for part in ("train", "val"):
        for i in range(6):
            at = np.random.default_rng(i).integers(2, 20, 2)
            mask = np.zeros((40, 40), dtype=np.uint8)
            mask[at[0] : at[0] + 12, at[1] : at[1] + 12] = 1
            picture = np.stack([200 * mask + 20] * 3, 2).astype(np.uint8)
            mask[[0, -1]] = 255
            for kind, array in (("images", picture), ("masks", mask)):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / part / kind / f"{i}.png")
    (folder / "classes.txt").write_text("ground\nsquare\n")
    return folder


SHORT = ("--steps", "2", "--batch-size", "4", "--device", "cpu", "--precision", "32", "--set", "data.views=1")


def test_a_distilled_segmenter_leaves_its_overlays_for_the_report(tmp_path: Path, squares: Path, photos: Path):
    sets = ("--student", "deeplab_wrn16_1", "--val", squares, *SHORT)
    teacher = answer(run("train", "--data", squares, "--image-size", "32x32", *sets, "--out", tmp_path / "t", "--json"))
    assert Path(teacher["overlays"]) == tmp_path / "t" / PICTURE
    alone = load(tmp_path / "t")
    assert list(alone.answers) == ["Supervised deeplab_wrn16_1"]
    found = answer(
        run("distill", "--teacher", tmp_path / "t" / "best", "--ood", photos, "--method", "kd", *sets,
            "--out", tmp_path / "kd", "--json")
    )  # fmt: skip
    shown = load(tmp_path / "kd")
    assert list(shown.answers) == ["teacher", "KD deeplab_wrn16_1"]
    assert np.array_equal(shown.images, alone.images)
    assert np.array_equal(shown.answers["teacher"], alone.answers["Supervised deeplab_wrn16_1"])
    assert shown.truth.max() == 255
    history = read_records(tmp_path / "kd")[0].run["history"]
    assert set(history[-1]) == {"step", "seconds", "miou", "pixel_accuracy"}
    assert "iou/square" in found["metrics"]
    answer(run("report", tmp_path / "kd", "--json"))
    text = (tmp_path / "kd" / "report.md").read_text()
    assert "Columns: the image, truth, teacher, KD deeplab_wrn16_1." in text
    assert text.count(".png>)") == text.count(f"<{PICTURE}>") == 1
    assert "| square | " in text


def test_a_classifier_leaves_none(first_run):
    folder, found = first_run
    assert found["overlays"] is None
    assert not (folder / ARRAYS).exists()


def test_what_is_printed_of_a_run_has_no_line_of_forty_classes():
    metrics = {"miou": 0.5, "pixel_accuracy": 0.75} | {f"iou/{i}": 0.5 for i in range(40)}
    assert of_all(metrics) == {"miou": 0.5, "pixel_accuracy": 0.75}
    result = {
        "student": "best", "best_step": 1, "steps": 2, "seconds": 3.0, "metrics": metrics, "macs": 1, "flops": 2,
        "params": 3, "unsupported": {}, "export": None,
    }  # fmt: skip
    assert "score      miou 50.00%  pixel_accuracy 75.00%" in summary(result)


def test_grids_are_named_by_what_is_on_them():
    assert grid_caption(Path("kd/mosaics.png"), "classification").startswith("kd/mosaics by predicted class")
    assert grid_caption(Path("kd/mosaics.png"), "segmentation").startswith("kd/mosaics with their predicted classes")
